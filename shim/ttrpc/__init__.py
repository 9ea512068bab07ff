"""ttrpc for Python: containerd's small RPC protocol over stream sockets.

A library of its own: it needs the standard library and protobuf, and imports nothing else of this project.
Names are re-exported on first use (PEP 562), so that importing one part does not load the others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shim.ttrpc.server import Server
    from shim.ttrpc.service import CallContext, Deferred, Method, Service
    from shim.ttrpc.status import Code, ConnectionClosedError, LocalProtocolError, RemoteProtocolError, RpcError
    from shim.ttrpc.sync import Client, connect

__all__ = [
    "CallContext",
    "Client",
    "Code",
    "ConnectionClosedError",
    "Deferred",
    "LocalProtocolError",
    "Method",
    "RemoteProtocolError",
    "RpcError",
    "Server",
    "Service",
    "connect",
]

_HOMES = {
    "CallContext": "service",
    "Client": "sync",
    "Code": "status",
    "ConnectionClosedError": "status",
    "Deferred": "service",
    "LocalProtocolError": "status",
    "Method": "service",
    "RemoteProtocolError": "status",
    "RpcError": "status",
    "Server": "server",
    "Service": "service",
    "connect": "sync",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value
