"""Builds by recipe: variants that meet the goals are kept, others are reported with the reason.

The fake runtime's schemes have the perplexities 8 (full), 8.8 (half) and 9.6 (quarter).
"""

import json
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from artifact.manifest import Lineage, ModelVersion, Relation, Task
from runtimes import registry
from runtimes.base import LoadSpec, Progress, Scheme
from runtimes.build import BuildRequest, BuildResult, GoalsMissedError, VariantRequest, build
from runtimes.build.expected import Expected
from runtimes.build.goals import Degradation, Goals, Metric, Prioritize, miss_of_size
from runtimes.build.source import open_source
from runtimes.errors import BuildError, QuantizeError, VariantFailedError
from runtimes.evaluation.compare import compare_predictions
from runtimes.evaluation.comparison import Comparison
from runtimes.evaluation.frames import EvaluationJob
from runtimes.evaluation.quality import Evaluation, predict
from runtimes.evaluation.tape import Tape
from runtimes.fake import FakeInspector, FakeModel, write_model
from runtimes.inspection.process import Inspected
from runtimes.predictions import Predictions
from runtimes.text.steps import whole

HELDOUT = Path(__file__).parents[3] / "scripts" / "demo_models" / "heldout.txt"
ALL = tuple(VariantRequest(name, name) for name in ("full", "half", "quarter"))
MEGABYTE = 1 << 20

Make = Callable[..., BuildRequest]


def degradation(metric: str, **limit: float) -> Goals:
    return Goals(max_degradation=(Degradation(Metric(metric), **limit),))


def run(request: BuildRequest) -> BuildResult:
    return build(request, lambda *_: None)


def outcomes(result: BuildResult) -> dict[str, str]:
    return {attempt.name: attempt.outcome.value for attempt in result.attempts}


def names(result: BuildResult) -> list[str]:
    return [variant.name for variant in result.model.variants]


def compare_here(
    source: EvaluationJob,
    variant: EvaluationJob,
    evaluation: Evaluation,
    progress: Progress,
    tape: Tape,
) -> Comparison:
    """Compare like runtimes.evaluation.compare, but in this process."""

    def predictions(job: EvaluationJob) -> Iterator[Predictions]:
        files = {name: Path(path) for name, path in job.files.items()}
        return predict(registry.find(job.runtime).load(LoadSpec(files, job.task)), evaluation)

    return compare_predictions(predictions(source), predictions(variant), evaluation, progress)


def inspect_here(location: str, path: Path) -> Inspected:
    """Inspect like runtimes.inspection, but in this process."""
    return Inspected(FakeInspector().inspect(path), confinement="none")


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Return a function that makes requests for a search over a fake model of about 1 MB."""
    monkeypatch.setattr("runtimes.evaluation.compare.compare", compare_here)
    monkeypatch.setattr("runtimes.build.source.inspect_apart", inspect_here)
    (tmp_path / "sources").mkdir()
    (tmp_path / "text.txt").write_text("Some words to measure on.")
    model = FakeModel(padding="x" * MEGABYTE, memory_bytes=8 * MEGABYTE)
    source = write_model(tmp_path / "sources" / "model.fake", model)

    def make(**changes: Any) -> BuildRequest:
        request = BuildRequest(
            sources=(source,),
            name="acme/tiny",
            version="1",
            variants=(),
            out=tmp_path / "built",
            evaluation=tmp_path / "text.txt",
            compare=True,
            search=True,
        )
        return replace(request, **changes)

    return make


@pytest.mark.parametrize(
    ("goals", "expected"),
    [
        # The smallest that is good enough.
        (
            degradation("perplexity", relative=0.15),
            {"quarter": "missed", "half": "kept", "full": "not tried"},
        ),
        (
            degradation("perplexity", absolute=0.5),
            {"quarter": "missed", "half": "missed", "full": "kept"},
        ),
        (
            degradation("mean_kl", absolute=0.001),
            {"quarter": "missed", "half": "kept", "full": "not tried"},
        ),
        (degradation("disagreement", absolute=0.0), {"quarter": "kept"}),
        # The best that is small enough.
        (Goals(max_size_bytes=2 * MEGABYTE), {"full": "kept"}),
        (
            Goals(max_size_bytes=MEGABYTE * 6 // 10),
            {"full": "missed", "half": "kept", "quarter": "not tried"},
        ),
        (
            Goals(max_memory_bytes=3 * MEGABYTE),
            {"full": "missed", "half": "missed", "quarter": "kept"},
        ),
        # Both limits, from the end that `prioritize` names.
        (
            replace(
                degradation("perplexity", relative=0.5),
                max_size_bytes=MEGABYTE * 6 // 10,
                prioritize=Prioritize.QUALITY,
            ),
            {"full": "missed", "half": "kept", "quarter": "not tried"},
        ),
    ],
)
def test_a_search_stops_at_the_first_that_meets_its_goals(
    goals: Goals, expected: dict[str, str], make: Make
) -> None:
    result = run(make(goals=goals))
    found = outcomes(result)
    assert list(found)[: len(expected)] == list(expected)
    assert {name: found[name] for name in expected} == expected
    assert names(result) == [name for name, outcome in expected.items() if outcome == "kept"]
    assert all(attempt.reason for attempt in result.attempts if attempt.outcome != "kept")
    folders = {path.name for path in result.directory.iterdir() if path.is_dir()}
    assert folders == set(names(result))


def test_a_small_limit_is_printed_in_its_own_unit() -> None:
    """Check that small limits keep their unit and are not rounded to zero."""
    assert miss_of_size(Goals(max_memory_bytes=1024), 1, 5 << 20) == (
        "it needs 5.00 MiB of memory, more than max-memory 1.00 KiB"
    )
    assert miss_of_size(Goals(max_size_bytes=1000), 1001) == "1001 B is more than max-size 1000 B"


def test_what_was_measured_is_in_the_manifest(make: Make) -> None:
    (variant,) = run(make(goals=degradation("perplexity", relative=0.15))).model.variants
    assert variant.quality is not None
    assert variant.quality.value == pytest.approx(8.8, rel=1e-3)
    assert variant.divergence is not None
    assert variant.divergence.predictions == 24


def test_without_a_search_all_that_meet_are_kept(make: Make) -> None:
    goals = degradation("perplexity", relative=0.15)
    result = run(make(search=False, variants=ALL, goals=goals))
    assert names(result) == ["full", "half"]
    assert outcomes(result)["quarter"] == "missed"
    assert "perplexity 9.6 is worse than the source's 8 by more than 0.15" in (
        result.attempts[-1].reason
    )


def test_without_goals_all_are_kept_and_compared(make: Make) -> None:
    result = run(make(search=False, variants=ALL))
    assert names(result) == ["full", "half", "quarter"]
    kls = [v.divergence.mean_kl for v in result.model.variants if v.divergence]
    assert kls == sorted(kls)  # type: ignore[type-var] # none is missing: these are distributions
    assert kls[0] == 0


def test_when_nothing_meets_them_nothing_is_left_and_the_misses_are_reported(make: Make) -> None:
    request = make(goals=Goals(max_size_bytes=1000))
    with pytest.raises(GoalsMissedError, match="none of 3") as caught:
        run(request)
    assert len(caught.value.attempts) == 3
    assert "max-size" in str(caught.value)
    assert not request.out.exists()
    assert [path.name for path in request.out.parent.glob(".*")] == []


def test_the_report_says_what_was_tried(make: Make) -> None:
    result = run(make(goals=degradation("perplexity", relative=0.15)))
    report = json.loads((result.directory / "report.json").read_text())
    assert [(one["name"], one["outcome"]) for one in report["attempts"]] == [
        ("quarter", "missed"),
        ("half", "kept"),
        ("full", "not tried"),
    ]
    assert report["attempts"][0]["variant"]["quality"]["value"] == pytest.approx(9.6, rel=1e-3)


def test_the_same_again_is_reused_without_making_anything(make: Make) -> None:
    request = make(goals=degradation("perplexity", relative=0.15))
    first = run(request)
    seen: list[str] = []
    again = build(request, lambda name, what, done: seen.append(what))
    assert (first.unchanged, again.unchanged) == (False, True)
    assert again.model == first.model
    assert seen == []


@pytest.mark.parametrize("damage", ["gone", "cut", "flipped"])
def test_a_partial_output_of_the_same_is_made_again(damage: str, make: Make) -> None:
    request = make(goals=degradation("perplexity", relative=0.15))
    first = run(request)
    path = first.directory / "half" / "model.fake"
    data = path.read_bytes()
    match damage:
        case "gone":
            path.unlink()
        case "cut":
            path.write_bytes(data[:-1])
        case _:
            path.write_bytes(data[:-1] + b" ")
    again = run(request)
    assert not again.unchanged
    assert (again.directory / "half" / "model.fake").read_bytes() == data
    assert [v.files for v in again.model.variants] == [v.files for v in first.model.variants]


@pytest.mark.parametrize("change", ["source", "evaluation", "goals", "lineage"])
def test_other_inputs_are_another_build_which_takes_force(change: str, make: Make) -> None:
    request = make(goals=degradation("perplexity", relative=0.15))
    run(request)
    match change:
        case "source":
            model = FakeModel(padding="y" * MEGABYTE, memory_bytes=8 * MEGABYTE)
            write_model(request.sources[0], model)
        case "evaluation":
            assert request.evaluation is not None
            request.evaluation.write_text("Other words to measure on.")
        case "goals":
            request = replace(request, goals=degradation("perplexity", relative=0.14))
        case _:
            lineage = Lineage(relation=Relation.DISTILLED, name="acme/large", version="1")
            request = replace(request, lineage=lineage)
    with pytest.raises(BuildError, match="contains another"):
        run(request)
    assert not run(replace(request, force=True)).unchanged


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, "needs goals"),
        ({"goals": Goals()}, "set no limit"),
        ({"goals": Goals(max_size_bytes=1, prioritize=Prioritize.SIZE)}, "limit of quality"),
        ({"goals": degradation("perplexity", relative=0.1), "evaluation": None}, "comparing"),
        ({"goals": degradation("accuracy", relative=0.1)}, "accuracy cannot be measured"),
    ],
)
def test_goals_that_cannot_be_judged_are_refused(
    changes: dict[str, Any], reason: str, make: Make
) -> None:
    request = make(**changes)
    with pytest.raises(BuildError, match=reason) as caught:
        run(request)
    assert caught.value.advice
    assert not request.out.exists()


def test_a_scheme_that_does_not_apply_is_skipped_with_its_reason(make: Make) -> None:
    candidates = (VariantRequest("wide", Scheme("half", sparsity=0.5)), *ALL)
    request = make(variants=candidates, goals=degradation("perplexity", relative=0.15))
    result = run(request)
    assert outcomes(result)["half"] == "kept"
    refused = next(attempt for attempt in result.attempts if attempt.name == "wide")
    assert (refused.outcome, "sparsity" in refused.reason) == ("refused", True)
    for listed in (
        replace(request, search=False, force=True),
        replace(request, search=False, force=True, goals=None, evaluation=None),
    ):
        result = run(listed)
        refused = next(attempt for attempt in result.attempts if attempt.name == "wide")
        assert (refused.outcome, "sparsity" in refused.reason) == ("refused", True)
        assert "half" in {variant.name for variant in result.model.variants}
    alone = replace(listed, variants=candidates[:1], out=request.out.with_name("alone"))
    with pytest.raises(QuantizeError, match="sparsity"):
        run(alone)
    twice = replace(alone, variants=(candidates[0], VariantRequest("b", candidates[0].how)))
    with pytest.raises(GoalsMissedError, match=r"none of 2 variants can be made; b: .*sparsity"):
        run(twice)
    assert not alone.out.exists()


def test_a_full_disk_ends_the_build_instead_of_skipping_every_scheme(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path) -> Any:
        return shutil._ntuple_diskusage(1 << 30, 1 << 30, path.exists())  # type: ignore[attr-defined]

    monkeypatch.setattr("runtimes.build.variants.shutil.disk_usage", full)
    wide = VariantRequest("wide", Scheme("half", sparsity=0.5))
    request = make(variants=(wide, *ALL), search=False)
    with pytest.raises(BuildError, match="1 bytes are free") as caught:
        run(request)
    assert "Free space" in caught.value.advice


def test_what_cannot_be_evaluated_is_skipped_with_its_reason(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compare(source: EvaluationJob, variant: EvaluationJob, *others: Any) -> Comparison:
        if "quarter" in variant.files["model.fake"]:
            raise VariantFailedError("the variant: its process was ended by SIGSEGV")
        return compare_here(source, variant, *others)

    monkeypatch.setattr("runtimes.evaluation.compare.compare", compare)
    request = make(variants=ALL, goals=degradation("perplexity", relative=0.15))
    result = run(request)
    assert outcomes(result) == {"quarter": "failed", "half": "kept", "full": "not tried"}
    assert "SIGSEGV" in result.attempts[0].reason
    assert not (result.directory / "quarter").exists()
    listed = run(replace(request, search=False, force=True))
    assert outcomes(listed)["quarter"] == "failed"
    alone = replace(request, variants=ALL[-1:], force=True, search=False)
    with pytest.raises(VariantFailedError, match="SIGSEGV"):
        run(alone)


def test_each_source_of_real_models_finds_its_own(demo_models: Path, tmp_path: Path) -> None:
    """Find the smallest GGUF and ONNX variants within 0.05 nats of the demo's model."""
    text, calibration = tmp_path / "text.txt", tmp_path / "calibration.txt"
    held = HELDOUT.read_text(encoding="utf-8")
    text.write_text(held[:1500], encoding="utf-8")
    calibration.write_text(held[10_000:13_000], encoding="utf-8")
    schemes = ("q2_k", "q4_k_m", "q8_0", "int4")
    request = BuildRequest(
        sources=(demo_models / "base.gguf", demo_models / "base-onnx"),
        name="acme/tiny",
        version="1",
        variants=tuple(
            VariantRequest(name, Scheme(name, calibration=calibration if "_k" in name else None))
            for name in schemes
        ),
        out=tmp_path / "built",
        evaluation=text,
        compare=True,
        goals=degradation("mean_kl", absolute=0.05),
        search=True,
    )
    result = run(request)
    assert outcomes(result) == {
        "q2_k": "missed",
        "q4_k_m": "kept",
        "q8_0": "not tried",
        "int4": "kept",
    }
    for variant in result.model.variants:
        assert variant.divergence is not None
        assert variant.divergence.mean_kl is not None
        assert variant.divergence.mean_kl < 0.05
        assert variant.measured_memory_bytes > variant.size_bytes
    assert result.model.variants[0].recipe.startswith("calibrated on calibration.txt sha256:")
    held_model = msgspec.json.decode(
        (result.directory / "model.json").read_bytes(), type=ModelVersion
    )
    assert held_model == result.model


def test_an_embedding_model_is_measured_beside_its_source(
    demo_models: Path, tmp_path: Path
) -> None:
    """Compare embeddings with or without ``compare`` in the request."""
    texts = tmp_path / "texts.txt"
    lines = [line for line in HELDOUT.read_text(encoding="utf-8").splitlines() if line.strip()]
    texts.write_text("\n".join(lines[:40]), encoding="utf-8")
    request = BuildRequest(
        sources=(demo_models / "embed-onnx", demo_models / "embed.gguf"),
        name="acme/encoder",
        version="1",
        variants=(VariantRequest("int4", "int4"), VariantRequest("q8_0", "q8_0")),
        out=tmp_path / "built",
        evaluation=texts,
    )
    int4, q8 = run(request).model.variants
    assert int4.quality is not None
    assert q8.quality is not None
    assert int4.quality.metric == q8.quality.metric == "cosine_similarity"
    assert 0.9 < int4.quality.value < 0.999 < q8.quality.value <= 1
    assert int4.divergence is q8.divergence is None
    check = msgspec.json.decode((tmp_path / "built" / "expected.json").read_bytes(), type=Expected)
    assert [one.text for one in check.expected] == lines[:8]
    engine = registry.find("onnx").load(
        LoadSpec(open_source(demo_models / "embed-onnx").files, Task.EMBEDDING, 0)
    )
    vectors = whole(engine.embed(lines[:8])).vectors
    engine.close()
    for one, vector in zip(check.expected, vectors, strict=True):
        assert one.vector == pytest.approx(struct.unpack("<256f", vector), abs=1e-6)
    goals = degradation("cosine_similarity", absolute=0.001)
    result = run(replace(request, goals=goals, force=True))
    assert outcomes(result) == {"int4": "missed", "q8_0": "kept"}
    assert "cosine_similarity 0.99" in result.attempts[0].reason
    with pytest.raises(GoalsMissedError, match="mean_kl cannot be measured"):
        run(replace(request, goals=degradation("mean_kl", absolute=1), force=True))
