"""LoRA adapters: checks against the base, and effects on its texts."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from artifact.manifest import Task
from runtimes import registry
from runtimes.base import Inspection, LoadSpec, Sampling, TensorInfo
from runtimes.errors import InvalidInputError, LoadError, UnsupportedModelError
from runtimes.llama_cpp.adapters import check_adapter
from runtimes.llama_cpp.inspect import GgufInspector
from runtimes.text.steps import whole

HELDOUT = Path(__file__).parents[3] / "scripts" / "demo_models" / "heldout.txt"


def load(base: Path, **adapters: Path) -> Any:
    spec = LoadSpec({"m": base}, Task.TEXT_GENERATION, 512, threads=1, adapters=adapters)
    return registry.find("llama_cpp").load(spec)


@pytest.fixture(scope="module")
def engine(demo_models: Path) -> Iterator[Any]:
    adapter = demo_models / "adapter.gguf"
    engine = load(demo_models / "base.gguf", polite=adapter, again=adapter)
    yield engine
    engine.close()


def prompts(count: int) -> list[str]:
    text = HELDOUT.read_text(encoding="utf-8")
    return [text[n * 997 :][:80] for n in range(count)]


def said(engine: Any, prompt: str, adapter: str = "") -> list[int | None]:
    sampling = Sampling(max_tokens=24, adapter=adapter)
    return [piece.token for piece in engine.generate(prompt, sampling)]


def log_probabilities(engine: Any, adapter: str = "") -> Any:
    rows = []
    for prompt in prompts(3):
        with engine._scheduler.alone():
            engine._model.use_adapter(adapter)
            tokens = engine._tokenize(prompt)[:64]
            logits = np.array(engine._model.decode(tokens, all_logits=True), dtype=np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        rows.append(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))
    return np.concatenate(rows)


def divergence(left: Any, right: Any) -> float:
    """Mean Kullback-Leibler divergence in nats."""
    return float((np.exp(left) * (left - right)).sum(axis=1).mean())


def test_an_adapter_moves_the_base_toward_what_it_was_made_of(
    engine: Any, demo_models: Path
) -> None:
    tuned = load(demo_models / "finetune.gguf")
    goal = log_probabilities(tuned)
    tuned.close()
    plain, adapted = (log_probabilities(engine, name) for name in ("", "polite"))
    assert divergence(goal, adapted) < 0.6 * divergence(goal, plain)


def test_requests_with_different_adapters_at_once_are_each_right(engine: Any) -> None:
    choices = list(zip(prompts(4), ("", "polite", "again", ""), strict=True))
    alone = [said(engine, prompt, adapter) for prompt, adapter in choices]
    assert alone[1] != said(engine, choices[1][0])
    running = [
        engine.generate(prompt, Sampling(max_tokens=24, adapter=adapter))
        for prompt, adapter in choices
    ]
    together: list[list[int | None]] = [[], [], [], []]
    while any(len(tokens) < 24 for tokens in together):
        for tokens, generation in zip(together, running, strict=True):
            if len(tokens) < 24 and (piece := generation.poll()) is not None:
                tokens.append(piece.token)
    assert together == alone


def test_what_was_read_with_one_adapter_serves_no_other(engine: Any) -> None:
    prompt = HELDOUT.read_text(encoding="utf-8")[:300]
    plain = said(engine, prompt)
    for adapter in ("polite", ""):
        generation = engine.generate(prompt, Sampling(max_tokens=2, adapter=adapter))
        list(generation)
        cached = generation.usage.cached_prompt_tokens
        assert (cached == 0) == (adapter == "polite")
    assert said(engine, prompt) == plain


def test_a_score_is_the_models_as_it_is(engine: Any) -> None:
    before = whole(engine.score(prompts(1)[0]))
    said(engine, prompts(1)[0], "polite")
    assert whole(engine.score(prompts(1)[0])) == before


def test_its_memory_is_counted(engine: Any, demo_models: Path) -> None:
    plain = load(demo_models / "base.gguf")
    size = (demo_models / "adapter.gguf").stat().st_size
    assert engine.memory_bytes() - plain.memory_bytes() >= 2 * size
    plain.close()


def test_an_unknown_adapter_is_refused_with_those_that_there_are(engine: Any) -> None:
    with pytest.raises(InvalidInputError, match="no adapter 'rude'") as caught:
        engine.generate("Hi", Sampling(adapter="rude"))
    assert "polite, again" in caught.value.advice


def test_an_adapter_for_another_base_does_not_load(demo_models: Path, tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="adapter 'polite': the file is not a LoRA"):
        load(demo_models / "base.gguf", polite=demo_models / "finetune.gguf")


@pytest.fixture(scope="module")
def pair(demo_models: Path) -> tuple[Inspection, Inspection]:
    inspector = GgufInspector()
    return (
        inspector.inspect(demo_models / "adapter.gguf"),
        inspector.inspect(demo_models / "base.gguf"),
    )


def metadata(inspection: Inspection, **changes: str) -> Inspection:
    known = {key.replace("_", "."): value for key, value in changes.items()}
    return replace(inspection, metadata=inspection.metadata | known)


def with_tensor(inspection: Inspection, name: str, *shape: int) -> Inspection:
    tensor = TensorInfo(name, "f16", shape, 0, 0)
    kept = tuple(each for each in inspection.tensors if each.name != name)
    return replace(inspection, tensors=(*kept, tensor))


def test_a_fitting_adapter_passes(pair: tuple[Inspection, Inspection]) -> None:
    check_adapter(*pair)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda a: metadata(a, general_type="model"), "not a LoRA adapter"),
        (lambda a: metadata(a, adapter_type="dora"), "not a LoRA adapter"),
        (lambda a: metadata(a, adapter_lora_alpha="nan"), "adapter.lora.alpha"),
        (lambda a: metadata(a, adapter_lora_alpha=""), "adapter.lora.alpha"),
        (lambda a: metadata(a, adapter_alora_tokens="1"), "aLoRA"),
        (lambda a: replace(a, architecture="qwen3"), "for 'qwen3'"),
        (lambda a: replace(a, tensors=()), "no tensors"),
        (lambda a: replace(a, tensors=a.tensors[:-1]), "lacks lora_a or lora_b"),
        (
            lambda a: with_tensor(a, "blk.9.attn_q.weight.lora_a", 4, 256),
            "not a matrix of the base",
        ),
        (lambda a: with_tensor(a, "output_norm.weight.lora_a", 4, 256), "not a matrix of the base"),
        (lambda a: with_tensor(a, "blk.1.attn_q.weight.lora_a", 16, 512), "times"),
        (lambda a: with_tensor(a, "blk.1.attn_q.weight.lora_a", 8, 256), "times"),
        (lambda a: with_tensor(a, "blk.1.attn_q.weight.lora_a", 16), "not matrices"),
    ],
)
def test_what_is_no_adapter_for_this_base_is_refused_with_the_reason(
    pair: tuple[Inspection, Inspection], change: Any, reason: str
) -> None:
    adapter, base = pair
    with pytest.raises(UnsupportedModelError, match=reason):
        check_adapter(change(adapter), base)
