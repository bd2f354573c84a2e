"""Generation through the gateway, against the same engine in-process and llama-bench."""

import http.client
import json
import statistics
import time
from http import HTTPStatus
from typing import NamedTuple

from demo_fleet.traffic import last_event

from benchmarks import llama_bench
from benchmarks.deployment import CONTEXT, Deployment
from benchmarks.result import Result
from runtimes.base import Engine, LoadSpec, Sampling
from runtimes.llama_cpp import RUNTIME

RATE_BAR = 0.97
LLAMA_BENCH_BAR = 0.95
TTFT_BAR_MS = 3.0
REPETITIONS = 7
TURNS = 5
TOKENS = 96
PROMPT = "The import statement combines two operations; it searches for the named module, then"


class Answer(NamedTuple):
    """TTFT in seconds, tokens per second after it, and the prompt's tokens."""

    ttft: float
    rate: float
    prompt_tokens: int


def run(deployment: Deployment) -> list[Result]:
    """Measure the gateway and the engine alternately, on the same file; report medians."""
    from artifact.manifest import Task

    files = {deployment.model_file.name: deployment.model_file}
    engine = RUNTIME.load(LoadSpec(files, Task.TEXT_GENERATION, context_length=CONTEXT))
    try:
        here, there = [], []
        for repetition in range(REPETITIONS + 1):
            # Openings differ, so that neither side profits from a cached prefix.
            prompt = f"{repetition}. {PROMPT}"
            inside, outside = _in_process(engine, prompt), _gateway(deployment.box.gateway, prompt)
            if repetition:  # the first of each only warms up
                there.append(inside)
                here.append(outside)
    finally:
        engine.close()
    ours, peer = _medians(here), _medians(there)
    added = (ours.ttft - peer.ttft) * 1000
    ratio = ours.rate / peer.rate
    return [
        Result(
            "generation through the gateway",
            f"{ours.rate:.1f} tokens/s = {ratio:.3f} x",
            f"{peer.rate:.1f} tokens/s, same engine in-process",
            f">= {RATE_BAR} x",
            ratio >= RATE_BAR,
        ),
        Result(
            "TTFT through the gateway",
            f"{ours.ttft * 1000:.1f} ms = {added:+.1f} ms",
            f"{peer.ttft * 1000:.1f} ms, same engine in-process",
            f"<= +{TTFT_BAR_MS:.0f} ms",
            added <= TTFT_BAR_MS,
        ),
        _beside_llama_bench(deployment),
    ]


def _beside_llama_bench(deployment: Deployment) -> Result:
    """Measure decode speed and llama-bench in turns, in tokens per second."""
    what, bar = "generation beside llama.cpp's own", f">= {LLAMA_BENCH_BAR} x"
    ours, peers = [], []
    for turn in range(TURNS):
        # One warm-up run, as llama-bench does, then the mean of as many runs as it uses.
        warm, *answers = [
            _gateway(deployment.box.gateway, f"{turn}.{number}: {PROMPT}")
            for number in range(1 + llama_bench.REPETITIONS)
        ]
        ours.append(statistics.mean(answer.rate for answer in answers))
        measured = llama_bench.rates(deployment.model_file, 1, TOKENS, warm.prompt_tokens)
        if measured is None:
            return Result(what, "", "no llama-bench here", bar, None, llama_bench.ABSENT)
        peers.append(measured[1])
    # Both sides' speed drifts with the machine's other load, so they are measured in turns.
    ratio = statistics.median(our / peer for our, peer in zip(ours, peers, strict=True))
    return Result(
        what,
        f"{statistics.median(ours):.1f} tokens/s = {ratio:.3f} x",
        f"{statistics.median(peers):.1f} tokens/s, llama-bench",
        bar,
        ratio >= LLAMA_BENCH_BAR,
    )


def _medians(answers: list[Answer]) -> Answer:
    return Answer(*map(statistics.median, zip(*answers, strict=True)))


def _in_process(engine: Engine, prompt: str) -> Answer:
    began = time.perf_counter()
    generation = engine.generate(prompt, Sampling(max_tokens=TOKENS))
    next(generation)
    first = time.perf_counter()
    for _ in generation:
        pass
    ended = time.perf_counter()
    usage = generation.usage
    rate = (usage.generated_tokens - 1) / (ended - first)
    return Answer(first - began, rate, usage.prompt_tokens)


def _gateway(address: str, prompt: str) -> Answer:
    """Measure one request as an HTTP client; tokens are counted by the answer's `usage`."""
    body = json.dumps(streamed(prompt, TOKENS))
    connection = http.client.HTTPConnection(address, timeout=120)
    connection.connect()
    began = time.perf_counter()
    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    assert answer.status == HTTPStatus.OK, answer.read()
    opening = answer.readline()
    first = time.perf_counter()
    # A client that reads token by token competes with the engine for this machine's cores.
    events = opening + answer.read()
    ended = time.perf_counter()
    connection.close()
    usage = last_event(events)["usage"]
    assert usage["completion_tokens"] == TOKENS, usage
    return Answer(first - began, (TOKENS - 1) / (ended - first), usage["prompt_tokens"])


def streamed(prompt: str, tokens: int) -> dict[str, object]:
    """Return a streamed request for a number of tokens, with usage included."""
    return {
        "model": "bench",
        "prompt": prompt,
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
