"""Admission to a worker: several requests at once in order of arrival, or one request alone."""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass


@dataclass(eq=False, slots=True)
class _Waiter:
    admitted: asyncio.Future[None]
    alone: bool


class Turns:
    """Admits up to ``places`` requests at once, first come, first served, in one event loop.

    A request that asks to be alone goes to the head of the queue, waits until all others have left,
    and keeps new ones out until it has left.
    """

    def __init__(self, places: int) -> None:
        self._places = places
        self._running = 0
        self._is_exclusive = False
        self._queue: deque[_Waiter] = deque()

    @property
    def waiting(self) -> int:
        """Number of requests in the queue."""
        return len(self._queue)

    @asynccontextmanager
    async def admitted(self, *, alone: bool = False) -> AsyncIterator[Callable[[], None]]:
        """Wait for a place and yield a function that frees it early."""
        await self._enter(alone=alone)
        with contextlib.ExitStack() as stack:
            stack.callback(self._leave)
            yield stack.close

    async def _enter(self, *, alone: bool) -> None:
        waiter = _Waiter(asyncio.get_running_loop().create_future(), alone)
        if alone:
            self._queue.appendleft(waiter)
        else:
            self._queue.append(waiter)
        self._admit()
        try:
            await waiter.admitted
        except asyncio.CancelledError:
            if waiter.admitted.done() and not waiter.admitted.cancelled():
                self._leave()
            else:
                # Never admitted. Its place in the queue may have kept others out.
                with contextlib.suppress(ValueError):
                    self._queue.remove(waiter)
                self._admit()
            raise

    def _leave(self) -> None:
        self._running -= 1
        self._is_exclusive = False
        self._admit()

    def _admit(self) -> None:
        while self._queue and not self._is_exclusive:
            head = self._queue[0]
            if head.admitted.cancelled():
                # Its task is cancelled and has not run yet to leave the queue.
                self._queue.popleft()
                continue
            if self._running and (head.alone or self._running >= self._places):
                return
            self._queue.popleft()
            self._running += 1
            self._is_exclusive = head.alone
            head.admitted.set_result(None)
