"""recipe.yaml: read strictly, errors with the line and the field, and run from end to end."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from artifact.manifest import Lineage, Relation
from controlplane.cli.app import RefusedError
from controlplane.cli.command import cli
from controlplane.cli.models.recipe_file import load_recipe
from runtimes.base import Scheme
from runtimes.build import VariantRequest
from runtimes.build.goals import Degradation, Goals, Metric, Prioritize
from runtimes.fake import FakeModel, write_model

MIB = 1 << 20
FULL = """\
name: acme/tiny
version: "1.0"
source: [tiny.fake]
description: A tiny model
lineage: [distilled:acme/large@2.0]
context-length: 128
calibration: text.txt
evaluation: text.txt
candidates:
  - {scheme: q4_k_m, runtime: llama_cpp, prune-layers: [3, 4]}
  - {scheme: q2_k, name: plain, calibrate: false}
  - {scheme: int8, sparsity: 0.5}
  - {scheme: int4, block-size: 128}
search: true
goals:
  max-degradation:
    - {metric: perplexity, relative: 0.05}
    - {metric: mean_kl, absolute: 0.02}
  max-size: 4MiB
  max-memory: 1 GiB
  prioritize: quality
"""
SMALL = """\
name: acme/tiny
version: "1"
source: [tiny.fake]
evaluation: text.txt
search: true
goals:
  max-degradation: [{metric: perplexity, relative: 0.15}]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_model(tmp_path / "tiny.fake", FakeModel(padding="x" * 1000))
    (tmp_path / "text.txt").write_text("Some words to measure on.")
    return tmp_path


def recipe(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def flotilla(*arguments: Any) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def test_every_field_is_understood(folder: Path) -> None:
    request = load_recipe(recipe(folder, FULL), folder / "out")
    text = folder / "text.txt"
    assert request.sources == (folder / "tiny.fake",)
    assert (request.name, request.version) == ("acme/tiny", "1.0")
    assert request.lineage == Lineage(relation=Relation.DISTILLED, name="acme/large", version="2.0")
    assert (request.calibration, request.evaluation) == (text, text)
    assert (request.context_length, request.search, request.compare) == (128, True, True)
    assert request.variants == (
        VariantRequest(
            "q4_k_m", Scheme("q4_k_m", calibration=text, prune_layers=(3, 4)), "llama_cpp"
        ),
        VariantRequest("plain", Scheme("q2_k")),
        VariantRequest("int8", Scheme("int8", sparsity=0.5)),
        VariantRequest("int4", Scheme("int4", block_size=128)),
    )
    assert request.goals == Goals(
        max_degradation=(
            Degradation(Metric.PERPLEXITY, relative=0.05),
            Degradation(Metric.MEAN_KL, absolute=0.02),
        ),
        max_size_bytes=4 * MIB,
        max_memory_bytes=1024 * MIB,
        prioritize=Prioritize.QUALITY,
    )


def test_the_documents_example_is_sound(folder: Path) -> None:
    document = (Path(__file__).parents[4] / "docs" / "model-recipe.md").read_text()
    example = document.partition("```yaml\n")[2].partition("```")[0]
    for name in ("calibration.txt", "heldout.txt"):
        (folder / name).write_text("Some words.")
    request = load_recipe(recipe(folder, example), folder / "out")
    assert request.goals is not None
    assert request.variants


@pytest.mark.parametrize(
    ("old", "new", "line", "said"),
    [
        ("search: true", "surch: true", 1, "surch"),
        ("max-size: 4MiB", "max-sizes: 4MiB", 16, "max-sizes"),
        ("max-size: 4MiB", "max-size: huge", 19, "goals.max-size: 'huge' is not a size"),
        ("max-memory: 1 GiB", "max-memory: -1", 20, "goals.max-memory"),
        ("search: true", "search: true\nsearch: false", 15, "twice"),
        ('version: "1.0"', "version: 1.0", 2, "version"),
        ("relative: 0.05", "relative: -1", 17, "goals.max-degradation[0].relative"),
        ("relative: 0.05", "relative: 0.05, absolute: 1", 17, "relative or absolute"),
        (", relative: 0.05", "", 17, "relative or absolute"),
        ("absolute: 0.02", "relative: 0.02", 18, "can only be absolute"),
        ("metric: perplexity", "metric: charm", 17, "charm"),
        ("sparsity: 0.5", "sparsity: 1.0", 12, "sparsity"),
        ("prune-layers: [3, 4]", "prune-layers: [3, -4]", 10, "prune-layers[1]"),
        ("calibration: text.txt", "calibration: gone.txt", 7, "there is no file"),
        ("calibration: text.txt\n", "", 7, ""),
        ("evaluation: text.txt", "evaluation: gone.txt", 8, "there is no file"),
        ("distilled:", "cousin:", 5, "lineage[0]"),
        ("acme/large@2.0", "large", 5, "lineage[0]"),
        ("prioritize: quality", "prioritize: fame", 21, "fame"),
    ],
)
def test_an_error_names_the_line_and_the_field(
    old: str, new: str, line: int, said: str, folder: Path
) -> None:
    path = recipe(folder, FULL.replace(old, new))
    if not said:
        # Without calibration data, nothing is calibrated.
        request = load_recipe(path, folder / "out")
        assert all(variant.how.calibration is None for variant in request.variants)
        return
    with pytest.raises(RefusedError) as caught:
        load_recipe(path, folder / "out")
    assert f"{path}, line {line}: " in str(caught.value)
    assert said in str(caught.value)


def test_to_calibrate_takes_data(folder: Path) -> None:
    text = FULL.replace("calibration: text.txt\n", "").replace(
        "calibrate: false", "calibrate: true"
    )
    with pytest.raises(RefusedError, match="calibrate: the recipe names no calibration data"):
        load_recipe(recipe(folder, text), folder / "out")


def test_a_recipe_is_searched_shown_and_not_run_twice(folder: Path) -> None:
    path, out = recipe(folder, SMALL), folder / "out"
    first = flotilla("model", "build", "--recipe", path, "--out", out)
    assert first.exit_code == 0, first.output
    lines = [line.split() for line in first.stdout.splitlines()]
    assert lines[0] == ["TRIED", "RUNTIME", "SCHEME", "SIZE", "OUTCOME", "WHY"]
    assert (lines[1][0], lines[2][0], lines[3][0]) == ("quarter", "half", "full")
    assert ("missed" in lines[1], "kept" in lines[2], "tried" in lines[3]) == (True, True, True)
    assert "perplexity 9.6 is worse than the source's 8" in first.stdout
    # A column MEASURED comes before these only if a fake model took memory that the kernel counted.
    assert lines[-2][-4:] == ["QUALITY", "KL", "SAME", "TOP"]
    assert lines[-1][:3] == ["half", "fake", "half"]
    again = json.loads(flotilla("--json", "model", "build", "--recipe", path, "--out", out).stdout)
    assert again["unchanged"] is True
    assert again["variants"][0]["divergence"]["predictions"] == 24


def test_when_goals_are_missed_what_was_tried_is_shown(folder: Path) -> None:
    text = SMALL.replace("max-degradation: [{metric: perplexity, relative: 0.15}]", "max-size: 10")
    path, out = recipe(folder, text), folder / "out"
    result = flotilla("model", "build", "--recipe", path, "--out", out)
    assert result.exit_code == 1
    assert "none of 3 variants meets the goals" in result.stderr
    assert result.stdout.count("missed") == 3
    printed = json.loads(
        flotilla("--json", "model", "build", "--recipe", path, "--out", out).stdout
    )
    assert [one["outcome"] for one in printed["attempts"]] == ["missed"] * 3
    assert not out.exists()


def test_the_command_line_may_name_source_and_version_and_nothing_else(folder: Path) -> None:
    path, out = recipe(folder, SMALL.replace("source: [tiny.fake]\n", "")), folder / "out"
    build = ("model", "build", "--recipe", path, "--out", out)
    nothing = flotilla(*build)
    assert (nothing.exit_code, "names a source" in nothing.stderr) == (2, True)
    both = flotilla(*build, folder / "tiny.fake", "--eval", folder / "text.txt")
    assert (both.exit_code, "evaluation" in both.stderr) == (2, True)
    done = flotilla("--json", *build, folder / "tiny.fake", "--version", "7")
    assert json.loads(done.stdout)["version"] == "7"


def test_a_built_folder_says_what_it_holds(folder: Path) -> None:
    path, out = (
        recipe(folder, SMALL + "lineage: [merge:acme/a@1, merge:acme/b@2]\n"),
        folder / "out",
    )
    assert flotilla("model", "build", "--recipe", path, "--out", out).exit_code == 0
    shown = flotilla("model", "inspect", out)
    assert shown.exit_code == 0, shown.output
    assert "merge of acme/a@1, merge of acme/b@2" in shown.stdout
    assert "SAME TOP" in shown.stdout
    printed = json.loads(flotilla("--json", "model", "inspect", out).stdout)
    assert printed["also_from"] == [{"relation": "merge", "name": "acme/b", "version": "2"}]
