"""Building model versions: the contents of the result, and the folder after a failure."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from artifact.chunks import encode_index
from artifact.manifest import ModelVersion, Relation, Task
from runtimes import registry
from runtimes.build import BuildRequest, VariantRequest, build
from runtimes.build.chunk_index import index_files
from runtimes.errors import BuildError, QuantizeError, RuntimeFault
from runtimes.fake import FakeModel, write_model

HALF = VariantRequest("small", "half")
FULL = VariantRequest("full", "full")


def read(folder: Path) -> ModelVersion:
    return msgspec.json.decode((folder / "model.json").read_bytes(), type=ModelVersion)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def request_of(tmp_path: Path) -> Any:
    """Return a request for a fake model, with the test's changes."""
    (tmp_path / "sources").mkdir()
    (tmp_path / "text.txt").write_text("Some words to measure on.")

    def make(model: FakeModel | None = None, **changes: Any) -> BuildRequest:
        source = write_model(tmp_path / "sources" / "model.fake", model or FakeModel())
        request = BuildRequest(
            sources=(source,),
            name="acme/tiny",
            version="1",
            variants=(FULL, HALF),
            out=tmp_path / "built",
            evaluation=tmp_path / "text.txt",
        )
        return replace(request, **changes)

    return make


def run(request: BuildRequest) -> Any:
    return build(request, lambda *_: None)


def test_every_file_is_described_as_it_lies_there(built_models: Path) -> None:
    for name in ("base", "finetune", "digits"):
        folder = built_models / name
        named = {"model.json"}
        for variant in read(folder).variants:
            paths = {file.name: folder / variant.name / file.name for file in variant.files}
            indexes = index_files(registry.find(variant.runtime), paths)
            for file in variant.files:
                path = folder / variant.name / file.name
                index = indexes[file.name]
                assert file.size == path.stat().st_size
                assert file.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
                assert file.index == hashlib.sha256(encode_index(index)).hexdigest()
                named.add(f"{variant.name}/{file.name}")
        assert set(snapshot(folder)) == named


def test_quality_is_far_better_than_chance_and_hardly_lost(built_models: Path) -> None:
    variants = {variant.name: variant for variant in read(built_models / "base").variants}
    quality = {name: v.quality.value for name, v in variants.items() if v.quality}
    assert len(quality) == 6
    assert quality["gguf-f16"] < 20, "chance is 512"
    assert quality["onnx-fp32"] == pytest.approx(quality["gguf-f16"], rel=1e-3)
    assert quality["gguf-q8"] == pytest.approx(quality["gguf-f16"], rel=0.01)
    for name in ("gguf-q4", "onnx-int8", "onnx-int4"):
        assert quality["gguf-f16"] * 0.97 < quality[name] < quality["gguf-f16"] * 1.05
    metrics = {v.quality.metric for v in variants.values() if v.quality}
    assert metrics == {"perplexity"}


def test_smaller_variants_are_smaller_and_predicted_to_take_less(built_models: Path) -> None:
    variants = {variant.name: variant for variant in read(built_models / "base").variants}
    for larger, smaller in (
        ("gguf-f16", "gguf-q8"),
        ("gguf-q8", "gguf-q4"),
        ("onnx-fp32", "onnx-int8"),
        ("onnx-fp32", "onnx-int4"),
    ):
        assert variants[smaller].size_bytes < variants[larger].size_bytes
        assert variants[smaller].memory_bytes < variants[larger].memory_bytes


def test_bytes_per_token_of_context_are_recorded_and_not_overestimated(built_models: Path) -> None:
    for variant in read(built_models / "base").variants:
        runtime = registry.find(variant.runtime)
        main = built_models / "base" / variant.name / f"model.{variant.format}"
        inspection = runtime.inspector().inspect(main)
        assert variant.parameters == inspection.parameters > 0
        assert variant.decode_bytes == runtime.decode_bytes(inspection)
        assert variant.matrices > 10
        assert variant.context_bytes > 0
        for context in (16, variant.context_length // 2, variant.context_length - 1):
            saved = variant.context_bytes * (variant.context_length - context)
            needed = runtime.estimate_memory(inspection, variant.size_bytes, context)
            assert variant.memory_bytes - saved >= needed
    (digits, *_) = read(built_models / "digits").variants
    assert digits.context_bytes == 0


def test_a_classifier_is_measured_by_accuracy(built_models: Path) -> None:
    model = read(built_models / "digits")
    assert model.task is Task.CLASSIFICATION
    for variant in model.variants:
        assert variant.quality is not None
        assert (variant.quality.metric, variant.quality.higher_is_better) == ("accuracy", True)
        assert variant.quality.value > 0.95
        assert variant.quality.dataset.startswith("digits-eval.npz sha256:")
        assert variant.context_length == 0


def test_lineage_says_what_it_comes_from(built_models: Path) -> None:
    lineage = read(built_models / "finetune").lineage
    assert lineage is not None
    assert (lineage.relation, lineage.name) == (Relation.FINETUNE, "acme/tiny-llama")


def test_the_same_again_changes_nothing(request_of: Any) -> None:
    first = run(request_of())
    before = snapshot(first.directory)
    again = run(request_of())
    assert (first.unchanged, again.unchanged) == (False, True)
    assert snapshot(first.directory) == before
    assert [path.name for path in first.directory.parent.glob(".*")] == []


@pytest.mark.parametrize(
    "change",
    [
        {"version": "2"},
        {"name": "acme/other"},
        {"variants": (FULL,)},
        {"model": FakeModel(parameters=2000)},
        {"model": FakeModel(perplexity=9.0)},
    ],
)
def test_another_model_is_not_overwritten_unless_forced(
    request_of: Any, change: dict[str, Any]
) -> None:
    out = run(request_of()).directory
    before = snapshot(out)
    with pytest.raises(BuildError) as caught:
        run(request_of(**change))
    assert "--force" in caught.value.advice
    assert snapshot(out) == before
    run(request_of(**change, force=True))
    assert snapshot(out) != before
    assert [path.name for path in out.parent.glob(".*")] == []


def test_a_folder_that_is_no_model_is_never_replaced(request_of: Any) -> None:
    request = request_of(force=True)
    request.out.mkdir()
    (request.out / "thesis.txt").write_text("years of work")
    with pytest.raises(BuildError, match="not the folder of a built model"):
        run(request)
    assert (request.out / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"variants": (FULL, VariantRequest("tiny", "eighth"))}, BuildError),
        ({"variants": (FULL, VariantRequest("tiny", "half", "onnx"))}, BuildError),
        ({"variants": (FULL, VariantRequest("full", "half"))}, BuildError),
        ({"variants": (VariantRequest("../up", "half"),)}, BuildError),
        ({"variants": (VariantRequest("Upper Case", "half"),)}, BuildError),
        ({"name": "tiny"}, BuildError),
        ({"version": "a b"}, BuildError),
        ({"context_length": 513}, BuildError),
        ({"sources": (Path("/nowhere/model.fake"),)}, BuildError),
        ({"evaluation": Path("/nowhere")}, BuildError),
        ({"task": Task.CLASSIFICATION}, RuntimeFault),
    ],
)
def test_what_cannot_be_built_is_refused_and_leaves_nothing(
    request_of: Any, change: dict[str, Any], error: type[Exception]
) -> None:
    request = request_of(**change)
    before = sorted(path.name for path in request.out.parent.iterdir())
    with pytest.raises(error) as caught:
        run(request)
    assert caught.value.advice  # type: ignore[attr-defined]
    assert sorted(path.name for path in request.out.parent.iterdir()) == before


def test_a_failure_half_way_leaves_nothing(
    request_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = request_of()

    def fail(variant: str, what: str, done: float) -> None:
        if variant == HALF.name and what == "measuring" and done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(request, fail)
    assert not request.out.exists()
    assert [path.name for path in request.out.parent.glob(".*")] == []


def test_what_a_killed_build_left_is_swept_away(request_of: Any) -> None:
    request = request_of()
    # Above the kernel's limit of process ids, so that no process has it.
    dead = request.out.parent / ".built.4194999.part"
    alive = request.out.parent / ".built.1.part"
    dead.mkdir()
    alive.mkdir()
    run(request)
    assert not dead.exists()
    assert alive.exists()


def test_progress_names_each_variant_and_step(request_of: Any) -> None:
    seen: list[tuple[str, str, float]] = []
    build(request_of(), lambda *each: seen.append(each))
    assert [(name, what) for name, what, done in seen if done == 1] == [
        ("full", "quantizing to full"),
        ("full", "trying"),
        ("full", "measuring"),
        ("small", "quantizing to half"),
        ("small", "trying"),
        ("small", "measuring"),
    ]


def test_a_short_variant_needs_a_source_that_knows_it(demo_models: Path, tmp_path: Path) -> None:
    request = BuildRequest(
        sources=(demo_models / "base.gguf", demo_models / "base-onnx"),
        name="acme/tiny",
        version="1",
        variants=(VariantRequest("q8_0", "q8_0"), VariantRequest("int4", "int4")),
        out=tmp_path / "built",
    )
    model = run(request).model
    assert [variant.runtime for variant in model.variants] == ["llama_cpp", "onnx"]
    assert [variant.quality for variant in model.variants] == [None, None]
    assert {file.name for file in model.variants[1].files} == {
        "model.onnx",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_sources_of_different_tasks_need_a_word(demo_models: Path, tmp_path: Path) -> None:
    request = BuildRequest(
        sources=(demo_models / "base.gguf", demo_models / "digits.onnx"),
        name="acme/tiny",
        version="1",
        variants=(VariantRequest("q8_0", "q8_0"),),
        out=tmp_path / "built",
    )
    with pytest.raises(BuildError, match="different tasks"):
        run(request)


def test_a_variant_larger_than_its_source_is_refused_unless_forced(
    request_of: Any, built_models: Path
) -> None:
    already_small = built_models / "base" / "gguf-q4" / "model.gguf"
    request = request_of(
        sources=(already_small,), variants=(VariantRequest("q8", "q8_0"),), evaluation=None
    )
    with pytest.raises(QuantizeError, match="larger") as caught:
        run(request)
    assert "--force" in caught.value.advice
    assert not request.out.exists()
    (variant,) = run(replace(request, force=True)).model.variants
    assert variant.size_bytes > already_small.stat().st_size
