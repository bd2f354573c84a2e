"""Throughput of four concurrent streams through the gateway, against one stream."""

import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path

from demo_fleet.traffic import call

from benchmarks import llama_bench
from benchmarks.deployment import Deployment
from benchmarks.generation import streamed
from benchmarks.result import Result

BAR = 2.0
STREAMS = 4
REPETITIONS = 5
TOKENS = 64
PROMPT = "The import statement combines two operations; it searches for the named module, then"


def run(deployment: Deployment) -> list[Result]:
    """Measure one stream and four in turn; report the median of the pairs' ratios."""
    one, four = [], []
    for repetition in range(REPETITIONS + 1):
        alone = _rate(deployment.box.gateway, 1, repetition)
        together = _rate(deployment.box.gateway, STREAMS, repetition)
        if repetition:  # the first of each only warms up
            one.append(alone)
            four.append(together)
    single, batched = statistics.median(one), statistics.median(four)
    # Runs of a pair are close in time, so the machine's noise is about the same in both.
    ratio = statistics.median(many / alone for many, alone in zip(four, one, strict=True))
    return [
        Result(
            f"{STREAMS} streams at once",
            f"{batched:.1f} tokens/s = {ratio:.2f} x",
            f"{single:.1f} tokens/s, one stream",
            f">= {BAR:g} x",
            ratio >= BAR,
            _of_the_kernels(deployment.model_file),
        )
    ]


def _of_the_kernels(model: Path) -> str:
    """Describe llama-bench's ratio of batched to single decoding: the upper bound."""
    rates = llama_bench.rates(model, prompt_tokens=STREAMS, tokens=TOKENS)
    if rates is None:
        return llama_bench.ABSENT
    batch, single = rates
    return f"llama-bench: a batch of {STREAMS} is {batch / single:.2f} x"


def _rate(address: str, streams: int, repetition: int) -> float:
    """Return the total tokens per second, from the first request to the last token."""
    # Prompts differ, so that no stream profits from a cached prefix.
    prompts = [f"{repetition}.{number}.{streams} {PROMPT}" for number in range(streams)]
    with ThreadPoolExecutor(streams) as pool:
        began = time.perf_counter()
        tokens = sum(pool.map(lambda prompt: _generate(address, prompt), prompts))
        return tokens / (time.perf_counter() - began)


def _generate(address: str, prompt: str) -> int:
    status, last = call(address, "/v1/completions", streamed(prompt, TOKENS))
    assert status == HTTPStatus.OK, last
    generated: int = last["usage"]["completion_tokens"]
    return generated
