"""Serves a task service that makes no containers, until its Shutdown is called or a signal comes.

    python ttrpc_server.py ADDRESS

Try it with ttrpc_client.py and connect.py.
"""

import signal
import sys
import threading

from google.protobuf.empty_pb2 import Empty

from shim import ttrpc
from shim.api.task_v2_pb2 import (
    ConnectRequest,
    ConnectResponse,
    CreateTaskRequest,
    CreateTaskResponse,
    ShutdownRequest,
)
from shim.api.task_v2_ttrpc import TaskService, task_service

PID = 0x10C0


class Task(TaskService):
    """Answers Create, Connect and Shutdown; what it leaves out answers UNIMPLEMENTED."""

    def __init__(self) -> None:
        self.ended = threading.Event()

    def create(self, context: ttrpc.CallContext, request: CreateTaskRequest) -> CreateTaskResponse:
        """Take only a request with the client's metadata."""
        if context.values("key-1") != ["value-1-1", "value-1-2"] or context.values("key-2") != ["value-2"]:
            raise ttrpc.RpcError(ttrpc.Code.INVALID_ARGUMENT, f"odd metadata {list(context.metadata)}")
        return CreateTaskResponse(pid=PID)

    def connect(self, context: ttrpc.CallContext, request: ConnectRequest) -> ConnectResponse:
        """Tell the version."""
        return ConnectResponse(version="example")

    def shutdown(self, context: ttrpc.CallContext, request: ShutdownRequest) -> Empty:
        """Let the main thread end the server, which answers this call first."""
        self.ended.set()
        return Empty()


def log(context: ttrpc.CallContext, request: object, handler: ttrpc.Handler) -> object:
    """Say what is asked for."""
    print(f"{context.method.rpartition('/')[2]} request", flush=True)
    return handler(context, request)


def main(address: str) -> None:
    """Serve."""
    task = Task()
    with ttrpc.Server([task_service(task)], interceptors=[log]) as server:
        server.listen(address)
        print(f"Serving on {address}", flush=True)
        task.ended.wait()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} ADDRESS")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit())  # leaves the `with` above, which ends the server in order
    try:
        main(sys.argv[1])
    except (ValueError, OSError) as error:
        sys.exit(f"{sys.argv[0]}: {error}")
