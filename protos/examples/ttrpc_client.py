"""Calls Create of a task service, with a deadline and with metadata: `python ttrpc_client.py ADDRESS`.

ttrpc_server.py answers it; a real shim would want a bundle.
"""

import sys

from shim import ttrpc
from shim.api.task_v2_pb2 import CreateTaskRequest
from shim.api.task_v2_ttrpc import TaskClient

METADATA = [("key-1", "value-1-1"), ("key-1", "value-1-2"), ("key-2", "value-2")]


def main(address: str) -> None:
    """Make the call."""
    with ttrpc.connect(address, timeout_s=10) as client:
        print("Sending `Create` request...")
        response = TaskClient(client).create(CreateTaskRequest(id="id1"), timeout_s=10, metadata=METADATA)
        print(f"Create response: pid: {response.pid}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} ADDRESS")
    try:
        main(sys.argv[1])
    except (ValueError, OSError, ttrpc.TtrpcError) as error:
        sys.exit(f"{sys.argv[0]}: {error}")
