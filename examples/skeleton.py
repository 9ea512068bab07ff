"""The smallest shim: it answers Connect and Shutdown, and nothing else.

    touch log
    python examples/skeleton.py -namespace default -id 1234 -address /run/containerd/containerd.sock \
        -publish-binary containerd start

prints the address of a daemon; `python protos/examples/connect.py ADDRESS` talks to it, `cat log` shows what it did.
"""

import logging

import shim
from shim.api import ConnectRequest, ConnectResponse, Empty, ShutdownRequest

log = logging.getLogger()


class Skeleton(shim.Shim, shim.Task):
    """Has no containers."""

    def connect(self, context: shim.CallContext, request: ConnectRequest, /) -> ConnectResponse:
        """Say who serves."""
        log.info("Connect request")
        return ConnectResponse(version="example")

    def shutdown(self, context: shim.CallContext, request: ShutdownRequest, /) -> Empty:
        """End the daemon, once this has been answered."""
        log.info("Shutdown request")
        self.exit.signal()
        return Empty()


if __name__ == "__main__":
    shim.run("io.containerd.skeleton.v1", Skeleton)
