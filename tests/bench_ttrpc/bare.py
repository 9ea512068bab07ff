"""A server without any protocol: as many bytes out as an answer has, for as many in as a request has.

With it the tables say what the kernel alone takes for an exchange on this machine.
"""

from __future__ import annotations

import select
import socket
from typing import Final

from shim.ttrpc._envelope import encode_request, encode_response
from shim.ttrpc._frame import REQUEST, RESPONSE, encode_frame
from tests.bench_ttrpc.loads import request_of, serve_until_told
from tests.bench_ttrpc.rpcs import ECHO

_SIZE: Final = 64
_MESSAGE: Final = request_of(_SIZE).SerializeToString()
_REQUEST_SIZE: Final = len(encode_frame(1, REQUEST, 0, encode_request(ECHO.service, ECHO.name, _MESSAGE)))
_ANSWER: Final = encode_frame(1, RESPONSE, 0, encode_response(_MESSAGE))


def serve(address: str, _variant: str) -> None:
    """Serve one connection after the other."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        serve_until_told()
        _serve(listener)


def _serve(listener: socket.socket) -> None:
    while True:
        connection, _ = listener.accept()
        with connection, select.epoll() as epoll:
            epoll.register(connection, select.EPOLLIN)
            begun = 0
            while True:
                epoll.poll()
                data = connection.recv(1 << 16)
                if not data:
                    break
                requests, begun = divmod(begun + len(data), _REQUEST_SIZE)
                connection.sendall(_ANSWER * requests)
