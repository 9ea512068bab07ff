"""The smallest shim, to run as a program: `python -m tests.runtime.tiny ARGUMENTS`.

It tells about its process, and fails where TINY_FAIL says.  Legacy starts bind below TINY_SOCKETS.  After a sandbox's
shutdown it waits TINY_PATIENCE seconds for its clients to hang up, if that is set.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from shim.errors import EngineError
from shim.runtime import address
from shim.runtime.main import run
from shim.runtime.shim import Deleted, Shim
from shim.runtime.start import StartOpts

if TYPE_CHECKING:
    from shim.runtime.serve import Daemon
    from shim.ttrpc import CallContext, Service


class Tiny(Shim):
    """Serves test.v1.Tiny: Tell, and Stop."""

    def group(self, opts: StartOpts) -> str:
        """Groups by the environment."""
        return os.environ.get("TINY_GROUP", opts.id)

    def preload(self) -> None:
        """Fails if told to."""
        if os.environ.get("TINY_FAIL") == "preload":
            raise EngineError("cannot load\nthis")

    def services(self, daemon: Daemon) -> Sequence[Service]:
        """Return the one service."""
        from google.protobuf.empty_pb2 import Empty
        from google.protobuf.wrappers_pb2 import StringValue

        from shim.ttrpc import Method, Service

        def tell(context: CallContext, request: Empty) -> StringValue:
            descriptors = {int(fd): os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")[:-1]}
            facts = {
                "pid": os.getpid(),
                "group": os.getpgid(0),
                "descriptors": descriptors,
                "environment": dict(os.environ),
                "arguments": open("/proc/self/cmdline").read().split("\0")[:-1],
                "debug": daemon.flags.debug,
            }
            return StringValue(value=json.dumps(facts))

        def stop(context: CallContext, request: Empty) -> Empty:
            daemon.request_shutdown()
            daemon.request_shutdown()
            return Empty()

        def fail(context: CallContext, request: Empty) -> Empty:
            raise ZeroDivisionError("a bug")

        daemon.on_shutdown(lambda: daemon.logger.info(str(1 / 0)))
        daemon.on_shutdown(lambda: daemon.logger.info("last words"))
        methods = [
            Method("Tell", Empty, StringValue, tell),
            Method("Stop", Empty, Empty, stop, is_inline=True),
            Method("Fail", Empty, Empty, fail),
        ]
        sandbox = Method("ShutdownSandbox", Empty, Empty, stop)
        return [
            Service("test.v1.Tiny", {method.name: method for method in methods}),
            Service("containerd.runtime.sandbox.v1.Sandbox", {sandbox.name: sandbox}),
        ]

    def delete_shim(self) -> Deleted:
        """Fails if told to."""
        failure = os.environ.get("TINY_FAIL")
        if failure == "delete":
            raise EngineError("two\nlines")
        if failure == "open":
            open("/nonexistent/file")
        return Deleted(7)


if __name__ == "__main__":
    setattr(address, "SOCKET_DIR", os.environ.get("TINY_SOCKETS"))  # noqa: B010  (Final for all but this test)
    if "TINY_PATIENCE" in os.environ:
        from shim.runtime import serve

        setattr(serve, "_HANG_UP_S", float(os.environ["TINY_PATIENCE"]))  # noqa: B010  (likewise)
    run("io.containerd.tiny.v1", Tiny)
