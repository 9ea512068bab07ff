"""How the tasks of asyncio's client and server wait to look again, and let others have their turn.

Rule: a queue holds the futures of those who wait; who gives up waiting, again and again, leaves nothing there.
"""

from __future__ import annotations

import asyncio
from typing import Final

_MOST_IN_A_ROW: Final = 256 << 10
_MESSAGE_COST: Final = 4 << 10  # what a message costs in time, as bytes

Queue = list[asyncio.Future[None]]


async def wait_in(*queues: Queue) -> None:
    """Wait until one of the queues is woken."""
    waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    for queue in queues:
        queue.append(waiter)
    try:
        await waiter
    finally:
        for queue in queues:
            if waiter in queue:  # else it has been woken
                queue.remove(waiter)


def wake(queue: Queue) -> None:
    """Let those who wait look again."""
    for waiter in queue:
        if not waiter.done():
            waiter.set_result(None)
    queue.clear()


class Turn:
    """Makes one who sends without ever waiting, since the peer reads at once, leave the loop to others now and then."""

    __slots__ = ("_in_a_row",)

    def __init__(self) -> None:
        self._in_a_row = 0

    async def sent(self, size: int) -> None:
        """Count a message of so many bytes."""
        self._in_a_row += size + _MESSAGE_COST
        if self._in_a_row > _MOST_IN_A_ROW:
            self._in_a_row = 0
            await asyncio.sleep(0)
