"""Starts a shim by hand, with the argv, environment and stdin that containerd gives it, in a bundle made by hand.

The clock runs from before the spawn until `start` has exited, and until the first call is answered.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shim.testing.configuration import with_opt
from shim.testing.containerd import Containerd
from tests.bench.calls import Caller, socket_of
from tests.bench.setting import Side

# A google.protobuf.Any with the type of the runc options and no value: what `ctr run` has containerd send to Go's shim.
# It sends nothing to one of another name, but here all have the same to read.
_OPTIONS: Final = b"\x0a\x1acontainerd.runc.v1.Options"
_TIMEOUT_S: Final = 20.0

# Those options as containerd keeps them for `delete`: of the three shims one wants them whole.
_KEPT_OPTIONS: Final = {
    "no_pivot_root": False,
    "no_new_keyring": False,
    "shim_cgroup": "",
    "io_uid": 0,
    "io_gid": 0,
    "binary_name": "",
    "root": "",
    "systemd_cgroup": False,
    "criu_image_path": "",
    "criu_work_path": "",
}

# The annotation by which both shims put containers into one daemon.
POD: Final = "io.kubernetes.cri.sandbox-id"


@dataclass(frozen=True, slots=True)
class Launch:
    """What one launch took, in milliseconds."""

    start_ms: float
    answered_ms: float


class Launcher:
    """Launches shims against one containerd; every launch has a bundle and an id of its own.

    `environment` is the mode's; `name` begins the ids.  `prefix` is a command that runs the shim as the process that it
    is itself.
    """

    def __init__(
        self, containerd: Containerd, environment: Mapping[str, str], name: str, prefix: Sequence[str] = ()
    ) -> None:
        self._containerd = containerd
        self._name = name
        self._environment = dict(environment)
        self._prefix = list(prefix)
        self._serial = 0

    def version(self, shim: Path) -> float:
        """Do `-v`, and return the milliseconds it took."""
        environment = with_opt({**os.environ, **self._environment})
        began = time.perf_counter()
        ended = subprocess.run([shim, "-v"], env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        elapsed = (time.perf_counter() - began) * 1e3
        if ended.returncode:
            raise RuntimeError(f"{shim} -v ended with {ended.returncode}")
        return elapsed

    def launch(self, side: Side, look: Callable[[int], None] | None = None) -> Launch:
        """Do `start`, the first call, and after the clock has stopped `look` at the daemon's pid, and a Shutdown."""
        container, bundle = self._bundle()
        log = os.open(bundle / "log", os.O_RDWR | os.O_NONBLOCK)
        try:
            began = time.perf_counter()
            path = socket_of(self._call(side.shim, container, bundle, ["start"], _OPTIONS))
            started = time.perf_counter()
            with Caller(path, side.service) as caller:
                answer = caller.call("Connect", container)
                answered = time.perf_counter()
                if look is not None:
                    look(_shim_pid(answer))
                # The answer to Shutdown may lose the race against the end of the shim.
                with contextlib.suppress(ConnectionError):
                    caller.call("Shutdown", container)
            _wait_gone(Path(path))
        finally:
            os.close(log)
        return Launch((started - began) * 1e3, (answered - began) * 1e3)

    def join(self, side: Side, pod: str = "") -> float:
        """Do a `start` that is answered with the socket of a daemon that runs already; return the milliseconds."""
        container, bundle = self._bundle(pod)
        log = os.open(bundle / "log", os.O_RDWR | os.O_NONBLOCK)
        try:
            began = time.perf_counter()
            self._call(side.shim, container, bundle, ["start"], _OPTIONS)
            return (time.perf_counter() - began) * 1e3
        finally:
            os.close(log)

    def delete(self, shim: Path) -> float:
        """Do the `delete` action for a container that never was, and return the milliseconds it took."""
        container, bundle = self._bundle()
        began = time.perf_counter()
        self._call(shim, container, bundle, ["-bundle", str(bundle), "delete"], b"")
        return (time.perf_counter() - began) * 1e3

    def _bundle(self, pod: str = "") -> tuple[str, Path]:
        self._serial += 1
        container = f"{self._name}{self._serial}"
        self._containerd.remember(container)
        bundle = self._containerd.folder / "bundles" / container
        (bundle / "rootfs").mkdir(parents=True)
        process = {"args": ["true"], "cwd": "/", "user": {"uid": 0, "gid": 0}}
        spec = {"ociVersion": "1.0.2", "process": process, "annotations": {POD: pod} if pod else {}}
        (bundle / "config.json").write_text(json.dumps(spec))
        (bundle / "options.json").write_text(json.dumps(_KEPT_OPTIONS))
        (bundle / "runtime").write_text("")
        os.mkfifo(bundle / "log", 0o700)
        return container, bundle

    def _call(self, shim: Path, container: str, bundle: Path, action: list[str], stdin: bytes) -> str:
        containerd = self._containerd
        command = [*self._prefix, str(shim), "-namespace", containerd.namespace, "-address", containerd.address]
        command += ["-publish-binary", str(containerd.release.containerd), "-id", container, *action]
        more = {"GRPC_ADDRESS": containerd.address, "NAMESPACE": containerd.namespace, "MAX_SHIM_VERSION": "2"}
        environment = {
            **with_opt(os.environ),
            "GOMAXPROCS": "2",
            "TMPDIR": str(containerd.tmp),
            "TTRPC_ADDRESS": f"{containerd.address}.ttrpc",
            **({} if containerd.release.key == "1.6" else more),
            **self._environment,
        }
        with subprocess.Popen(
            command,
            cwd=bundle,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            process_group=0,
        ) as process:
            output, _ = process.communicate(stdin, timeout=_TIMEOUT_S)
        if process.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}: {output!r}")
        return output.decode(errors="replace")


def _shim_pid(answer: bytes) -> int:
    """Return the first field, shim_pid, of the ConnectResponse in a response's second field (status is empty)."""
    payload = answer[answer.index(b"\x12") + 2 :]
    number, shift = 0, 0
    for byte in payload[1:]:
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
    return number


def _wait_gone(path: Path) -> None:
    deadline = time.monotonic() + _TIMEOUT_S
    while path.exists():
        if time.monotonic() > deadline:
            raise RuntimeError(f"the shim of {path} did not end after Shutdown")
        time.sleep(0.005)
