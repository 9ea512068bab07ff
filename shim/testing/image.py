"""An OCI image made from the host's static busybox, without a network.

`write_image(path)` writes an OCI layout as a tar file that `ctr images import` accepts in every containerd release.
The bytes depend only on the busybox binary and the arguments. Spec: opencontainers/image-spec, "Image Layout".
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import shutil
import struct
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Final

IMAGE: Final = "docker.io/library/busybox:latest"

_CREATED: Final = "1970-01-01T00:00:00Z"
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_ARCHITECTURES: Final = {
    "x86_64": "amd64",
    "aarch64": "arm64",
    "riscv64": "riscv64",
    "ppc64le": "ppc64le",
    "s390x": "s390x",
}
_PT_INTERP: Final = 3

_FOLDERS: Final = {
    "bin": 0o755,
    "dev": 0o755,
    "etc": 0o755,
    "home": 0o755,
    "proc": 0o555,
    "root": 0o700,
    "run": 0o755,
    "sbin": 0o755,
    "sys": 0o555,
    "tmp": 0o1777,
    "usr": 0o755,
    "usr/bin": 0o755,
    "usr/sbin": 0o755,
    "var": 0o755,
    "var/tmp": 0o1777,
}
_FILES: Final = {
    "etc/passwd": b"root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/home:/bin/sh\n"
    b"nobody:x:65534:65534:nobody:/:/bin/false\n",
    "etc/group": b"root:x:0:\nuser:x:1000:\nnogroup:x:65534:\n",
    "etc/hosts": b"127.0.0.1 localhost\n",
}


class ImageError(Exception):
    """The image cannot be made on this machine."""


def write_image(
    path: Path,
    *,
    name: str = IMAGE,
    command: Sequence[str] = ("sh",),
    files: Mapping[str, bytes] | None = None,
    busybox: Path | None = None,
) -> Path:
    """Write the image `name` to the tar file `path` and return the path.

    `files` adds executable files (mode 0755) by their path inside the image.

    Raises:
        ImageError: there is no static busybox, or the machine's architecture is unknown.
    """
    architecture = _ARCHITECTURES.get(platform.machine())
    if architecture is None:
        raise ImageError(f"no image architecture is known for machine {platform.machine()}")
    layer = _layer(busybox or find_busybox(), files or {})
    config = {
        "architecture": architecture,
        "config": {"Cmd": list(command), "Env": [f"PATH={_PATH}"], "WorkingDir": "/"},
        "created": _CREATED,
        "history": [{"created": _CREATED, "created_by": "static busybox"}],
        "os": "linux",
        "rootfs": {"diff_ids": [_digest(layer)], "type": "layers"},
    }
    config_blob = _json(config)
    manifest = {
        "config": _descriptor("application/vnd.oci.image.config.v1+json", config_blob),
        "layers": [_descriptor("application/vnd.oci.image.layer.v1.tar", layer)],
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "schemaVersion": 2,
    }
    manifest_blob = _json(manifest)
    entry = _descriptor("application/vnd.oci.image.manifest.v1+json", manifest_blob) | {
        "annotations": {
            "io.containerd.image.name": name,
            "org.opencontainers.image.ref.name": name.rpartition(":")[2],
        },
        "platform": {"architecture": architecture, "os": "linux"},
    }
    index = {"manifests": [entry], "mediaType": "application/vnd.oci.image.index.v1+json", "schemaVersion": 2}
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        _add_file(tar, "oci-layout", _json({"imageLayoutVersion": "1.0.0"}), 0o644)
        _add_file(tar, "index.json", _json(index), 0o644)
        for blob in (manifest_blob, config_blob, layer):
            _add_file(tar, f"blobs/sha256/{_digest(blob).removeprefix('sha256:')}", blob, 0o644)
    return path


def find_busybox() -> Path:
    """Return the path of the host's static busybox.

    Raises:
        ImageError: busybox is missing, or is linked dynamically and would not run in an empty root.
    """
    places = [
        Path(found).resolve() for found in (shutil.which("busybox"), shutil.which("busybox", path="/bin")) if found
    ]
    for path in places:
        if _is_static(path):
            return path
    complaint = f"{places[0]} is linked dynamically" if places else "there is no busybox"
    raise ImageError(f"{complaint}: install the Debian package busybox-static")


def _layer(busybox: Path, files: Mapping[str, bytes]) -> bytes:
    listed = subprocess.run([busybox, "--list-full"], check=True, capture_output=True, text=True).stdout.split()
    applets = sorted({applet for applet in listed if str(PurePosixPath(applet).parent) in _FOLDERS})
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for folder, mode in _FOLDERS.items():
            tar.addfile(_entry(f"{folder}/", mode, tarfile.DIRTYPE))
        _add_file(tar, "bin/busybox", busybox.read_bytes(), 0o755)
        for applet in applets:
            if applet != "bin/busybox":
                link = _entry(applet, 0o777, tarfile.SYMTYPE)
                link.linkname = "../" * (len(PurePosixPath(applet).parts) - 1) + "bin/busybox"
                tar.addfile(link)
        for file, content in _FILES.items():
            _add_file(tar, file, content, 0o644)
        for file, content in sorted(files.items()):
            _add_file(tar, file.lstrip("/"), content, 0o755)
    return buffer.getvalue()


def _entry(name: str, mode: int, kind: bytes) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type = kind
    entry.mode = mode
    entry.uname = entry.gname = "root"
    return entry


def _add_file(tar: tarfile.TarFile, name: str, content: bytes, mode: int) -> None:
    entry = _entry(name, mode, tarfile.REGTYPE)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _digest(blob: bytes) -> str:
    return f"sha256:{hashlib.sha256(blob).hexdigest()}"


def _descriptor(media_type: str, blob: bytes) -> dict[str, object]:
    return {"digest": _digest(blob), "mediaType": media_type, "size": len(blob)}


def _is_static(path: Path) -> bool:
    """Say whether the 64-bit ELF file at `path` asks for no dynamic loader."""
    content = path.read_bytes()
    if content[:5] != b"\x7fELF\x02":
        return False
    order = "<" if content[5] == 1 else ">"
    (offset,) = struct.unpack_from(f"{order}Q", content, 32)
    size, count = struct.unpack_from(f"{order}HH", content, 54)
    kinds = (struct.unpack_from(f"{order}I", content, offset + number * size)[0] for number in range(count))
    return _PT_INTERP not in kinds
