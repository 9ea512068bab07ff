"""Which exception becomes which status."""

import copy
import pickle
from typing import Any

import pytest

from shim import errors
from shim.errors import ShimError
from shim.ttrpc.status import (
    Code,
    ConnectionClosedError,
    LocalProtocolError,
    RemoteProtocolError,
    RpcError,
    TtrpcError,
    status_of,
)


class Odd(Exception):
    """Has a `code` that is none."""

    code = "E4711"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RpcError(Code.NOT_FOUND, "no such thing", "a.B/C"), (5, "no such thing")),
        (RpcError(99, "odd"), (99, "odd")),
        (RpcError(Code.OK, "odd"), (2, "odd")),
        (RemoteProtocolError("malformed"), (13, "malformed")),
        (LocalProtocolError("no"), (2, "no")),
        (FileExistsError(17, "File exists"), (6, "[Errno 17] File exists")),
        (FileNotFoundError(2, "No such file", "/x"), (5, "[Errno 2] No such file: '/x'")),
        (PermissionError("no"), (7, "no")),
        (TimeoutError(), (4, "TimeoutError")),
        (BrokenPipeError("x"), (9, "x")),
        (EOFError("x"), (11, "x")),
        (OSError(5, "i/o"), (2, "[Errno 5] i/o")),
        (ValueError("text"), (2, "text")),
        (KeyError(), (2, "KeyError")),
        (ConnectionClosedError("ttrpc: closed"), (14, "ttrpc: closed")),
        (errors.AlreadyExistsError("id e1"), (6, "id e1: already exists")),
        (errors.ContainerNotFoundError("c1"), (5, "container not created: not found")),
        (errors.ExecNotFoundError("e1"), (5, "process does not exist e1: not found")),
        (Odd("x"), (2, "x")),
        (SystemExit(3), (2, "3")),
        (SystemExit(0), (2, "0")),
        (SystemExit(), (2, "SystemExit")),
        (KeyboardInterrupt(), (2, "KeyboardInterrupt")),
    ],
    ids=repr,
)
def test_status_of_an_exception(error: BaseException, expected: tuple[int, str]) -> None:
    """Its own code if it has one, else what Go's server makes of its like; an exit status is no such code."""
    assert expected == status_of(error)


def test_every_shim_error_has_a_code() -> None:
    """Which the oldest containerd understands: others become UNKNOWN there."""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, ShimError)]
    understood = {Code[name] for name in "UNKNOWN INVALID_ARGUMENT NOT_FOUND ALREADY_EXISTS".split()} | {
        Code[name] for name in "FAILED_PRECONDITION UNAVAILABLE UNIMPLEMENTED DEADLINE_EXCEEDED".split()
    }

    assert len(kinds) > 15
    assert [] == [kind for kind in kinds if kind.code not in understood]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RpcError(5, "gone", "a.B/C"), "a.B/C: NOT_FOUND: gone"),
        (RpcError(5, "gone"), "NOT_FOUND: gone"),
        (RpcError(77, "odd"), "77: odd"),
    ],
)
def test_rpc_error_reads_as_one_line(error: RpcError, expected: str) -> None:
    """Method, code and message."""
    assert expected == str(error)


def test_rpc_error_has_a_code_by_name_where_there_is_one() -> None:
    """Plain numbers otherwise."""
    codes: list[Any] = [RpcError(5, "").code, RpcError(77, "").code]

    assert [Code.NOT_FOUND, 77] == codes
    assert [True, False] == [isinstance(code, Code) for code in codes]


@pytest.mark.parametrize(
    "error",
    [
        RpcError(5, "gone", "a.B/C", (("t", b"v"),)),
        RpcError(77, "odd"),
        RemoteProtocolError("malformed", "a.B/C"),
        ConnectionClosedError("ttrpc: closed"),
        LocalProtocolError("no"),
    ],
    ids=repr,
)
def test_errors_can_be_copied_and_pickled(error: TtrpcError) -> None:
    """So that they cross processes as others do."""
    copies = [copy.copy(error), pickle.loads(pickle.dumps(error))]  # noqa: S301 - our own bytes

    for each in copies:
        assert type(error) is type(each)
        assert (str(error), vars(error)) == (str(each), vars(each))
