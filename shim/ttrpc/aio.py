"""ttrpc for asyncio: `await connect(address)`, `Client`, `Server`, and the streams of both.

Rule: re-exports only.  Objects belong to the loop that was running when they were made.
"""

from shim.ttrpc.aio_client import Client, ClientStream, Interceptor, Invoke, connect
from shim.ttrpc.aio_server import Server, ServerStream

__all__ = ["Client", "ClientStream", "Interceptor", "Invoke", "Server", "ServerStream", "connect"]
