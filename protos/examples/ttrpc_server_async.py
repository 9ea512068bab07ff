"""What ttrpc_server.py does, with asyncio: `python ttrpc_server_async.py ADDRESS`."""

import asyncio
import signal
import sys

from google.protobuf.empty_pb2 import Empty

from shim import ttrpc
from shim.api.task_v2_pb2 import (
    ConnectRequest,
    ConnectResponse,
    CreateTaskRequest,
    CreateTaskResponse,
    ShutdownRequest,
)
from shim.api.task_v2_ttrpc import AsyncTaskService, task_service
from shim.ttrpc import aio

PID = 0x10C0


class Task(AsyncTaskService):
    """Answers Create, Connect and Shutdown; what it leaves out answers UNIMPLEMENTED."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()

    async def create(self, context: ttrpc.CallContext, request: CreateTaskRequest) -> CreateTaskResponse:
        """Take only a request with the client's metadata."""
        if context.values("key-1") != ["value-1-1", "value-1-2"] or context.values("key-2") != ["value-2"]:
            raise ttrpc.RpcError(ttrpc.Code.INVALID_ARGUMENT, f"odd metadata {list(context.metadata)}")
        return CreateTaskResponse(pid=PID)

    async def connect(self, context: ttrpc.CallContext, request: ConnectRequest) -> ConnectResponse:
        """Tell the version."""
        return ConnectResponse(version="example")

    async def shutdown(self, context: ttrpc.CallContext, request: ShutdownRequest) -> Empty:
        """Let `main` end the server, which answers this call first."""
        self.ended.set()
        return Empty()


def log(context: ttrpc.CallContext, request: object, handler: ttrpc.Handler) -> object:
    """Say what is asked for."""
    print(f"{context.method.rpartition('/')[2]} request", flush=True)
    return handler(context, request)


async def main(address: str) -> None:
    """Serve."""
    task = Task()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.ended.set)
    async with aio.Server([task_service(task)], interceptors=[log]) as server:
        server.listen(address)
        print(f"Serving on {address}", flush=True)
        await task.ended.wait()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} ADDRESS")
    try:
        asyncio.run(main(sys.argv[1]))
    except (ValueError, OSError) as error:
        sys.exit(f"{sys.argv[0]}: {error}")
