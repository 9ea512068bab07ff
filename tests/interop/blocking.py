"""The cases of the blocking client."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from google.protobuf.empty_pb2 import Empty

from shim import ttrpc
from shim.ttrpc import Client, ClientStream, Code
from tests.interop import conformance as c
from tests.interop.outcome import Outcome, describe
from tests.protos.conformance_pb2 import Failure, Nap, Part, Payload, Size, Total


def attempt(address: str, name: str) -> Outcome:
    """Run one case."""
    outcome = Outcome(name)
    try:
        with ttrpc.connect(address, timeout_s=10) as client:
            try:
                getattr(Cases(client, outcome), name)()
            except Exception as error:
                outcome.fail(error)
            outcome.alive = client.call(c.ECHO, c.payload(7), timeout_s=10).seq == 8
    except Exception as error:
        if not outcome.code:
            outcome.fail(error)
    return outcome


class Cases:
    """What a client does, case by case."""

    def __init__(self, client: Client, outcome: Outcome) -> None:
        self._client = client
        self._outcome = outcome

    def echo_empty(self) -> None:
        self._echo(c.payload(0))

    def echo_64(self) -> None:
        self._echo(c.payload(1, 64))

    def echo_1m(self) -> None:
        self._echo(c.payload(1, 1 << 20))

    def echo_max(self) -> None:
        self._echo(c.payload(1, c.REQUEST_MAX))

    def request_too_large(self) -> None:
        self._echo(c.payload(1, c.REQUEST_MAX + 1))

    def _echo(self, request: Payload, timeout_s: float | None = None) -> None:
        self._outcome.count_sent(request)
        answer = self._outcome.count_received(self._client.call(c.ECHO, request, timeout_s=timeout_s))
        self._outcome.expect_echo(request, answer)

    def echo_stream(self) -> None:
        self._ping_pong([c.payload(i, i) for i in range(50)])

    def echo_stream_max(self) -> None:
        self._ping_pong([c.payload(1, c.MESSAGE_MAX)])

    def _ping_pong(self, requests: Iterable[Payload]) -> None:
        with self._client.open(c.ECHO_STREAM) as stream:
            for request in requests:
                self._ping(stream, request)
            self._end(stream)

    def _ping(self, stream: ClientStream[Payload, Payload], request: Payload) -> None:
        stream.send(request)
        self._outcome.count_sent(request)
        self._outcome.expect_echo(request, self._outcome.count_received(stream.recv()))

    def _end(self, stream: ClientStream[Payload, Payload]) -> None:
        stream.close_send()
        self._outcome.expect_end(stream.recv())

    def echo_stream_unread(self) -> None:
        """Send all before the first answer is read."""
        requests = [c.payload(i, 1000) for i in range(60)]
        with self._client.open(c.ECHO_STREAM) as stream:
            for request in requests:
                stream.send(self._outcome.count_sent(request))
            stream.close_send()
            self._read_echo(stream, requests)

    def echo_stream_bulk(self) -> None:
        """Send and read 16 MiB at the same time."""
        requests = [c.payload(i, 256 << 10) for i in range(64)]
        with self._client.open(c.ECHO_STREAM) as stream, ThreadPoolExecutor(1) as thread:

            def send() -> None:
                for request in requests:
                    stream.send(self._outcome.count_sent(request))
                stream.close_send()

            sending = thread.submit(send)
            self._read_echo(stream, requests)
            sending.result()

    def _read_echo(self, stream: ClientStream[Payload, Payload], requests: Iterable[Payload]) -> None:
        for request in requests:
            self._outcome.expect_echo(request, self._outcome.count_received(stream.recv()))
        self._outcome.expect_end(stream.recv())

    def echo_stream_stalled(self) -> None:
        """Call while a stream that nobody reads has filled both directions."""
        with ThreadPoolExecutor(1) as thread, self._client.open(c.ECHO_STREAM) as stream:

            def send() -> None:
                for i in range(5000):
                    stream.send(c.payload(i, 5000))

            thread.submit(send)
            time.sleep(0.3)
            self._echo(c.payload(1, 64), timeout_s=10)

    def stream_message_too_large(self) -> None:
        with self._client.open(c.ECHO_STREAM) as stream:
            self._ping(stream, c.payload(1))
            try:
                stream.send(c.payload(2, c.MESSAGE_MAX + 1))
            except Exception as error:
                self._outcome.statuses.append((describe(error)[0], ""))
            self._ping(stream, c.payload(3))
            self._end(stream)

    def sum(self) -> None:
        self._sum(c.parts_to_sum(202))

    def sum_none(self) -> None:
        self._sum([])

    def _sum(self, parts: list[Part]) -> None:
        with self._client.open(c.SUM) as stream:
            for part in parts:
                stream.send(self._outcome.count_sent(part))
            self._outcome.expect(c.sum_up(parts), self._outcome.count_received(stream.close_and_recv()))

    def divide(self) -> None:
        self._divide(30)

    def divide_none(self) -> None:
        self._divide(0)

    def divide_backlog(self) -> None:
        self._divide(5000, pause_s=0.3)

    def _divide(self, count: int, pause_s: float = 0) -> None:
        request = self._outcome.count_sent(Total(sum=1000003, count=count))
        with self._client.open(c.DIVIDE, request) as stream:
            time.sleep(pause_s)
            for expected in c.divide(request):
                self._outcome.expect(expected, self._outcome.count_received(stream.recv()))
            self._outcome.expect_end(stream.recv())

    def echo_null(self) -> None:
        with self._client.open(c.ECHO_NULL) as stream:
            for i in range(100):
                stream.send(self._outcome.count_sent(c.payload(i, 16)))
            self._outcome.count_received(stream.close_and_recv())

    def echo_null_stream(self) -> None:
        with self._client.open(c.ECHO_NULL_STREAM) as stream, ThreadPoolExecutor(1) as thread:

            def send() -> None:
                for i in range(100):
                    stream.send(self._outcome.count_sent(c.payload(i, 16)))
                stream.close_send()

            sending = thread.submit(send)
            for _ in range(100):
                self._outcome.count_received(stream.recv())
            sending.result()
            self._outcome.expect_end(stream.recv())

    def empty_request(self) -> None:
        with self._client.open(c.EMPTY_REQUEST, self._outcome.count_sent(Empty())) as stream:
            for seq in range(2):
                self._outcome.expect(c.payload(seq), self._outcome.count_received(stream.recv()))
            self._outcome.expect_end(stream.recv())

    def fail(self) -> None:
        for code in range(1, 17):
            request = self._outcome.count_sent(Failure(code=code, message=f"reason {code} ü"))
            try:
                self._client.call(c.FAIL, request)
            except Exception as error:
                self._outcome.statuses.append(describe(error))

    def fail_unknown_code(self) -> None:
        self._client.call(c.FAIL, self._outcome.count_sent(Failure(code=99, message="unheard of")))

    def fail_stream(self) -> None:
        self._fail_stream(Code.NOT_FOUND, 5)

    def fail_stream_at_once(self) -> None:
        self._fail_stream(Code.FAILED_PRECONDITION, 0)

    def _fail_stream(self, code: int, after: int) -> None:
        request = self._outcome.count_sent(Failure(code=code, message="no more", after=after))
        with self._client.open(c.FAIL_STREAM, request) as stream:
            for value in range(1, after + 1):
                self._outcome.expect(Part(value=value), self._outcome.count_received(stream.recv()))
            self._outcome.expect_end(stream.recv())

    def sleep(self) -> None:
        self._sleep(50, timeout_s=10)

    def sleep_deadline(self) -> None:
        """Stay until a late answer would have come."""
        began = time.monotonic()
        try:
            self._sleep(1000, timeout_s=0.2)
        finally:
            took = time.monotonic() - began
            if took > 0.9:
                self._outcome.problems.append(f"the deadline came after {took:.3f} s")
            time.sleep(max(0, 1.2 - took))

    def _sleep(self, milliseconds: int, timeout_s: float) -> None:
        request = self._outcome.count_sent(Nap(milliseconds=milliseconds))
        self._outcome.count_received(self._client.call(c.SLEEP, request, timeout_s=timeout_s))

    def unknown_service(self) -> None:
        self._raw("shim.conformance.v1.Nothing", "Echo")

    def unknown_method(self) -> None:
        self._raw(c.SERVICE, "Nothing")

    def _raw(self, service: str, method: str) -> None:
        request = self._outcome.count_sent(c.payload(1))
        self._client.call_raw(service, method, request.SerializeToString())

    def unknown_stream(self) -> None:
        with self._client.open(c.NOTHING_STREAM, self._outcome.count_sent(c.payload(1))) as stream:
            self._outcome.expect_end(stream.recv())

    def metadata(self) -> None:
        request = self._outcome.count_sent(Empty())
        answer = self._outcome.count_received(self._client.call(c.METADATA, request, metadata=c.SENT_METADATA))
        self._outcome.pairs = [(pair.key, pair.value) for pair in answer.pairs]

    def blob_max(self) -> None:
        self._blob(c.RESPONSE_MAX)

    def blob_too_large(self) -> None:
        self._blob(c.RESPONSE_MAX + 3)

    def _blob(self, size: int) -> None:
        request = self._outcome.count_sent(Size(bytes=size))
        self._outcome.expect(c.payload(0, size), self._outcome.count_received(self._client.call(c.BLOB, request)))

    def concurrent_calls(self) -> None:
        self._concurrently(64, lambda i: self._echo(c.payload(i, i * 1000)))

    def large_calls(self) -> None:
        """Fill both directions of the socket."""

        def echo_20(i: int) -> None:
            for _ in range(20):
                self._echo(c.payload(i, 200_000))

        self._concurrently(8, echo_20)

    def concurrent_streams(self) -> None:
        self._concurrently(10, lambda i: self._ping_pong([c.payload(n, n * 100 * i) for n in range(20)]))

    def _concurrently(self, count: int, run: Callable[[int], None]) -> None:
        with ThreadPoolExecutor(count) as threads:
            for result in [threads.submit(run, i) for i in range(count)]:
                result.result()

    def abandoned(self) -> None:
        """Leave a stream while its answers arrive."""
        with self._client.open(c.DIVIDE, self._outcome.count_sent(Total(sum=1000003, count=50))) as stream:
            for _ in range(2):
                self._outcome.count_received(stream.recv())

    def abandoned_bidi(self) -> None:
        """Leave a stream that the server still waits on."""
        with self._client.open(c.ECHO_STREAM) as stream:
            for i in range(3):
                self._ping(stream, c.payload(i))
