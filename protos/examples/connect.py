"""Asks a shim for its version and its pids, then to end, which it does when it has no container.

    python connect.py ADDRESS [ID]

ADDRESS is what `containerd-shim-NAME-v1 ... start` printed, or the "address" in it; ID a container whose pid is wanted
too.
"""

import sys

from google.protobuf.message import Message
from google.protobuf.text_format import MessageToString

from shim import ttrpc
from shim.api.task_v2_pb2 import ConnectRequest, ShutdownRequest
from shim.api.task_v2_ttrpc import TaskClient


def fall_back(call: ttrpc.OutgoingCall, invoke: ttrpc.Invoke) -> object:
    """Call task v3 where a shim serves no v2, as Go's own of containerd 2.x does not: the messages are the same."""
    try:
        return invoke(call)
    except ttrpc.RpcError as error:
        if error.code != ttrpc.Code.UNIMPLEMENTED:
            raise
    rpc = call.rpc
    return invoke(call._replace(rpc=ttrpc.Rpc("containerd.task.v3.Task", rpc.name, rpc.request, rpc.response)))


def as_line(message: Message) -> str:
    """Return the fields that are set."""
    return MessageToString(message, as_one_line=True) or '""'


def main(address: str, container: str = "") -> None:
    """Make the two calls."""
    print(f"Connecting to {address}...")
    with ttrpc.connect(address, timeout_s=10, interceptors=[fall_back]) as client:
        task = TaskClient(client)

        print("Sending `Connect` request...")
        connected = task.connect(ConnectRequest(id=container), timeout_s=10)
        print(f"Connect response: {as_line(connected)}")

        print("Sending `Shutdown` request...")
        try:
            ended = task.shutdown(ShutdownRequest(id="123", now=True), timeout_s=10)
            print(f"Shutdown response: {as_line(ended)}")
        except ttrpc.ConnectionClosedError:
            print("No response: the shim has ended")  # Go's at times ends before it has answered


if __name__ == "__main__":
    if not 2 <= len(sys.argv) <= 3:
        sys.exit(f"usage: {sys.argv[0]} ADDRESS [ID]")
    try:
        main(*sys.argv[1:])
    except (ValueError, OSError, ttrpc.TtrpcError) as error:
        sys.exit(f"{sys.argv[0]}: {error}")
