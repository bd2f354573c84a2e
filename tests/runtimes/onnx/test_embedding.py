"""Embedding: unit vectors, independent of the other texts in a request."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer

from artifact.manifest import Task
from runtimes import registry
from runtimes.base import Embeddings, Engine, LoadSpec
from runtimes.errors import InvalidInputError, LoadError, RuntimeFault, UnsupportedModelError
from runtimes.onnx.memory import PASS_TOKENS
from runtimes.text.steps import whole

TEXTS = [
    "This License applies to any program",
    "import os",
    "and",
    "The program is licensed to you",
]


def load(folder: Path, context_length: int = 0) -> Engine:
    files = {path.name: path for path in folder.iterdir()}
    spec = LoadSpec(files, Task.EMBEDDING, context_length, threads=1)
    return registry.find("onnx").load(spec)


def rows(embeddings: Embeddings) -> NDArray[np.float32]:
    found = np.stack([np.frombuffer(vector, "<f4") for vector in embeddings.vectors])
    assert found.shape[1] == embeddings.dimensions
    return found


@pytest.fixture(scope="module")
def folder(demo_models: Path) -> Path:
    return demo_models / "embed-onnx"


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Engine]:
    engine = load(folder)
    yield engine
    engine.close()


def hidden_states(folder: Path, text: str) -> NDArray[np.float32]:
    """Return the graph's own output for one text: (tokens, width)."""
    ids = np.array([Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids])
    session = onnxruntime.InferenceSession(
        folder / "model.onnx", providers=["CPUExecutionProvider"]
    )
    (states,) = session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})
    found: NDArray[np.float32] = states[0]
    return found


def test_a_folder_of_an_encoder_is_recognised(folder: Path) -> None:
    inspection = registry.find("onnx").inspector().inspect(folder / "model.onnx")
    assert (inspection.task, inspection.context_length) == (Task.EMBEDDING, 512)


@pytest.mark.parametrize(
    ("mode", "pooled"),
    [
        ("mean", lambda states: states.mean(axis=0)),
        ("cls", lambda states: states[0]),
        ("max", lambda states: states.max(axis=0)),
        ("lasttoken", lambda states: states[-1]),
    ],
)
def test_each_text_is_pooled_as_if_alone(
    folder: Path, tmp_path: Path, mode: str, pooled: object
) -> None:
    assert callable(pooled)
    own = shutil.copytree(folder, tmp_path / mode)
    if mode != "mean":
        key = f"pooling_mode_{mode}" + ("" if mode == "lasttoken" else "_tokens")
        settings = {key.replace("cls_tokens", "cls_token"): True}
        (own / "pooling.json").write_text(json.dumps(settings))
    engine = load(own)
    found = rows(whole(engine.embed(TEXTS)))
    engine.close()
    for text, vector in zip(TEXTS, found, strict=True):
        expected = pooled(hidden_states(folder, text))
        np.testing.assert_allclose(vector, expected / np.linalg.norm(expected), atol=2e-6)


def test_a_model_that_gives_no_numbers_fails(folder: Path, tmp_path: Path) -> None:
    own = shutil.copytree(folder, tmp_path / "own")
    model = onnx.load(own / "model.onnx")
    (output,) = model.graph.output
    for node in model.graph.node:
        node.output[:] = ["before" if name == output.name else name for name in node.output]
    wrong = onnx.numpy_helper.from_array(np.array(np.nan, dtype=np.float32), "wrong")
    model.graph.initializer.append(wrong)
    model.graph.node.append(onnx.helper.make_node("Add", ["before", "wrong"], [output.name]))
    onnx.save(model, own / "model.onnx")
    engine = load(own)
    with pytest.raises(RuntimeFault, match="a vector of the length nan"):
        whole(engine.embed(TEXTS))
    engine.close()


def test_like_texts_are_nearer_than_unlike_ones(engine: Engine) -> None:
    found = rows(whole(engine.embed(TEXTS)))
    likeness = found @ found.T
    np.testing.assert_allclose(np.diag(likeness), 1, atol=1e-5)
    assert likeness[0, 3] > likeness[0, 1]


def test_tokens_are_counted_and_many_texts_take_several_passes(engine: Engine) -> None:
    one = whole(engine.embed(["word " * 150]))
    texts = ["and", *["word " * 150] * 20]
    many = whole(engine.embed(texts))
    # One step for each text that is tokenized, and one for each pass.
    assert sum(1 for _ in engine.embed(texts)) >= 20 + 20 * one.prompt_tokens // PASS_TOKENS
    assert sum(1 for _ in engine.embed(["and"])) == 0
    assert many.prompt_tokens > 20 * one.prompt_tokens
    np.testing.assert_allclose(rows(many)[20], rows(one)[0], atol=2e-6)


@pytest.mark.parametrize(
    "texts", [[], [""], ["fine", ""], ["word " * 600], ["\ud800"], ["a"] * 2049]
)
def test_what_cannot_be_embedded_is_refused(engine: Engine, texts: list[str]) -> None:
    with pytest.raises(InvalidInputError) as refused:
        whole(engine.embed(texts))
    assert refused.value.advice
    assert whole(engine.embed(["still there"])).dimensions == 256


def test_a_shorter_context_is_kept(folder: Path) -> None:
    engine = load(folder, context_length=8)
    with pytest.raises(InvalidInputError, match="the context holds 8"):
        whole(engine.embed(["one two three four five six seven eight nine"]))
    engine.close()
    with pytest.raises(UnsupportedModelError, match="closed"):
        whole(engine.embed(["one"]))


def test_a_decoder_is_no_encoder(demo_models: Path) -> None:
    with pytest.raises(LoadError, match="logits"):
        load(demo_models / "base-onnx")
