"""Admission to a worker: several requests at once in order of arrival; suspects start alone."""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Turns:
    """Admits up to ``places`` requests at once, first come, first served, in one event loop.

    A request is starting until its first output. One that asks to start alone goes to the head of
    the queue, waits until no other one is starting, and keeps new ones out until its first output.
    """

    def __init__(self, places: int) -> None:
        self._places = places
        self._running = 0
        self._starting = 0
        self._is_exclusive = False
        self._queue: deque[Turn] = deque()

    @property
    def waiting(self) -> int:
        """Number of requests in the queue."""
        return len(self._queue)

    @asynccontextmanager
    async def admitted(self, *, alone: bool = False) -> AsyncIterator["Turn"]:
        """Wait for a place and yield it; it is free again after the context, or after ``leave``."""
        turn = Turn(self, alone=alone)
        if alone:
            self._queue.appendleft(turn)
        else:
            self._queue.append(turn)
        self._admit()
        try:
            await turn.admission
            yield turn
        finally:
            if turn.admission.done() and not turn.admission.cancelled():
                turn.leave()
            else:
                # Never admitted. Its place in the queue may have kept others out.
                with contextlib.suppress(ValueError):
                    self._queue.remove(turn)
                self._admit()

    def change(self, *, running: int, starting: int, was_alone: bool) -> None:
        """Account for a turn that started or left, and admit others."""
        self._running += running
        self._starting += starting
        if was_alone:
            self._is_exclusive = False
        self._admit()

    def _admit(self) -> None:
        while self._queue and not self._is_exclusive and self._running < self._places:
            turn = self._queue[0]
            if turn.admission.cancelled():
                # Its task is cancelled and has not run yet to leave the queue.
                self._queue.popleft()
                continue
            if turn.alone and self._starting:
                return
            self._queue.popleft()
            self._running += 1
            self._starting += 1
            self._is_exclusive = turn.alone
            turn.admission.set_result(None)


class Turn:
    """The place of one request."""

    def __init__(self, turns: Turns, *, alone: bool) -> None:
        self.alone = alone
        self.admission: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # True if it left while it was starting alone: if its process crashed, it is the cause.
        self.left_starting_alone = False
        self._turns = turns
        self._is_starting = True
        self._has_left = False

    def start(self) -> None:
        """Note the first output: others may start."""
        if self._is_starting:
            self._is_starting = False
            self._turns.change(running=0, starting=-1, was_alone=self.alone)

    def leave(self) -> None:
        """Free the place; later calls have no effect."""
        if not self._has_left:
            self._has_left = True
            self.left_starting_alone = self.alone and self._is_starting
            was_starting, self._is_starting = self._is_starting, False
            self._turns.change(
                running=-1, starting=-was_starting, was_alone=self.left_starting_alone
            )
