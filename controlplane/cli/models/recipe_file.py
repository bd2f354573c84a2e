"""recipe.yaml: the variants of a model and their goals; docs/model-recipe.md has every field.

Strict, like release.yaml. Paths in it are relative to the file.
"""

import re
from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from artifact.manifest import Label, Lineage, QualifiedName, Relation, Task, Text, Version
from artifact.sizes import parse_size
from controlplane.cli.yaml_file import YamlFile, size_at, wrong
from runtimes import registry
from runtimes.base import Scheme
from runtimes.build import BuildRequest, VariantRequest
from runtimes.build.goals import Degradation, Goals, Metric, Prioritize

_EXAMPLE: Final = "docs/model-recipe.md shows a recipe with every field."
_LINEAGE: Final = re.compile(r"(?P<relation>[a-z]+):(?P<name>[^@]+)@(?P<version>.+)")

FilePath = Annotated[str, Meta(min_length=1, max_length=4096)]
Share = Annotated[float, Meta(ge=0, le=1000)]


class CandidateFile(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, rename="kebab"):
    """A variant to try. ``calibrate``: by default wherever it applies."""

    scheme: Label
    name: Label | None = None
    runtime: Label | None = None
    calibrate: bool | None = None
    prune_layers: Annotated[
        tuple[Annotated[int, Meta(ge=0, lt=1 << 16)], ...], Meta(max_length=1024)
    ] = ()
    sparsity: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    block_size: Annotated[int, Meta(ge=1, le=1 << 16)] | None = None


class DegradationFile(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The most that a metric may be worse than the source's; one of both fields."""

    metric: Metric
    relative: Share | None = None
    absolute: Share | None = None


class GoalsFile(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, rename="kebab"):
    """Requirements for keeping a variant."""

    max_degradation: Annotated[tuple[DegradationFile, ...], Meta(max_length=8)] = ()
    max_size: int | str = 0
    max_memory: int | str = 0
    prioritize: Prioritize | None = None


class RecipeFile(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, rename="kebab"):
    """The whole of recipe.yaml."""

    name: QualifiedName
    version: Version
    source: Annotated[tuple[FilePath, ...], Meta(max_length=8)] = ()
    description: Text = ""
    lineage: Annotated[tuple[str, ...], Meta(max_length=16)] = ()
    task: Task | None = None
    context_length: Annotated[int, Meta(ge=0, le=1 << 24)] = 0
    calibration: FilePath | None = None
    evaluation: FilePath | None = None
    candidates: Annotated[tuple[CandidateFile, ...], Meta(max_length=64)] = ()
    search: bool = False
    goals: GoalsFile | None = None


def load_recipe(path: Path, out: Path) -> BuildRequest:
    """Read and check a recipe; RefusedError names the line and the field that is wrong."""
    file = YamlFile(path, _EXAMPLE)
    recipe = file.convert(RecipeFile)
    try:
        return _request(recipe, path.parent, out)
    except msgspec.ValidationError as error:
        file.refuse(error)


def parse_lineage(text: str) -> Lineage:
    """Parse RELATION:publisher/name@version; raise msgspec.ValidationError if malformed."""
    match = _LINEAGE.fullmatch(text)
    relations = ", ".join(Relation)
    if match is None or match["relation"] not in set(Relation):
        raise msgspec.ValidationError(
            f"{text!r} is not RELATION:publisher/name@version, with one of {relations}"
        )
    return msgspec.convert(match.groupdict(), Lineage)


def _request(recipe: RecipeFile, folder: Path, out: Path) -> BuildRequest:
    lineages = [_lineage(text, n) for n, text in enumerate(recipe.lineage)]
    calibration = _inside(folder, recipe.calibration, "$.calibration")
    return BuildRequest(
        sources=tuple(folder / source for source in recipe.source),
        name=recipe.name,
        version=recipe.version,
        variants=tuple(
            _candidate(one, calibration, f"$.candidates[{n}]")
            for n, one in enumerate(recipe.candidates)
        ),
        out=out,
        evaluation=_inside(folder, recipe.evaluation, "$.evaluation"),
        calibration=calibration,
        task=recipe.task,
        context_length=recipe.context_length,
        lineage=lineages[0] if lineages else None,
        also_from=tuple(lineages[1:]),
        description=recipe.description,
        compare=recipe.evaluation is not None,
        goals=_goals(recipe.goals) if recipe.goals else None,
        search=recipe.search,
    )


def _lineage(text: str, position: int) -> Lineage:
    try:
        return parse_lineage(text)
    except msgspec.ValidationError as error:
        raise wrong(str(error).partition(" - at")[0], f"$.lineage[{position}]") from error


def _inside(folder: Path, name: str | None, place: str) -> Path | None:
    if name is None:
        return None
    if not (folder / name).is_file():
        raise wrong(f"there is no file {folder / name}", place)
    return folder / name


def _candidate(one: CandidateFile, calibration: Path | None, place: str) -> VariantRequest:
    if one.calibrate and calibration is None:
        raise wrong("the recipe names no calibration data", f"{place}.calibrate")
    wanted = _calibrates(one) if one.calibrate is None else one.calibrate
    scheme = Scheme(
        one.scheme,
        calibration=calibration if wanted else None,
        prune_layers=one.prune_layers,
        sparsity=one.sparsity,
        block_size=one.block_size or 0,
    )
    return VariantRequest(one.name or one.scheme, scheme, one.runtime or "")


def _calibrates(one: CandidateFile) -> bool:
    runtimes = [one.runtime] if one.runtime else registry.names()
    return any(registry.find(name).quantizer().calibrates(one.scheme) for name in runtimes)


def _goals(goals: GoalsFile) -> Goals:
    for n, limit in enumerate(goals.max_degradation):
        if (limit.relative is None) == (limit.absolute is None):
            raise wrong("give relative or absolute", f"$.goals.max-degradation[{n}]")
        if limit.relative is not None and limit.metric in {Metric.MEAN_KL, Metric.DISAGREEMENT}:
            raise wrong(
                f"the source's {limit.metric} is 0, so it can only be absolute",
                f"$.goals.max-degradation[{n}].relative",
            )
    size_at(goals.max_size, "$.goals.max-size")
    size_at(goals.max_memory, "$.goals.max-memory")
    return Goals(
        max_degradation=tuple(
            Degradation(limit.metric, limit.relative, limit.absolute)
            for limit in goals.max_degradation
        ),
        max_size_bytes=parse_size(goals.max_size),
        max_memory_bytes=parse_size(goals.max_memory),
        prioritize=goals.prioritize,
    )
