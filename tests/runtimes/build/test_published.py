"""The scheme ``source``: models deployed as they were published, whatever their quantization."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from gguf_files import mixture

from artifact.manifest import ModelVersion, Task, Variant
from runtimes import registry
from runtimes.base import LoadSpec, Sampling, Scheme
from runtimes.build import BuildRequest, VariantRequest, build
from runtimes.errors import BuildError, QuantizeError

HELDOUT = Path(__file__).parents[3] / "scripts" / "demo_models" / "heldout.txt"


def request(out: Path, *sources: Path, **changes: Any) -> BuildRequest:
    asked = BuildRequest(sources=sources, name="acme/m", version="1", variants=(), out=out)
    return replace(asked, **changes)


def run(asked: BuildRequest) -> ModelVersion:
    return build(asked, lambda *_: None).model


@pytest.fixture(scope="module")
def downloaded(demo_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a Q4_K_M GGUF, an fp16 ONNX with its tokenizer, and an int8 ONNX."""
    folder = tmp_path_factory.mktemp("downloaded")

    def quantize(source: Path, scheme: str, destination: Path) -> None:
        runtime = registry.find_by_format(source.suffix[1:])
        runtime.quantizer().quantize(source, Scheme(scheme), destination, lambda *_: None)

    quantize(demo_models / "base.gguf", "q4_k_m", folder / "tiny-Q4_K_M.gguf")
    shutil.copytree(demo_models / "base-onnx", folder / "fp16")
    quantize(demo_models / "base-onnx" / "model.onnx", "fp16", folder / "fp16" / "model.onnx")
    quantize(demo_models / "digits.onnx", "int8", folder / "digits-int8.onnx")
    return folder


def only(model: ModelVersion) -> Variant:
    (variant,) = model.variants
    return variant


def test_a_quantized_gguf_is_deployed_as_it_is(downloaded: Path, tmp_path: Path) -> None:
    source = downloaded / "tiny-Q4_K_M.gguf"
    variant = only(run(request(tmp_path / "out", source)))
    assert (variant.name, variant.quantization, variant.recipe) == (
        "source",
        "q4_k_m",
        "as published",
    )
    assert (tmp_path / "out/source/model.gguf").read_bytes() == source.read_bytes()
    assert variant.weight_bytes["q4_k"] > variant.weight_bytes["q6_k"] > 0
    assert sum(variant.weight_bytes.values()) <= variant.size_bytes
    assert variant.warnings == ()
    assert variant.parameters > 0


def test_an_fp16_onnx_folder_is_deployed_as_it_is_and_generates(
    downloaded: Path, tmp_path: Path
) -> None:
    variant = only(run(request(tmp_path / "out", downloaded / "fp16", evaluation=None)))
    assert variant.quantization == "fp16"
    assert variant.weight_bytes["fp16"] > variant.size_bytes / 2
    assert variant.operators["MatMul"] > 10
    folder = tmp_path / "out/source"
    for path in (downloaded / "fp16").iterdir():
        if path.name in {"model.onnx", "tokenizer.json", "config.json"}:
            assert (folder / path.name).read_bytes() == path.read_bytes()
    files = {path.name: path for path in folder.iterdir()}
    engine = registry.find("onnx").load(LoadSpec(files, Task.TEXT_GENERATION, threads=1))
    assert "".join(piece.text for piece in engine.generate("The", Sampling(max_tokens=4)))
    engine.close()


def test_a_file_of_a_repository_takes_the_tokenizer_above_it(
    downloaded: Path, tmp_path: Path
) -> None:
    repository = tmp_path / "repository"
    shutil.copytree(downloaded / "fp16", repository)
    (repository / "onnx").mkdir()
    for name in ("model.onnx", "model_fp16.onnx"):
        shutil.copy(downloaded / "fp16" / "model.onnx", repository / "onnx" / name)
    (repository / "model.onnx").unlink()
    variant = only(run(request(tmp_path / "out", repository / "onnx" / "model_fp16.onnx")))
    assert {file.name for file in variant.files} >= {"model.onnx", "tokenizer.json", "config.json"}
    assert variant.trial is not None


def test_several_sources_as_published_are_named_after_their_runtimes(
    downloaded: Path, tmp_path: Path
) -> None:
    asked = request(tmp_path / "out", downloaded / "tiny-Q4_K_M.gguf", downloaded / "fp16")
    assert [one.name for one in run(asked).variants] == ["source-llama_cpp", "source-onnx"]


def test_a_published_model_is_measured_like_any_other(downloaded: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(HELDOUT.read_text(encoding="utf-8")[:1000], encoding="utf-8")
    asked = request(
        tmp_path / "out",
        downloaded / "tiny-Q4_K_M.gguf",
        evaluation=text,
        compare=True,
        variants=(VariantRequest("as-is", "source"), VariantRequest("small", "q2_k")),
    )
    as_is, small = run(asked).variants
    assert as_is.divergence is not None
    assert small.divergence is not None
    assert as_is.divergence.mean_kl == 0
    assert as_is.quality is not None
    assert (as_is.quality.metric, as_is.divergence.same_top) == ("perplexity", 1)
    assert (small.divergence.mean_kl or 0) > 0


def test_quantizing_again_leaves_a_warning_in_the_manifest(
    downloaded: Path, demo_models: Path, tmp_path: Path
) -> None:
    asked = request(tmp_path / "out", downloaded / "tiny-Q4_K_M.gguf")
    variant = only(run(replace(asked, variants=(VariantRequest("again", "q2_k"),))))
    assert "quantized again, from q4_k_m to q2_k" in variant.warnings[0]
    first = request(tmp_path / "first", demo_models / "base.gguf")
    assert only(run(replace(first, variants=(VariantRequest("q4", "q4_0"),)))).warnings == ()


def test_external_weights_are_copied_under_their_names(demo_models: Path, tmp_path: Path) -> None:
    model = onnx.load(demo_models / "digits.onnx")
    (tmp_path / "in").mkdir()
    onnx.save(
        model,
        tmp_path / "in" / "digits.onnx",
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    variant = only(run(request(tmp_path / "out", tmp_path / "in" / "digits.onnx")))
    assert {file.name for file in variant.files} == {"model.onnx", "weights.bin"}
    files = {file.name: tmp_path / "out/source" / file.name for file in variant.files}
    registry.find("onnx").load(LoadSpec(files, Task.TENSOR, threads=1)).close()
    onnx.save(
        onnx.load(demo_models / "digits.onnx"),
        tmp_path / "in" / "other.onnx",
        save_as_external_data=True,
        location="model.onnx",
        size_threshold=0,
    )
    with pytest.raises(BuildError, match="keeps weights in") as caught:
        run(request(tmp_path / "no", tmp_path / "in" / "other.onnx"))
    assert caught.value.advice


def test_the_scheme_takes_no_options(downloaded: Path, tmp_path: Path) -> None:
    scheme = Scheme("source", sparsity=0.5)
    asked = request(tmp_path / "out", downloaded / "digits-int8.onnx")
    with pytest.raises(QuantizeError, match="sparsity"):
        run(replace(asked, variants=(VariantRequest("x", scheme),)))
    assert not (tmp_path / "out").exists()


def test_a_quantized_classifier_as_published_keeps_its_accuracy(
    downloaded: Path, demo_models: Path, tmp_path: Path
) -> None:
    evaluation = demo_models / "digits-eval.npz"
    asked = request(tmp_path / "out", downloaded / "digits-int8.onnx", evaluation=evaluation)
    variant = only(run(asked))
    assert variant.quality is not None
    assert variant.quality.value > 0.9
    assert variant.quantization == "int8"
    assert variant.input_shapes == {"image": (1, 64)}
    assert variant.trial is not None
    assert variant.trial.inputs.startswith("digits-eval.npz")
    assert len(np.load(evaluation)["labels"]) > 100


def test_a_scheme_that_is_impossible_for_a_mixture_is_skipped(
    demo_models: Path, tmp_path: Path
) -> None:
    """Experts have no importance, without which llama.cpp refuses iq2_xxs."""
    source = mixture(demo_models / "base.gguf", tmp_path / "mixture.gguf")
    text = tmp_path / "text.txt"
    text.write_text(HELDOUT.read_text(encoding="utf-8")[:4000], encoding="utf-8")
    tiny = VariantRequest("tiny", Scheme("iq2_xxs", calibration=text))
    asked = request(tmp_path / "out", source, variants=(tiny, VariantRequest("q4", "q4_0")))
    result = build(asked, lambda *_: None)
    assert [variant.name for variant in result.model.variants] == ["q4"]
    refused = next(attempt for attempt in result.attempts if attempt.name == "tiny")
    assert refused.outcome == "refused"
    assert "iq2_xxs" in refused.reason
