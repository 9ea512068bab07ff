"""What ttrpc_client.py does, with asyncio: `python ttrpc_client_async.py ADDRESS`."""

import asyncio
import sys

from shim import ttrpc
from shim.api.task_v2_pb2 import CreateTaskRequest
from shim.api.task_v2_ttrpc import AsyncTaskClient
from shim.ttrpc import aio

METADATA = [("key-1", "value-1-1"), ("key-1", "value-1-2"), ("key-2", "value-2")]


async def main(address: str) -> None:
    """Make the call."""
    async with await aio.connect(address, timeout_s=10) as client:
        print("Sending `Create` request...")
        response = await AsyncTaskClient(client).create(CreateTaskRequest(id="id1"), timeout_s=10, metadata=METADATA)
        print(f"Create response: pid: {response.pid}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} ADDRESS")
    try:
        asyncio.run(main(sys.argv[1]))
    except (ValueError, OSError, ttrpc.TtrpcError) as error:
        sys.exit(f"{sys.argv[0]}: {error}")
