"""The asyncio server: `LoopServer` on asyncio's loop, and coroutines as handlers.

Rule: the same services and the same connections as the blocking server's; what is here is waiting.
"""

from __future__ import annotations

import asyncio
import select
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from contextvars import copy_context
from functools import partial
from types import TracebackType
from typing import Any, Final, Generic, Self

from shim.ttrpc.aio_waiting import Queue, Turn, wait_in, wake
from shim.ttrpc.calls import Call
from shim.ttrpc.calls import ServerStream as BlockingServerStream
from shim.ttrpc.context import CallContext, Credentials, Deferred
from shim.ttrpc.loop import READABLE, WRITABLE, Callback
from shim.ttrpc.loop_server import Limits, LoopServer, same_user
from shim.ttrpc.pool import WorkerPool
from shim.ttrpc.rpc import RequestT, ResponseT
from shim.ttrpc.service import Handler, Interceptor, Service
from shim.ttrpc.status import Code, RpcError

_GRACE_S: Final = 5.0


class ServerStream(Generic[RequestT, ResponseT]):
    """What a coroutine handler has of a stream: iterate it for the client's messages, `send` the server's."""

    __slots__ = ("_call", "_turn", "_waiters")

    def __init__(self, call: Call) -> None:
        self._call = call
        self._turn = Turn()
        self._waiters: Queue = []
        call.waker = self

    def wake(self) -> None:
        """Let those who wait look again."""
        wake(self._waiters)

    async def recv(self) -> RequestT | None:
        """Return the client's next message, or None once it has sent its last.

        Raises:
            RpcError: The call is over: CANCELED, the client has gone; DEADLINE_EXCEEDED; INTERNAL, the bytes are not
                this method's request.
        """
        call = self._call
        while not call.inbox.is_ready:
            await wait_in(self._waiters)
        with call.peer.lock:
            payload = call.inbox.take()
            call.peer.inbox_taken(call)
        return None if payload is None else call.endpoint.decode(payload)  # type: ignore[return-value]  # by its table

    async def __aiter__(self) -> AsyncIterator[RequestT]:
        while (message := await self.recv()) is not None:
            yield message

    async def send(self, response: ResponseT) -> None:
        """Send one message; waits while the client does not read.

        Raises:
            RpcError: The call is over, as in `recv`; RESOURCE_EXHAUSTED, the message is over 4 MiB.
            LocalProtocolError: The method has no server's stream, or its handler has returned.
        """
        call = self._call
        payload = call.endpoint.encode(response)
        while True:
            with call.peer.lock:
                call.raise_if_over()
                if not call.peer.is_congested:
                    call.peer.send_message(call, payload)
                    break
                call.peer.wait_for_room(self)
            await wait_in(self._waiters)
        await self._turn.sent(len(payload))


class Server(LoopServer):
    """Serves services on asyncio's loop; coroutine handlers run there, blocking ones in threads.

    `async with Server([service]) as server: server.listen("unix:///run/x.sock"); await server.serve()`.  A coroutine
    handler of a unary method that is bound as inline runs without a task of its own until it first waits, at half the
    cost: it must not ask for the current task before that, and shares its context variables with other calls.  The
    other arguments are those of `LoopServer`.

    Raises:
        RuntimeError: No loop is running.
    """

    def __init__(
        self,
        services: Iterable[Service] = (),
        *,
        interceptors: Sequence[Interceptor] = (),
        authorize: Callable[[Credentials | None], bool] = same_user,
        limits: Limits | None = None,
        on_fault: Callable[[str, BaseException], None] = lambda _method, _error: None,
        on_refused: Callable[[Credentials | None], None] = lambda _credentials: None,
    ) -> None:
        self._asyncio = asyncio.get_running_loop()
        super().__init__(
            services,
            AsyncioLoop(self._asyncio),
            WorkerPool(on_error=lambda error: self.report("worker", error)),
            interceptors=interceptors,
            authorize=authorize,
            limits=limits,
            step=self._step,
            on_fault=on_fault,
            on_refused=on_refused,
        )
        self._tasks: dict[object, asyncio.Task[None]] = {}
        self._stopped = asyncio.Event()
        self._is_stopping = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    async def serve(self) -> None:
        """Wait until `stop` has ended the server, which serves from `listen` on; when cancelled, end it at once."""
        try:
            await self._stopped.wait()
        except asyncio.CancelledError:
            self.close()
            raise

    async def stop(self, grace_s: float = _GRACE_S) -> None:
        """End the server: no new calls, and those in flight may finish for `grace_s` seconds; repeating it is fine."""
        if not self._is_stopping:
            self._is_stopping = True
            self.shutdown(grace_s, self._stopped.set)
        await self._stopped.wait()
        if self._tasks:  # given up, and on their way out
            await asyncio.wait(set(self._tasks.values()), timeout=grace_s)

    def run(self, call: Call) -> None:
        """Run a call's handler: a coroutine on the loop, anything else as every server does."""
        endpoint = call.endpoint
        if not endpoint.is_async:
            super().run(call)
            return
        try:
            result = endpoint.handler(call.context, call.request())
        except BaseException as error:  # whatever a handler raises is contained to its call
            call.fail(error)
            return
        if not endpoint.kind & 1 and not hasattr(result, "__await__"):  # an interceptor has answered by itself
            call.take(result)
            return
        self._start(call, self._stream(call, result) if endpoint.kind & 1 else self._answer(call, result))

    def drive(self, call: Call, result: Any) -> None:
        """Await what a plain function returned: a decorated coroutine function looks like one."""
        self.loop.call_soon(partial(self._drive, call, result))

    def _drive(self, call: Call, result: Any) -> None:
        if not call.is_over:
            self._start(call, self._stream(call, result) if call.endpoint.kind & 1 else self._answer(call, result))
        elif hasattr(result, "close"):  # given up before it began
            result.close()

    def make_stream(self, call: Call) -> Any:
        """Return what the handler of a client's stream gets."""
        return ServerStream(call) if call.endpoint.is_async else BlockingServerStream(call)

    def _step(self, handler: Handler) -> Handler:
        """Return a plain handler: it runs the coroutine until that first waits; only then it gets a task."""

        def run(context: CallContext, request: Any) -> Any:
            coroutine = handler(context, request)
            if not hasattr(coroutine, "send"):  # an interceptor has answered by itself
                return coroutine
            try:
                waits_for = coroutine.send(None)
            except StopIteration as stop:
                return stop.value
            later = _Later()
            later.task = self._start(later, self._resolve(later, _Rest(coroutine, waits_for)))
            later.on_abandoned = later.cancel
            return later

        return run

    def _start(self, owner: Call | Deferred, coroutine: Any) -> asyncio.Task[None]:
        if sys.version_info >= (3, 12) and isinstance(owner, Call):
            task = asyncio.Task(coroutine, loop=self._asyncio, eager_start=True)
            if task.done():
                return task
        else:
            task = self._asyncio.create_task(coroutine)
        self._tasks[owner] = task
        if isinstance(owner, Call):
            owner.on_over = task.cancel
        return task

    async def _resolve(self, later: Deferred, rest: Awaitable[Any]) -> None:
        """Finish what `step` put off."""
        try:
            later.resolve(await rest)
        except BaseException as error:  # contained to its call
            later.fail(_as_answer(error, ""))
        finally:
            self._tasks.pop(later, None)

    async def _answer(self, call: Call, result: Awaitable[Any]) -> None:
        """Await a handler's one response, and answer."""
        try:
            payload = call.endpoint.encode(await result)
            call.peer.cork_for_others()
            call.answer(payload)
        except BaseException as error:  # contained to its call
            call.fail(_as_answer(error, call.context.method))
        finally:
            self._tasks.pop(call, None)

    async def _stream(self, call: Call, result: Any) -> None:
        """Send what a handler yields, if it yields, and end its stream."""
        try:
            if hasattr(result, "__anext__"):
                stream: Any = call.waker or ServerStream(call)
                async with aclosing(result):
                    async for response in result:
                        await stream.send(response)
            elif (returned := await result) is not None:
                got, method = type(returned).__name__, call.context.method
                raise RpcError(
                    Code.INTERNAL, f"{method} returned {got}: it has to yield or send what it answers", method
                )
            call.end()
        except BaseException as error:  # contained to its call
            call.fail(_as_answer(error, call.context.method))
        finally:
            self._tasks.pop(call, None)


class _Later(Deferred):
    """The answer of a coroutine that waits."""

    holds_up = True
    task: asyncio.Task[None] | None = None

    def cancel(self) -> None:
        """Stop the coroutine."""
        if self.task is not None:
            self.task.cancel()


class _Rest:
    """A coroutine that has run until it first waited, to be awaited for the rest of it."""

    def __init__(self, coroutine: Any, waits_for: Any) -> None:
        self._coroutine = coroutine
        self._waits_for = waits_for

    def __await__(self) -> Any:
        waits_for = self._waits_for
        while True:
            try:
                value = yield waits_for
            except BaseException as error:  # goes to whom it is meant for
                step, value = self._coroutine.throw, error
            else:
                step = self._coroutine.send
            try:
                waits_for = step(value)
            except StopIteration as stop:
                return stop.value


def _as_answer(error: BaseException, method: str) -> BaseException:
    if isinstance(error, asyncio.CancelledError):
        return RpcError(Code.CANCELED, "context canceled", method)
    return error


class AsyncioLoop:
    """asyncio's loop as the server's event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._thread = threading.get_ident()
        self._context = copy_context()  # of no call: what watches a descriptor outlives the call that began it
        self._watched: dict[int, tuple[int, Callable[[int], None]]] = {}
        self._unread: Any = None  # an epoll of those watched for nothing: asyncio does not tell when such a peer goes
        self._unread_fds: set[int] = set()

    def register(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
        """Call `callback(ready)` whenever one of `events` holds for `fd`."""
        self._watched[fd] = (0, callback)
        self.modify(fd, events)

    def modify(self, fd: int, events: int) -> None:
        """Change what a registered descriptor is watched for; 0 leaves only FAILED, where the system has epoll."""
        self._modify(fd, events)
        if events:
            self._forget_unread(fd)
        elif fd not in self._unread_fds and hasattr(select, "epoll"):
            if self._unread is None:
                self._unread = select.epoll()
                self._loop.add_reader(self._unread.fileno(), self._unread_failed)
            self._unread_fds.add(fd)
            self._unread.register(fd, 0)

    def _forget_unread(self, fd: int) -> None:
        if fd in self._unread_fds:
            self._unread_fds.discard(fd)
            self._unread.unregister(fd)
            if not self._unread_fds:
                self._loop.remove_reader(self._unread.fileno())
                self._unread.close()
                self._unread = None

    def _unread_failed(self) -> None:
        for fd, events in self._unread.poll(0):
            if fd in self._unread_fds:
                self._watched[fd][1](events)

    def _modify(self, fd: int, events: int) -> None:
        before, callback = self._watched[fd]
        changed = before ^ events
        if changed & READABLE:
            if events & READABLE:
                self._context.run(self._loop.add_reader, fd, callback, READABLE)
            else:
                self._loop.remove_reader(fd)
        if changed & WRITABLE:
            if events & WRITABLE:
                self._context.run(self._loop.add_writer, fd, callback, WRITABLE)
            else:
                self._loop.remove_writer(fd)
        self._watched[fd] = (events, callback)

    def unregister(self, fd: int) -> None:
        """Stop watching; an unknown descriptor is fine."""
        if fd in self._watched:
            self._modify(fd, 0)
            self._forget_unread(fd)
            del self._watched[fd]

    def call_later(self, delay_s: float, callback: Callback) -> _Timer:
        """Call `callback()` on the loop after `delay_s` seconds."""
        return _Timer(self, self._loop.call_later(min(delay_s, 86400.0 * 365), callback))

    def call_soon(self, callback: Callback) -> None:
        """Call `callback()` on the loop's thread; safe from any thread.  Once the loop is closed nothing happens."""
        try:
            if threading.get_ident() == self._thread:
                self._loop.call_soon(callback)
            else:
                self._loop.call_soon_threadsafe(callback)
        except RuntimeError:
            pass  # closed


class _Timer:
    """A call that was put off, which any thread may cancel."""

    __slots__ = ("_handle", "_loop")

    def __init__(self, loop: AsyncioLoop, handle: asyncio.TimerHandle) -> None:
        self._loop = loop
        self._handle = handle

    def cancel(self) -> None:
        """Forget the call."""
        self._loop.call_soon(self._handle.cancel)
