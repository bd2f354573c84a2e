"""A greedy completion with its usage, for checks and for the benchmark."""

import time
from collections.abc import Callable
from contextlib import aclosing

from agent.supervisor import Worker
from runtimes.base import Sampling, Usage


async def complete(
    worker: Worker,
    prompt: str,
    max_tokens: int,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[str, Usage | None, float | None]:
    """Complete ``prompt`` greedily; return the text, its usage and TTFT in seconds."""
    started = clock()
    ttft: float | None = None
    parts: list[str] = []
    generation = worker.generate(prompt, None, Sampling(max_tokens=max_tokens))
    async with aclosing(generation):
        async for pieces in generation:
            if ttft is None:
                ttft = clock() - started
            parts += [piece.text for piece in pieces]
    return "".join(parts), generation.usage, ttft
