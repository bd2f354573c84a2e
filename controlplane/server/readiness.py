"""Readiness: whether the server is started, can write, and what will soon need its operator."""

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from controlplane.disk import check_writable
from controlplane.errors import ControlPlaneError, NotStartedError
from controlplane.store.database import Database

# Probes write, so that their number must not depend on who asks.
FRESH_SECONDS: Final = 1.0
PROBE_SECONDS: Final = 10.0


class Readiness:
    """The answer of /readyz, at most FRESH_SECONDS old."""

    def __init__(
        self,
        database: Database,
        data_dir: Path,
        warnings: Callable[[], Sequence[str]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._data_dir = data_dir
        self._warnings = warnings
        self._clock = clock
        self._started = False
        self._probed_at = float("-inf")
        self._problem: ControlPlaneError | None = None
        self._probing = asyncio.Lock()

    def started(self) -> None:
        """Record that every port listens and every file of the start is written."""
        self._started = True

    async def check(self) -> Sequence[str]:
        """Return warnings; raises NotStartedError and StorageError."""
        if not self._started:
            raise NotStartedError("the server is starting")
        async with self._probing:
            if self._clock() - self._probed_at > FRESH_SECONDS:
                self._problem = await self._probe()
                self._probed_at = self._clock()
        if self._problem is not None:
            raise self._problem
        return self._warnings()

    async def _probe(self) -> ControlPlaneError | None:
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                await self._database.check_writable()
                await asyncio.to_thread(check_writable, self._data_dir)
        except ControlPlaneError as error:
            return error
        except TimeoutError:
            return NotStartedError(f"the database did not answer within {PROBE_SECONDS:.0f} s")
        return None
