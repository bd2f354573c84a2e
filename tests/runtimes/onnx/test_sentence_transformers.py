"""Settings of sentence-transformers models: pooling, prompts and modules, applied or refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from tokenizers import Tokenizer

from artifact.manifest import Task
from runtimes import registry
from runtimes.base import LoadSpec
from runtimes.build import BuildRequest, VariantRequest, build
from runtimes.errors import RuntimeFault, UnsafeFileError, UnsupportedModelError
from runtimes.onnx.sentence_transformers import pool, read_settings
from runtimes.text.steps import whole

TEXTS = ["This License applies to any program", "and"]
MEAN = {"pooling_mode_mean_tokens": True}
Layout = Callable[..., Path]


@pytest.fixture
def layout(demo_models: Path, tmp_path: Path) -> Layout:
    """Return a function that writes an encoder's folder as sentence-transformers does."""

    def write(pooling: Any = None, **files: Any) -> Path:
        folder = shutil.copytree(demo_models / "embed-onnx", tmp_path / "source")
        (folder / "onnx").mkdir()
        (folder / "model.onnx").rename(folder / "onnx" / "model.onnx")
        if pooling is not None:
            (folder / "1_Pooling").mkdir()
            (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
        for name, content in files.items():
            (folder / f"{name}.json").write_text(json.dumps(content))
        return folder

    return write


def built(folder: Path, out: Path, scheme: str = "source") -> Path:
    request = BuildRequest(
        sources=(folder,),
        name="acme/e",
        version="1",
        variants=(VariantRequest("v", scheme),),
        out=out,
    )
    build(request, lambda *_: None)
    return out / "v"


def embed(folder: Path, *texts: str) -> Any:
    files = {path.name: path for path in folder.iterdir()}
    engine = registry.find("onnx").load(LoadSpec(files, Task.EMBEDDING, threads=1))
    found = whole(engine.embed(texts)).vectors
    engine.close()
    return np.stack([np.frombuffer(vector, "<f4") for vector in found])


def states(folder: Path, text: str) -> Any:
    ids = np.array([Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids])
    session = onnxruntime.InferenceSession(
        folder / "model.onnx", providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0][0]


def weighted(rows: Any) -> Any:
    weights = np.arange(1, len(rows) + 1, dtype=np.float32)[:, None]
    return (rows * weights).sum(axis=0) / weights.sum()


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        ({"pooling_mode_cls_token": True}, lambda rows: rows[0]),
        ({"pooling_mode_weightedmean_tokens": True}, weighted),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, lambda rows: rows.mean(axis=0)),
        ({"pooling_mode": "lasttoken"}, lambda rows: rows[-1]),
        (
            {"pooling_mode_cls_token": True, "pooling_mode_max_tokens": True},
            lambda rows: np.concatenate([rows[0], rows.max(axis=0)]),
        ),
    ],
    ids=lambda value: next(iter(value), "") if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("scheme", ["source", "fp32"])
def test_the_stated_pooling_is_built_in_and_applied(
    pooling: dict[str, Any],
    expected: Callable[[Any], Any],
    scheme: str,
    layout: Layout,
    tmp_path: Path,
) -> None:
    variant = built(layout(pooling | {"word_embedding_dimension": 256}), tmp_path / "out", scheme)
    for text, vector in zip(TEXTS, embed(variant, *TEXTS), strict=True):
        right = expected(states(variant, text))
        assert float(vector @ (right / np.linalg.norm(right))) == pytest.approx(1, abs=1e-5)


def test_the_default_prompt_is_put_before_every_text(layout: Layout, tmp_path: Path) -> None:
    prompts = {"prompts": {"query": "search: ", "none": ""}, "default_prompt_name": "query"}
    variant = built(layout(MEAN, config_sentence_transformers=prompts), tmp_path / "out")
    with_prompt = embed(variant, "word")
    (variant / "config_sentence_transformers.json").unlink()
    np.testing.assert_allclose(with_prompt, embed(variant, "search: word"), atol=1e-6)
    assert abs(float(with_prompt[0] @ embed(variant, "word")[0])) < 0.99


def test_texts_are_lower_case_where_the_model_says_so(layout: Layout, tmp_path: Path) -> None:
    variant = built(layout(MEAN, sentence_bert_config={"do_lower_case": True}), tmp_path / "out")
    np.testing.assert_array_equal(embed(variant, "WORD"), embed(variant, "word"))


MODULES = [
    {"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
]
DENSE = {"idx": 2, "path": "2_Dense", "type": "sentence_transformers.models.Dense"}


def test_a_normalizing_model_is_built(layout: Layout, tmp_path: Path) -> None:
    assert embed(built(layout(MEAN, modules=MODULES), tmp_path / "out"), "a").shape == (1, 256)


@pytest.mark.parametrize(
    ("pooling", "files", "reason"),
    [
        (MEAN, {"modules": [*MODULES, DENSE]}, "Dense"),
        (None, {"modules": MODULES}, "1_Pooling/config.json"),
        ({"pooling_mode_future_tokens": True}, {}, "pooling_mode_future_tokens"),
        ({"pooling_mode": "attention"}, {}, "attention"),
        ({"pooling_mode_mean_tokens": False}, {}, "none"),
        (
            MEAN | {"include_prompt": False},
            {"config_sentence_transformers": {"prompts": {"q": "x"}, "default_prompt_name": "q"}},
            "include_prompt",
        ),
        (MEAN, {"config_sentence_transformers": {"default_prompt_name": "q"}}, "default prompt"),
        (MEAN, {"modules": {"no": "list"}}, "not a valid"),
        (["no", "object"], {}, "not a valid"),
    ],
)
def test_settings_that_cannot_be_applied_are_refused_at_build(
    pooling: Any, files: dict[str, Any], reason: str, layout: Layout, tmp_path: Path
) -> None:
    with pytest.raises(RuntimeFault, match=reason) as caught:
        built(layout(pooling, **files), tmp_path / "out")
    assert caught.value.advice
    assert not (tmp_path / "out").exists()


def test_a_graph_that_pools_needs_no_modules_outside(tmp_path: Path) -> None:
    modules = tmp_path / "modules.json"
    modules.write_text(json.dumps([*MODULES, DENSE]))
    assert read_settings({"modules.json": modules}, pooled=True).modes == ("mean",)
    with pytest.raises(UnsupportedModelError):
        read_settings({"modules.json": modules}, pooled=False)
    modules.write_text("{")
    with pytest.raises(UnsafeFileError):
        read_settings({"modules.json": modules}, pooled=False)


def test_padding_is_not_pooled() -> None:
    values = np.array([[[1.0, 2.0], [3.0, 4.0], [99.0, 99.0]]], np.float32)
    mask = np.array([[1, 1, 0]])
    assert pool(values, mask, ("mean",)).tolist() == [[2, 3]]
    assert pool(values, mask, ("max",)).tolist() == [[3, 4]]
    assert pool(values, mask, ("lasttoken",)).tolist() == [[3, 4]]
    np.testing.assert_allclose(pool(values, mask, ("weightedmean",)), [[7 / 3, 10 / 3]], rtol=1e-6)
    np.testing.assert_allclose(
        pool(values, mask, ("mean_sqrt_len",)), [[4 / np.sqrt(2), 6 / np.sqrt(2)]], rtol=1e-6
    )
