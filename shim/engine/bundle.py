"""The bundle folder: what containerd and the shim leave there for each other.

Rule: enough stands here for `delete` to clean up after a dead daemon; file names and modes are those of Go's shim.
Spec: contract 7.5.  JSON is loaded when there is some to read or write: `delete` hardly ever has, and is waited for.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from shim.errors import BundleError

# The first of these annotations that is present names the group whose daemon serves the container.
GROUP_ANNOTATIONS = ("io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id")

_MAX_DIGITS = 9


class Bundle(NamedTuple):
    """One bundle, by its absolute path."""

    path: str

    def file(self, name: str) -> str:
        """Return the path of a file in the bundle."""
        return os.path.join(self.path, name)

    @property
    def rootfs(self) -> str:
        """Where the container's root file system is mounted."""
        return self.file("rootfs")

    def make_rootfs(self) -> None:
        """Make that folder, if containerd has not, so that a user namespace's root may pass whatever the umask.

        Raises:
            BundleError: It cannot be made.
        """
        try:
            os.mkdir(self.rootfs)
            os.chmod(self.rootfs, 0o711)  # noqa: S103  (containerd's own mode for it)
        except FileExistsError:
            return  # the mount will tell if it is no folder
        except OSError as error:
            raise BundleError(f"mkdir {self.rootfs}: {error.strerror}") from None

    def read_spec(self) -> dict[str, object]:
        """Return config.json.

        Raises:
            BundleError: It cannot be read or is no JSON object; the text names the file.
        """
        import json

        path = self.file("config.json")
        try:
            with open(path, "rb") as file:
                spec = json.loads(file.read().decode())  # else json guesses: a NUL means UTF-16
        except OSError as error:
            raise BundleError(f"open {path}: {error.strerror}") from None
        except ValueError as error:
            raise BundleError(f"parse {path}: {error}") from None
        if not isinstance(spec, dict):
            raise BundleError(f"parse {path}: not a JSON object")
        return spec

    def write_spec(self, spec: Mapping[str, object]) -> None:
        """Write config.json anew.

        Raises:
            BundleError: It cannot be written.
        """
        import json

        self._write("config.json", json.dumps(spec))

    def group(self, container_id: str) -> str:
        """Return the group of the container: its pod, or itself.

        Raises:
            BundleError: config.json cannot be read.
        """
        annotations = self.read_spec().get("annotations")
        if isinstance(annotations, dict):
            for name in GROUP_ANNOTATIONS:
                if name in annotations:
                    return str(annotations[name])
        return container_id

    def has_own_pid_namespace(self) -> bool:
        """Say whether the kernel kills the container's other processes with its init; False when in doubt."""
        try:
            linux = self.read_spec().get("linux")
        except BundleError:
            return False
        namespaces = linux.get("namespaces") if isinstance(linux, dict) else None
        for namespace in namespaces if isinstance(namespaces, list) else ():
            if isinstance(namespace, dict) and namespace.get("type") == "pid":
                return not namespace.get("path")
        return False

    def write_options(self, options: Mapping[str, object], binary_name: str) -> None:
        """Leave the runtime's options for `delete`: `options.json` and `runtime`, mode 0600."""
        import json

        self._write("options.json", json.dumps(options, separators=(",", ":")))
        self._write("runtime", binary_name)

    def _write(self, name: str, text: str) -> None:
        path = self.file(name)
        try:
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w") as file:
                file.write(text)
        except OSError as error:
            raise BundleError(f"write {path}: {error.strerror}") from None

    def read_options(self) -> dict[str, object] | None:
        """Return what `write_options` left; None when there is nothing: no Create has come; empty if it is garbled."""
        try:
            with open(self.file("options.json"), "rb") as file:
                text = file.read()
        except OSError:
            return None
        import json

        try:
            options = json.loads(text.decode())
        except ValueError:
            return {}
        return options if isinstance(options, dict) else {}

    def read_runtime(self) -> str:
        """Return the name of the OCI runtime that `write_options` left, or ''."""
        try:
            with open(self.file("runtime"), "rb") as file:
                return os.fsdecode(file.read().strip())
        except OSError:
            return ""

    def write_containers(self, containers: Mapping[str, tuple[str, str]]) -> None:
        """Leave for `delete` of a sandbox how its containers are removed: by which binary, with which root."""
        import json

        self._write("containers.json", json.dumps(containers, separators=(",", ":")))

    def read_containers(self) -> dict[str, tuple[str, str]]:
        """Return what `write_containers` left; empty when there is nothing, or it is garbled."""
        try:
            with open(self.file("containers.json"), "rb") as file:
                text = file.read()
        except OSError:
            return {}
        import json

        try:
            return {str(name): (str(binary), str(root)) for name, (binary, root) in json.loads(text).items()}
        except (ValueError, TypeError, AttributeError):
            return {}

    def read_pid(self, name: str = "init.pid") -> int:
        """Return the pid in a pid file of the OCI runtime.

        Raises:
            BundleError: The file cannot be read or holds no pid.
        """
        path = self.file(name)
        try:
            with open(path, "rb") as file:
                text = file.read().strip()
        except OSError as error:
            raise BundleError(f"failed to retrieve OCI runtime container pid: open {path}: {error.strerror}") from None
        if not text.isdigit() or len(text) > _MAX_DIGITS or int(text) < 1:
            held = os.fsdecode(text[:40])
            raise BundleError(f"failed to retrieve OCI runtime container pid: {path} holds {held!r}")
        return int(text)
