"""What connect.py does, with asyncio: `python connect_async.py ADDRESS [ID]`."""

import asyncio
import sys

from google.protobuf.message import Message
from google.protobuf.text_format import MessageToString

from shim import ttrpc
from shim.api.task_v2_pb2 import ConnectRequest, ShutdownRequest
from shim.api.task_v2_ttrpc import AsyncTaskClient
from shim.ttrpc import aio


async def fall_back(call: ttrpc.OutgoingCall, invoke: aio.Invoke) -> object:
    """Call task v3 where a shim serves no v2, as Go's own of containerd 2.x does not: the messages are the same."""
    try:
        return await invoke(call)
    except ttrpc.RpcError as error:
        if error.code != ttrpc.Code.UNIMPLEMENTED:
            raise
    rpc = call.rpc
    return await invoke(call._replace(rpc=ttrpc.Rpc("containerd.task.v3.Task", rpc.name, rpc.request, rpc.response)))


def as_line(message: Message) -> str:
    """Return the fields that are set."""
    return MessageToString(message, as_one_line=True) or '""'


async def main(address: str, container: str = "") -> None:
    """Make the two calls."""
    print(f"Connecting to {address}...")
    async with await aio.connect(address, timeout_s=10, interceptors=[fall_back]) as client:
        task = AsyncTaskClient(client)

        print("Sending `Connect` request...")
        connected = await task.connect(ConnectRequest(id=container), timeout_s=10)
        print(f"Connect response: {as_line(connected)}")

        print("Sending `Shutdown` request...")
        try:
            ended = await task.shutdown(ShutdownRequest(id="123", now=True), timeout_s=10)
            print(f"Shutdown response: {as_line(ended)}")
        except ttrpc.ConnectionClosedError:
            print("No response: the shim has ended")  # Go's at times ends before it has answered


if __name__ == "__main__":
    if not 2 <= len(sys.argv) <= 3:
        sys.exit(f"usage: {sys.argv[0]} ADDRESS [ID]")
    try:
        asyncio.run(main(*sys.argv[1:]))
    except (ValueError, OSError, ttrpc.TtrpcError) as error:
        sys.exit(f"{sys.argv[0]}: {error}")
