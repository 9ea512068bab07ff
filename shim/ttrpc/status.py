"""Status codes and errors of ttrpc.

Rule: an error knows its code; which exception becomes which code is decided in `status_of`, nowhere else.
Codes are gRPC's. The mapping of built-in exceptions is that of containerd/ttrpc's server (server.go).
"""

from __future__ import annotations

from enum import IntEnum


class Code(IntEnum):
    """A gRPC status code, as `google.rpc.Status.code` carries it."""

    OK = 0
    CANCELED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class TtrpcError(Exception):
    """Root of what this library raises."""


class RpcError(TtrpcError):
    """A call ended with a status other than OK.

    `code` is a `Code`, or a plain int for a number outside the known ones; `method` is `service/Method` where known;
    `details` holds (type URL, value) of each `google.protobuf.Any` in the status.
    """

    def __init__(self, code: int, message: str, method: str = "", details: tuple[tuple[str, bytes], ...] = ()) -> None:
        super().__init__(code, message, method)
        self.code: int = Code(code) if code in _KNOWN else code
        self.message = message
        self.method = method
        self.details = details

    def __str__(self) -> str:
        name = self.code.name if isinstance(self.code, Code) else str(self.code)
        return f"{self.method}: {name}: {self.message}" if self.method else f"{name}: {self.message}"


class RemoteProtocolError(RpcError):
    """The peer broke the protocol in one call; the connection goes on."""

    def __init__(self, message: str, method: str = "") -> None:
        super().__init__(Code.INTERNAL, message, method)

    def __reduce__(self) -> tuple[type[RemoteProtocolError], tuple[str, str]]:
        return type(self), (self.message, self.method)  # the default would pass the root's three arguments


class ConnectionClosedError(TtrpcError):
    """The connection is closed; calls in flight have no answer."""

    code = Code.UNAVAILABLE


class LocalProtocolError(TtrpcError):
    """This side asked for something the protocol does not allow; nothing was sent."""


_KNOWN = frozenset(int(code) for code in Code)

# First match wins, so subclasses stand before their bases.
_BUILTIN: tuple[tuple[type[BaseException], Code], ...] = (
    (FileExistsError, Code.ALREADY_EXISTS),
    (FileNotFoundError, Code.NOT_FOUND),
    (PermissionError, Code.PERMISSION_DENIED),
    (TimeoutError, Code.DEADLINE_EXCEEDED),
    (BrokenPipeError, Code.FAILED_PRECONDITION),
    (EOFError, Code.OUT_OF_RANGE),
)


def status_of(error: BaseException) -> tuple[int, str]:
    """Return the (code, message) to answer for an exception that a handler raised.

    An exception with an integer attribute `code` keeps it; built-in ones map as Go's server maps their counterparts;
    everything else is UNKNOWN.  The message never carries a traceback.
    """
    if isinstance(error, RpcError):
        return error.code or Code.UNKNOWN, error.message  # a call that failed may not look like one that did not
    try:
        message = str(error) or type(error).__name__
    except Exception:  # an error that cannot even say what it is
        message = type(error).__name__
    code = getattr(error, "code", None) if isinstance(error, Exception) else None  # SystemExit's is an exit status
    if isinstance(code, int) and code != Code.OK:
        return code, message
    for kind, mapped in _BUILTIN:
        if isinstance(error, kind):
            return mapped, message
    return Code.UNKNOWN, message
