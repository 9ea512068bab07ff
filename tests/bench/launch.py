"""Starts a shim by hand, with the argv, environment and stdin of containerd 1.6, in a bundle made by hand.

The clock runs from before the spawn until `start` has exited, and until the first RPC is answered. The RPC is raw bytes
of ttrpc, so that no client library's time is in the figures.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shim.runtime.zygote_protocol import FOLDER_VARIABLE, SWITCH_VARIABLE
from shim.testing.containerd import Containerd

# A google.protobuf.Any with the type of the runc options and no value, which is what `ctr run` makes 1.6 send.
_OPTIONS: Final = b"\x0a\x1acontainerd.runc.v1.Options"
_RESPONSE: Final = 2
_TIMEOUT_S: Final = 20.0


@dataclass(frozen=True, slots=True)
class Launch:
    """What one launch took, in milliseconds."""

    start_ms: float
    answered_ms: float


class Launcher:
    """Launches shims against one containerd; every launch has a bundle and an id of its own."""

    def __init__(self, containerd: Containerd, service: str, zygotes: Path) -> None:
        self._containerd = containerd
        self._zygotes = zygotes
        self._service = service
        self._serial = 0

    def version(self, shim: Path) -> float:
        """Do `-v`, and return the milliseconds it took."""
        environment = {**os.environ, FOLDER_VARIABLE: str(self._zygotes), SWITCH_VARIABLE: "on"}
        began = time.perf_counter()
        subprocess.run([shim, "-v"], check=True, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        return (time.perf_counter() - began) * 1e3

    def end_zygotes(self) -> None:
        """End the zygotes that starts by hand have left."""
        shutil.rmtree(self._zygotes, ignore_errors=True)

    def launch(self, shim: Path, extra: Mapping[str, str] | None = None) -> Launch:
        """Do `start`, with `extra` in its environment, the first RPC, and a Shutdown after the clock has stopped."""
        container, bundle = self._bundle()
        log = os.open(bundle / "log", os.O_RDWR | os.O_NONBLOCK)
        try:
            began = time.perf_counter()
            answer = self._call(shim, container, bundle, ["start"], _OPTIONS, extra or {}).strip()
            started = time.perf_counter()
            # Go's shims of 2.x answer in JSON.
            path = (json.loads(answer)["address"] if answer.startswith("{") else answer).removeprefix("unix://")
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(_TIMEOUT_S)
                connection.connect(path)
                self._request(connection, 1, "Connect", container)
                answered = time.perf_counter()
                # The answer to Shutdown may lose the race against the end of the shim.
                with contextlib.suppress(ConnectionError):
                    self._request(connection, 3, "Shutdown", container)
            _wait_gone(Path(path))
        finally:
            os.close(log)
        return Launch((started - began) * 1e3, (answered - began) * 1e3)

    def delete(self, shim: Path) -> float:
        """Do the `delete` action for a container that never was, and return the milliseconds it took."""
        container, bundle = self._bundle()
        began = time.perf_counter()
        self._call(shim, container, bundle, ["-bundle", str(bundle), "delete"], b"", {})
        return (time.perf_counter() - began) * 1e3

    def _bundle(self) -> tuple[str, Path]:
        self._serial += 1
        container = f"launch{self._serial}"
        self._containerd.remember(container)
        bundle = self._containerd.folder / "bundles" / container
        (bundle / "rootfs").mkdir(parents=True)
        (bundle / "config.json").write_text(json.dumps({"ociVersion": "1.0.2", "process": {"args": ["true"]}}))
        (bundle / "options.json").write_text("{}")
        (bundle / "runtime").write_text("")
        os.mkfifo(bundle / "log", 0o700)
        return container, bundle

    def _call(
        self, shim: Path, container: str, bundle: Path, action: list[str], stdin: bytes, extra: Mapping[str, str]
    ) -> str:
        containerd = self._containerd
        command = [str(shim), "-namespace", containerd.namespace, "-address", containerd.address]
        command += ["-publish-binary", str(containerd.release.containerd), "-id", container, *action]
        environment = {
            **os.environ,
            "GOMAXPROCS": "2",
            "TMPDIR": str(containerd.tmp),
            "TTRPC_ADDRESS": f"{containerd.address}.ttrpc",
            FOLDER_VARIABLE: str(self._zygotes),
            SWITCH_VARIABLE: "on",
            **extra,
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

    def _request(self, connection: socket.socket, stream: int, method: str, container: str) -> None:
        payload = _field(1, container.encode())
        body = _field(1, self._service.encode()) + _field(2, method.encode()) + _field(3, payload)
        connection.sendall(struct.pack(">IIBB", len(body), stream, 1, 0) + body)
        length, got, kind, _ = struct.unpack(">IIBB", _receive(connection, 10))
        answer = _receive(connection, length)
        has_status = answer[:1] == b"\x0a" and answer[1] != 0
        if (got, kind) != (stream, _RESPONSE) or has_status:
            raise RuntimeError(f"{method} was answered with a frame of type {kind} for stream {got}: {answer!r}")


def _field(number: int, value: bytes) -> bytes:
    if len(value) > 127:
        raise ValueError("only short fields are encoded here")
    return bytes([number << 3 | 2, len(value)]) + value


def _receive(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        chunk = connection.recv(size - len(data))
        if not chunk:
            raise ConnectionError("the shim closed the connection")
        data += chunk
    return data


def _wait_gone(path: Path) -> None:
    deadline = time.monotonic() + _TIMEOUT_S
    while path.exists():
        if time.monotonic() > deadline:
            raise RuntimeError(f"the shim of {path} did not end after Shutdown")
        time.sleep(0.005)
