"""Text generation specific to ONNX Runtime; tests/contract covers the rest."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from demo_models.onnx_export import write_folder
from demo_models.weights import Shape

from artifact.manifest import Task
from runtimes import registry
from runtimes.base import Engine, LoadSpec, Sampling
from runtimes.errors import ModelFaultError
from runtimes.onnx.memory import BATCH_TOKENS

LONG_PROMPT = "The import statement combines two operations; it searches for the named module. " * 4


@pytest.fixture(scope="module")
def engine(demo_models: Path) -> Iterator[Engine]:
    files = {path.name: path for path in (demo_models / "base-onnx").iterdir()}
    engine = registry.find("onnx").load(LoadSpec(files, Task.TEXT_GENERATION, threads=1))
    yield engine
    engine.close()


def test_a_long_prompt_is_read_in_steps_and_may_be_given_up(engine: Engine) -> None:
    given_up = engine.generate(LONG_PROMPT, Sampling(max_tokens=4))
    assert given_up.poll() is None
    given_up.close()
    generation = engine.generate(LONG_PROMPT, Sampling(max_tokens=4))
    steps = 1
    while generation.poll() is None:
        steps += 1
    usage = generation.usage
    assert steps == -(-usage.prompt_tokens // BATCH_TOKENS) > 1
    assert usage.generated_tokens == 1
    assert usage.prefill_seconds > 0
    assert len(list(engine.generate(LONG_PROMPT, Sampling(max_tokens=4)))) == 4


def test_a_tokenizer_of_another_model_is_refused_and_the_engine_stays_usable(
    tmp_path: Path,
) -> None:
    """Use a tokenizer of 512 tokens with a model whose vocabulary is half of that."""
    shape = Shape(dim=64, layers=1, heads=2, kv_heads=1, hidden=64, vocab=256)
    random = np.random.default_rng(0)
    weights = {
        name: random.standard_normal(dims, dtype=np.float32).astype(np.float16)
        for name, dims in shape.tensors().items()
    }
    write_folder(tmp_path / "model", shape, weights)
    files = {path.name: path for path in (tmp_path / "model").iterdir()}
    engine = registry.find("onnx").load(LoadSpec(files, Task.TEXT_GENERATION, 64, threads=1))
    with pytest.raises(ModelFaultError, match="vocabulary has 256") as caught:
        list(engine.generate("the program", Sampling(max_tokens=2)))
    assert "tokenizer" in caught.value.advice
    assert list(engine.generate("a", Sampling(max_tokens=2)))
    engine.close()
