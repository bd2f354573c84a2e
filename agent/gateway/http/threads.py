"""Threads for work on large bodies, so that the event loop keeps answering other requests."""

import asyncio
from collections.abc import Callable
from typing import Final, TypeVar

LARGE_BYTES: Final = 64 << 10

T = TypeVar("T")


async def run_in_thread_if_large(size_bytes: int, work: Callable[[], T]) -> T:
    """Run `work` in a thread if the body exceeds 64 KiB, and inline otherwise.

    A thread switch costs more than handling a small body.
    """
    return await asyncio.to_thread(work) if size_bytes > LARGE_BYTES else work()
