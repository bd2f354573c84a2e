"""Behaviour specific to llama.cpp; the shared contract is in tests/contract."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gguf
import numpy as np
import pytest
from steps import in_turn

from artifact.manifest import Task
from runtimes import registry
from runtimes.base import Engine, LoadSpec, Sampling
from runtimes.errors import LoadError, RuntimeFault, UnsupportedModelError
from runtimes.llama_cpp.native import Model
from runtimes.text.steps import whole


def load(path: Path, task: Task = Task.TEXT_GENERATION, context_length: int = 0) -> None:
    registry.find("llama_cpp").load(LoadSpec({path.name: path}, task, context_length)).close()


def test_a_sound_file_that_llama_cpp_cannot_run_is_refused_with_its_reason(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "abacus")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(LoadError, match="unknown model architecture: 'abacus'"):
        load(path)


def test_other_tasks_are_refused(demo_models: Path) -> None:
    with pytest.raises(LoadError, match="classification"):
        load(demo_models / "base.gguf", Task.CLASSIFICATION)


def test_a_model_that_does_not_say_how_it_pools_embeds_nothing(demo_models: Path) -> None:
    with pytest.raises(LoadError, match="pooling_type"):
        load(demo_models / "base.gguf", Task.EMBEDDING)
    load(demo_models / "embed.gguf", Task.EMBEDDING)


def test_a_model_that_gives_no_numbers_fails(
    demo_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = np.array([np.nan, 1], np.float32)
    monkeypatch.setattr(Model, "embed", lambda *_: wrong)
    spec = LoadSpec({"m": demo_models / "embed.gguf"}, Task.EMBEDDING, 64, threads=1)
    encoder = registry.find("llama_cpp").load(spec)
    with pytest.raises(RuntimeFault, match="a vector of the length nan"):
        whole(encoder.embed(["a text"]))
    encoder.close()


def test_nothing_of_it_reaches_stderr(demo_models: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load(demo_models / "base.gguf", context_length=64)
    assert capfd.readouterr().err == ""


def test_an_encoder_reads_a_text_per_step(demo_models: Path) -> None:
    spec = LoadSpec({"m": demo_models / "embed.gguf"}, Task.EMBEDDING, 64, threads=1, parallel=2)
    encoder = registry.find("llama_cpp").load(spec)
    # Each text takes two steps, to count its tokens and to embed it, except a single one.
    assert sum(1 for _ in encoder.embed(["one", "two", "three"])) == 4
    assert sum(1 for _ in encoder.embed(["one"])) == 0
    assert encoder.parallel == 2
    encoder.close()


@pytest.fixture(scope="module")
def engine(demo_models: Path) -> Iterator[Engine]:
    spec = LoadSpec({"m": demo_models / "base.gguf"}, Task.TEXT_GENERATION, 256, threads=1)
    engine = registry.find("llama_cpp").load(spec)
    yield engine
    engine.close()


def tokens(engine: Engine, prompt: str, count: int = 16) -> list[int | None]:
    return [piece.token for piece in engine.generate(prompt, Sampling(max_tokens=count))]


LONG_PROMPT = "The import statement combines two operations; it searches for the named module, " * 2


def test_a_prompt_that_was_read_before_is_not_read_again(engine: Engine) -> None:
    first = engine.generate(LONG_PROMPT, Sampling(max_tokens=4))
    text = [piece.token for piece in first]
    again = engine.generate(LONG_PROMPT, Sampling(max_tokens=4))
    assert [piece.token for piece in again] == text
    assert first.usage.cached_prompt_tokens == 0
    assert again.usage.cached_prompt_tokens == again.usage.prompt_tokens - 1


def test_texts_that_do_not_fit_at_once_all_come(engine: Engine) -> None:
    """Need 640 cells of 256: four prompts of 60 tokens with 100 generated tokens each."""
    prompts = [f"{n} {LONG_PROMPT}" for n in range(4)]
    alone = [tokens(engine, prompt, 100) for prompt in prompts]
    running = [engine.generate(prompt, Sampling(max_tokens=100)) for prompt in prompts]
    together: list[list[int | None]] = [[], [], [], []]
    while not all(len(some) == 100 for some in together):
        for said, generation in zip(together, running, strict=True):
            if len(said) < 100 and (piece := generation.poll()) is not None:
                said.append(piece.token)
    assert together == alone


def test_generations_may_be_read_from_different_threads(engine: Engine) -> None:
    prompts = [f"{n} The import statement" for n in range(4)]
    alone = [tokens(engine, prompt) for prompt in prompts]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda prompt: tokens(engine, prompt), prompts)) == alone


def test_a_score_between_two_tokens_disturbs_neither(engine: Engine) -> None:
    alone, score = tokens(engine, LONG_PROMPT), whole(engine.score(LONG_PROMPT))
    generation = engine.generate(LONG_PROMPT, Sampling(max_tokens=16))
    said = [next(generation).token]
    assert whole(engine.score(LONG_PROMPT)) == score
    assert said + [piece.token for piece in generation] == alone


def test_generations_stand_still_while_texts_are_scored_one_after_another(
    engine: Engine,
) -> None:
    texts = [LONG_PROMPT * 4, f"It binds the results. {LONG_PROMPT * 3}"]
    alone = [whole(engine.score(text)) for text in texts]
    text = tokens(engine, LONG_PROMPT)
    generation = engine.generate(LONG_PROMPT, Sampling(max_tokens=16))
    said = [next(generation).token]
    first, second = map(engine.score, texts)
    next(first)
    assert generation.poll() is None
    assert in_turn(second, first) == [alone[1], alone[0]]
    assert said + [piece.token for piece in generation] == text


@pytest.mark.parametrize("goes_on", [True, False])
def test_a_model_that_is_closed_while_a_text_is_scored_touches_no_memory_any_more(
    goes_on: bool,
    demo_models: Path,
) -> None:
    spec = LoadSpec({"m": demo_models / "base.gguf"}, Task.TEXT_GENERATION, 64, threads=1)
    closing = registry.find("llama_cpp").load(spec)
    steps = closing.score(LONG_PROMPT * 4)
    next(steps)
    closing.close()
    if goes_on:
        with pytest.raises(UnsupportedModelError, match="the model is closed"):
            whole(steps)
    steps.close()


def test_one_more_than_fit_ends_the_oldest(engine: Engine) -> None:
    oldest = engine.generate("a", Sampling(max_tokens=50))
    next(oldest)
    running = [engine.generate("b", Sampling(max_tokens=2)) for _ in range(engine.parallel)]
    assert list(oldest) == []
    assert all(len(list(generation)) == 2 for generation in running)
