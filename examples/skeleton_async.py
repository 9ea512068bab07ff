"""The smallest shim, with coroutines: what skeleton.py does, on asyncio."""

import logging

import shim
from shim import aio
from shim.api import ConnectRequest, ConnectResponse, Empty, ShutdownRequest

log = logging.getLogger()


class Skeleton(aio.Shim, aio.Task):
    """Has no containers."""

    async def connect(self, context: shim.CallContext, request: ConnectRequest, /) -> ConnectResponse:
        """Say who serves."""
        log.info("Connect request")
        return ConnectResponse(version="example")

    async def shutdown(self, context: shim.CallContext, request: ShutdownRequest, /) -> Empty:
        """End the daemon, once this has been answered."""
        log.info("Shutdown request")
        self.exit.signal()
        return Empty()


if __name__ == "__main__":
    aio.run("io.containerd.skeleton-async.v1", Skeleton)
