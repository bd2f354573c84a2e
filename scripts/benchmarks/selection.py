"""Error of a device's predictions for untried variants, and the regret of its choice."""

import asyncio
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from demo_models.random_llama import parse_count

from agent.hardware import read_facts
from agent.hardware.rates import measure_now
from agent.selection import Knowledge, Measurement, Source, rank
from agent.selection.memory_prediction import MemoryModel
from agent.selection.speed_prediction import Predictor
from artifact.manifest import (
    Component,
    File,
    ModelVersion,
    Objective,
    SelectionPolicy,
    Task,
    Variant,
)
from benchmarks.result import Result
from runtimes.base import LoadSpec, Sampling, Scheme
from runtimes.build.description import context_bytes
from runtimes.llama_cpp import RUNTIME

SCRIPTS = Path(__file__).parents[1]
ERROR_BAR = 0.15
REGRET_BAR = 0.05
CONTEXT = 512
TOKENS = 32
ROUNDS = 3
REPETITIONS = 4
PROMPT = "The box by the road has served its neighbours for many years, and"
SCHEMES = ("f16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0", "q3_k_m", "q2_k")
# The variant that counts as measured; every other one is predicted from it.
CALIBRATED = ("q8_0", "q4_k_m")


@dataclass(frozen=True)
class Tried:
    """A variant on disk and its measured speed."""

    model: str
    variant: Variant
    path: Path
    tokens_per_second: float = 0.0
    ttft_seconds: float = 0.0
    memory_bytes: int = 0
    seconds: float = 0.0


def run(directory: Path, parameters: str) -> list[Result]:
    """Measure every variant of a random model, and compare with the selection's predictions."""
    half = str(parse_count(parameters) // 2)
    untried = [
        *_variants(directory / "other", "bench/other", half, CALIBRATED),
        *_variants(directory / "random", "bench/random", parameters, SCHEMES),
    ]
    facts = read_facts()
    benchmark = asyncio.run(measure_now(directory, facts))
    measured = _measured(untried)
    other, tried = measured[: len(CALIBRATED)], measured[len(CALIBRATED) :]
    known = [one for one in tried if one.variant.name in CALIBRATED]
    rest = [one for one in tried if one not in known]
    model = _model("bench/random", [one.variant for one in tried])
    bare = Predictor(model.reference, model.task, benchmark)
    plain = replace(bare, benchmark=replace(benchmark, weight_bytes_per_second={}))
    errors = _errors(replace(bare, measured=[_measurement(one) for one in known]), rest)
    from_other = _errors(replace(bare, measured=[_measurement(one) for one in other]), tried)
    facts = replace(facts, benchmark=benchmark, model_memory_bytes=facts.memory_bytes)
    chosen, regret = _choose(model, tried, Knowledge(facts))
    best = max(tried, key=lambda one: one.tokens_per_second)
    spent = sum(one.seconds for one in tried if one.variant.name in chosen)
    memory = [abs(one.variant.memory_bytes / one.memory_bytes - 1) for one in tried]
    return [
        Result(
            "tokens/s of untried variants",
            f"median error {statistics.median(errors):.1%}, worst {max(errors):.1%}",
            f"bare kernels {statistics.median(_errors(bare, rest)):.1%}, "
            f"memory bandwidth alone {statistics.median(_errors(plain, rest)):.1%}",
            f"<= {ERROR_BAR:.0%}",
            statistics.median(errors) <= ERROR_BAR,
            f"calibrated on {' and '.join(CALIBRATED)} of {len(tried)} variants",
        ),
        Result(
            "tokens/s of an untried model",
            f"median error {statistics.median(from_other):.1%}, worst {max(from_other):.1%}",
            "",
            f"<= {ERROR_BAR:.0%}",
            statistics.median(from_other) <= ERROR_BAR,
            f"calibrated on {' and '.join(CALIBRATED)} of one half as large",
        ),
        Result(
            "regret of the chosen variant",
            f"{regret:.1%} below the best",
            f"{best.variant.name}, {best.tokens_per_second:.1f} tokens/s",
            f"<= {REGRET_BAR:.0%}",
            regret <= REGRET_BAR,
            f"nothing known before; probation tried {', '.join(chosen)} in {spent:.0f} s; memory "
            f"estimates were off by {statistics.median(memory):.0%} (median)",
        ),
    ]


def _variants(
    directory: Path, model: str, parameters: str, schemes: Sequence[str]
) -> Iterator[Tried]:
    directory.mkdir(parents=True, exist_ok=True)
    source = directory / "random.gguf"
    if not source.exists():
        generator = SCRIPTS / "demo_models" / "random_llama.py"
        command = [sys.executable, str(generator), "--parameters", parameters, str(source)]
        subprocess.run(command, check=True, stdout=sys.stderr)
    quantizer = RUNTIME.quantizer()
    for scheme in schemes:
        path = directory / f"{scheme}.gguf"
        if not path.exists():
            quantizer.quantize(source, Scheme(scheme), path, lambda *_: None)
        inspection = RUNTIME.inspector().inspect(path)
        size = path.stat().st_size
        variant = Variant(
            name=scheme,
            runtime=RUNTIME.name,
            format=RUNTIME.format,
            quantization=scheme,
            files=(File(name="model.gguf", size=size, sha256="0" * 64, index="0" * 64),),
            memory_bytes=RUNTIME.estimate_memory(inspection, size, CONTEXT),
            context_length=CONTEXT,
            context_bytes=context_bytes(RUNTIME, inspection, size, CONTEXT),
            parameters=inspection.parameters,
            decode_bytes=RUNTIME.decode_bytes(inspection),
            matrices=sum(len(tensor.shape) > 1 for tensor in inspection.tensors),
        )
        yield Tried(model, variant, path)


def _measured(untried: Sequence[Tried]) -> list[Tried]:
    """Measure in rounds, so that a disturbance of the machine does not hit one variant alone.

    The fastest of all runs counts, as the micro-benchmark too tells what an undisturbed box does.
    """
    rounds = [[_try(one) for one in untried] for _ in range(ROUNDS)]
    return [
        replace(
            runs[0],
            tokens_per_second=max(run.tokens_per_second for run in runs),
            ttft_seconds=min(run.ttft_seconds for run in runs),
            seconds=statistics.median(run.seconds for run in runs),
        )
        for runs in zip(*rounds, strict=True)
    ]


def _try(one: Tried) -> Tried:
    began = time.perf_counter()
    files = {"model.gguf": one.path}
    engine = RUNTIME.load(LoadSpec(files, Task.TEXT_GENERATION, CONTEXT, parallel=1))
    try:
        rates, firsts = [], []
        for repetition in range(REPETITIONS):
            # Openings differ, so that no prefix is cached.
            generation = engine.generate(f"{repetition}. {PROMPT}", Sampling(max_tokens=TOKENS))
            for _ in generation:
                pass
            usage = generation.usage
            rates.append((usage.generated_tokens - 1) / usage.decode_seconds)
            firsts.append(usage.prefill_seconds)
        return replace(
            one,
            tokens_per_second=max(rates),
            ttft_seconds=min(firsts),
            memory_bytes=engine.memory_bytes(),
            seconds=time.perf_counter() - began,
        )
    finally:
        engine.close()


def _measurement(one: Tried) -> Measurement:
    variant = one.variant
    return Measurement(
        model=_model(one.model, [variant]).reference,
        variant=variant.name,
        task=Task.TEXT_GENERATION,
        runtime=variant.runtime,
        quantization=variant.quantization,
        size_bytes=variant.size_bytes,
        parameters=variant.parameters,
        context_length=variant.context_length,
        estimated_memory_bytes=MemoryModel(variant).bytes_at(variant.context_length),
        memory_bytes=one.memory_bytes,
        tokens_per_second=one.tokens_per_second,
        ttft_seconds=one.ttft_seconds,
        decode_bytes=variant.decode_bytes,
        matrices=variant.matrices,
    )


def _model(name: str, variants: Sequence[Variant]) -> ModelVersion:
    return ModelVersion(name=name, version="1", task=Task.TEXT_GENERATION, variants=tuple(variants))


def _errors(predictor: Predictor, unknown: Sequence[Tried]) -> list[float]:
    predicted = [predictor.predict(one.variant) for one in unknown]
    assert all(one.source in {Source.CALIBRATED, Source.ROOFLINE} for one in predicted)
    return [
        abs(guess.tokens_per_second / one.tokens_per_second - 1)
        for guess, one in zip(predicted, unknown, strict=True)
    ]


def _choose(
    model: ModelVersion, tried: Sequence[Tried], known: Knowledge
) -> tuple[list[str], float]:
    """Return the variants that an unmeasured device tries, and the regret of its choice."""
    measured = {one.variant.name: one for one in tried}
    policy = SelectionPolicy(objective=Objective.TOKENS_PER_SECOND)
    decision = rank(Component(slot="chat", model=model), policy, known)
    names = []
    while (name := decision.next_candidate()) is not None:
        names.append(name)
        one = measured[name]
        decision = decision.with_measurement(
            name, tokens_per_second=one.tokens_per_second, memory_bytes=one.memory_bytes
        )
    reached = measured[decision.conclude().chosen_variant].tokens_per_second
    return names, 1 - reached / max(one.tokens_per_second for one in tried)
