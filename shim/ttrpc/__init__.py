"""ttrpc for Python: containerd's small RPC protocol over stream sockets.

A library of its own: it needs the standard library and protobuf, and imports nothing else of this project.
Names are re-exported on first use (PEP 562), so that importing one part does not load the others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shim.ttrpc._streams import Kind
    from shim.ttrpc.calls import ServerStream
    from shim.ttrpc.context import CallContext, Credentials, Deferred
    from shim.ttrpc.loop_server import Limits
    from shim.ttrpc.mux import Mux
    from shim.ttrpc.rpc import Metadata, OutgoingCall, Rpc
    from shim.ttrpc.server import Server
    from shim.ttrpc.service import Handler, Method, Service
    from shim.ttrpc.status import (
        Code,
        ConnectionClosedError,
        LocalProtocolError,
        RemoteProtocolError,
        RpcError,
        TtrpcError,
    )
    from shim.ttrpc.sync import Cancellation, Client, ClientStream, Invoke, connect

__all__ = [
    "CallContext",
    "Cancellation",
    "Client",
    "ClientStream",
    "Code",
    "ConnectionClosedError",
    "Credentials",
    "Deferred",
    "Handler",
    "Invoke",
    "Kind",
    "Limits",
    "LocalProtocolError",
    "Metadata",
    "Method",
    "Mux",
    "OutgoingCall",
    "RemoteProtocolError",
    "Rpc",
    "RpcError",
    "Server",
    "ServerStream",
    "Service",
    "TtrpcError",
    "connect",
]

_HOMES = {
    "CallContext": "context",
    "Cancellation": "sync",
    "Client": "sync",
    "ClientStream": "sync",
    "Code": "status",
    "ConnectionClosedError": "status",
    "Credentials": "context",
    "Deferred": "context",
    "Handler": "service",
    "Invoke": "sync",
    "Kind": "_streams",
    "Limits": "loop_server",
    "LocalProtocolError": "status",
    "Metadata": "rpc",
    "Method": "service",
    "Mux": "mux",
    "OutgoingCall": "rpc",
    "RemoteProtocolError": "status",
    "Rpc": "rpc",
    "RpcError": "status",
    "Server": "server",
    "ServerStream": "calls",
    "Service": "service",
    "TtrpcError": "status",
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
