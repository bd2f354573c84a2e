"""Work on large bodies, beside the event loop."""

import asyncio
from collections.abc import Callable
from typing import Final, TypeVar

LARGE_BYTES: Final = 64 << 10

T = TypeVar("T")


async def aside(size: int, work: Callable[[], T]) -> T:
    """Numbers by the million take their time, in which others are answered."""
    return await asyncio.to_thread(work) if size > LARGE_BYTES else work()
