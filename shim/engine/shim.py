"""pyrunc as a shim: how it groups containers, what it serves, and how it cleans up after a dead daemon.

Rule: `start` and `delete` load this module, so it imports nothing heavy; `delete` works from the bundle on disk alone
and touches nothing of a daemon that may still serve others of its group.  Spec: contract 3.2 and 11.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Final, cast

from shim.engine.bundle import Bundle
from shim.errors import BundleError, InvalidArgumentError, ShimError
from shim.host import process
from shim.runtime.shim import Deleted, Shim

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from google.protobuf.any_pb2 import Any

    from shim.api.types_pb2 import RuntimeInfo
    from shim.engine.config import Config
    from shim.engine.service import Engine
    from shim.runtime.flags import Flags
    from shim.runtime.serve import Daemon
    from shim.runtime.start import StartOpts
    from shim.ttrpc.service import Service

# Where the configuration is, and the variable that names another file; set to nothing, it means none.
CONFIG_FILE: Final = "/etc/containerd/containerd-shim-pyrunc.toml"
CONFIG_VARIABLE: Final = "CONTAINERD_SHIM_CONFIG"
# The group of all containers of a containerd namespace; no container and no pod can have this name.
NAMESPACE_GROUP: Final = "/"

# containerd gives the whole clean-up five seconds.
_CREATE_END_S: Final = 2.0
_KILL_END_S: Final = 0.5
# The folder below containerd's state in which bundles of sandboxes are.
SANDBOX_CONTROLLER: Final = "io.containerd.sandbox.controller.v1.shim"


class RuncShim(Shim):
    """Runs containers on runc, crun or any OCI runtime with runc's command line."""

    _engine: Engine | None = None
    _configuration: Config | None = None

    def configuration(self) -> Config | None:
        """Return the configuration, or None where no file has one: then nothing is loaded, since launch pays for it.

        Raises:
            InvalidArgumentError: There is something wrong with the file; the text names it.
        """
        path = os.environ.get(CONFIG_VARIABLE, CONFIG_FILE)
        if self._configuration is None and path and (path != CONFIG_FILE or os.path.exists(path)):
            from shim.engine.config import read_config

            self._configuration = read_config(path)
        return self._configuration

    def group(self, opts: StartOpts) -> str:
        """Return whose daemon serves the container: its pod's, by the annotations that Go's shim groups by, or its own.

        The configuration may say that it is always its own, or one for the whole namespace.  A sandbox that containerd
        leaves to the shim has no spec yet, and is its pod itself.
        """
        config = self.configuration()
        if config is not None and config.grouping == "container":
            return opts.id
        if config is not None and config.grouping == "namespace":
            return NAMESPACE_GROUP
        bundle = Bundle(opts.bundle)
        if SANDBOX_CONTROLLER in opts.bundle.split("/") and not os.path.exists(bundle.file("config.json")):
            return opts.id
        return bundle.group(opts.id)

    def shim_cgroup(self, options: object) -> str:
        """Return the `shim_cgroup` of the runtime options; options of another type have none."""
        if options is None:
            return ""
        from shim.engine.options import decode_options

        try:
            return decode_options(cast("Any", options)).shim_cgroup
        except InvalidArgumentError:
            return ""  # Create refuses them, with a code that clients understand

    def preload(self) -> None:
        """Import the engine and all it uses."""
        from shim.engine import service  # noqa: F401

    def make_engine(self, daemon: Daemon) -> Engine:
        """Return what makes containers: what to override for another engine than runc."""
        from shim.engine.service import Engine

        return Engine(daemon, self.configuration())

    def services(self, daemon: Daemon) -> Sequence[Service]:
        """Return task v2 and v3."""
        self._engine = self.make_engine(daemon)
        return self._engine.services()

    def describe(self) -> Iterable[str]:
        """Yield the state of every container and exec."""
        return () if self._engine is None else self._engine.describe()

    def delete_shim(self) -> Deleted:
        """Kill and remove a container that its daemon has left behind; warnings go to stderr, nothing is fatal.

        A sandbox takes its containers along: containerd may have no shim's `delete` run for each of them.
        """
        flags = self.flags
        # As Go's shim: the bundle next to the working directory, which is the container's own as a rule.
        bundle = Bundle(os.path.join(os.path.dirname(os.getcwd()), flags.id))
        for container_id, (binary, root) in bundle.read_containers().items():
            # Its own bundle may be gone by now; whether its root is mounted is containerd's business then.
            _delete_quietly(bundle, container_id, flags, binary, root)
        options = bundle.read_options()
        if options is not None and not os.path.exists(bundle.file("init.pid")):
            _end_unfinished_create(bundle)
        _delete_quietly(bundle, flags.id, flags, bundle.read_runtime(), str((options or {}).get("root") or ""))
        _unmount_quietly(bundle)
        try:
            return Deleted(bundle.read_pid())
        except BundleError:
            return Deleted()

    def info(self, options: object) -> RuntimeInfo:
        """Describe pyrunc; `features` are those of the OCI runtime, where it can tell them."""
        from shim.engine.info import runtime_info

        return runtime_info(self.runtime_id, cast("Any", options), self.configuration())


def _delete_quietly(bundle: Bundle, container_id: str, flags: Flags, binary: str, root: str) -> None:
    """Have the runtime remove a container, unless it knows nothing of it: deleted in good order, as nearly always."""
    from shim.engine import state

    try:
        if not state.has_state(root or state.DEFAULT_ROOT, flags.namespace, container_id):
            return
        from shim.engine.runc import DEFAULT_BINARY, Runc
        from shim.runtime.reaper import ForegroundReaper

        Runc(
            ForegroundReaper(),
            container_id,
            bundle.path,
            flags.namespace,
            binary or DEFAULT_BINARY,
            root or state.DEFAULT_ROOT,
        ).delete(is_forced=True)
    except (ShimError, OSError) as error:
        _warn("failed to remove runc container", error)


def _unmount_quietly(bundle: Bundle) -> None:
    """Unmount the root file system, and id-mapped layers of it; in good order, so nearly always, there is none left."""
    from shim.host import mountinfo

    try:
        if not mountinfo.find_below(bundle.path):
            return
    except (ShimError, OSError) as error:
        _warn("failed to cleanup rootfs mount", error)
        return
    from shim.host import idmap, mount

    for path in (bundle.rootfs, idmap.layers_folder(bundle.rootfs)):
        try:
            mount.unmount_recursive(path)
        except (ShimError, OSError) as error:
            _warn("failed to cleanup rootfs mount", error)


def _end_unfinished_create(bundle: Bundle) -> None:
    """Let a `runc create` that has outlived its daemon come to its end, or kill it when it does not in time.

    So it cannot make a container that nobody would know.  Killed half way it leaves a cgroup that its own `delete` does
    not find (runc 1.1), hence the patience.
    """
    patience = time.monotonic() + _CREATE_END_S
    while pids := process.find_by_arguments("create", "--bundle", bundle.path):
        late_s = time.monotonic() - patience
        for pid in pids if late_s > 0 else ():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        if late_s > _KILL_END_S:
            return
        time.sleep(0.01)


def _warn(message: str, error: Exception) -> None:
    from shim.runtime.logger import Logger

    Logger(sys.stderr.fileno()).warning(message, error=error)
