"""Rules beyond the schema: names are unique, and every name that is used is defined."""

from collections.abc import Iterable, Iterator

from artifact.errors import InvalidManifestError
from artifact.manifest.models import ModelVersion, Relation, Task
from artifact.manifest.policy import check_policy, refuse_idle_exclusions
from artifact.manifest.probation import (
    CompletionCheck,
    EmbeddingCheck,
    PerplexityCheck,
    TensorCheck,
)
from artifact.manifest.release import Component, Release
from artifact.manifest.routes import Pipeline, Route, Target
from artifact.manifest.version import parse_version

_CHECKS = {
    Task.TEXT_GENERATION: (PerplexityCheck, CompletionCheck),
    Task.EMBEDDING: (EmbeddingCheck,),
    Task.CLASSIFICATION: (TensorCheck,),
    Task.TENSOR: (TensorCheck,),
}


def check_release(release: Release) -> None:
    """Raise InvalidManifestError if a release contradicts itself."""
    _refuse_repeats("slot", [component.slot for component in release.components])
    _refuse_repeats("route", [route.name for route in release.routes])
    _refuse_repeats("check", [check.name for check in release.probation.checks])
    components = {component.slot: component for component in release.components}
    for what, slot in _named_slots(release):
        if slot not in components:
            raise InvalidManifestError(
                f"{what} names the unknown slot {slot!r}",
                advice=f"Use one of the release's slots: {', '.join(components)}.",
            )
    refuse_idle_exclusions(release)
    for component in release.components:
        _check_component(component)
        check_policy(component, release.selection)
    for route in release.routes:
        _check_route(route, components)


def check_publishable(release: Release) -> None:
    """Raise InvalidManifestError for a release that must not be published.

    These are a version without an order, an impossible lineage, and a check that no model of its
    slot's task can pass. Devices do not apply these rules, so that releases signed before a rule
    existed stay readable.
    """
    if parse_version(release.version) is None:
        raise InvalidManifestError(
            f"the version {release.version!r} of {release.name} is not a semantic version",
            advice="Use MAJOR.MINOR.PATCH, such as 1.4.0 or 2.0.0-rc.1 (semver.org).",
        )
    for component in release.components:
        check_lineage(component.model)
    _check_probation(release)


def check_lineage(model: ModelVersion) -> None:
    """Raise InvalidManifestError for a model derived from itself, or unmerged from several."""
    bases = [*([model.lineage] if model.lineage else []), *model.also_from]
    _refuse_repeats(f"base of {model.reference}", [base.reference for base in bases])
    if model.reference in {base.reference for base in bases}:
        raise InvalidManifestError(
            f"{model.reference} comes from itself", advice="Name the version that it was made of."
        )
    if len(bases) > 1 and any(base.relation is not Relation.MERGE for base in bases):
        raise InvalidManifestError(
            f"{model.reference} comes from {len(bases)} bases and is no merge of them",
            advice="Name one base, or merge:publisher/name@version for each of several.",
        )
    if model.also_from and model.lineage is None:
        raise InvalidManifestError(
            f"{model.reference} has other bases, and no first one",
            advice="Name the first of the merged models as its lineage.",
        )


def _check_probation(release: Release) -> None:
    tasks = {component.slot: component.model.task for component in release.components}
    for check in release.probation.checks:
        task = tasks[check.slot]
        if not isinstance(check, _CHECKS[task]):
            raise InvalidManifestError(
                f"check {check.name!r} is for slot {check.slot!r}, whose model does {task}",
                advice="Models that generate text take checks of perplexity and completion, "
                "embedding models of embeddings, and all others of tensors.",
            )
        if isinstance(check, EmbeddingCheck):
            _check_expected(check)


def _check_expected(check: EmbeddingCheck) -> None:
    vectors = [one.vector for one in check.expected]
    if len({len(vector) for vector in vectors}) > 1 or not all(any(vector) for vector in vectors):
        raise InvalidManifestError(
            f"check {check.name!r} expects vectors of zeros, or of several lengths",
            advice="Take what one model gives the texts.",
        )


def _named_slots(release: Release) -> Iterator[tuple[str, str]]:
    for route in release.routes:
        _refuse_two_kinds(route)
        for target in route.targets():
            yield f"route {route.name!r}", target.slot
        if route.pipeline is not None:
            yield f"route {route.name!r}", route.pipeline.embed
            yield f"route {route.name!r}", route.pipeline.classify
    for check in release.probation.checks:
        yield f"check {check.name!r}", check.slot
    for slot in release.selection.pins:
        yield f"pin {slot!r}", slot
    for slot in release.selection.slots:
        yield f"selection of slot {slot!r}", slot
    for exclusion in release.selection.exclude:
        if exclusion.slot:
            yield f"exclusion of {exclusion}", exclusion.slot


def _refuse_two_kinds(route: Route) -> None:
    kinds = [bool(route.slot), bool(route.split), bool(route.cascade), bool(route.pipeline)]
    if sum(kinds) != 1 or (route.adapter and not route.slot):
        raise InvalidManifestError(
            f"route {route.name!r} does not say where it leads, or says it twice",
            advice="Give it exactly one of: slot (and perhaps adapter), split, cascade, pipeline.",
        )


def _check_component(component: Component) -> None:
    names = [variant.name for variant in component.model.variants]
    _refuse_repeats(f"variant of {component.model.reference}", names)
    _refuse_repeats(f"adapter of slot {component.slot}", [a.name for a in component.adapters])
    if component.adapters and component.model.task is not Task.TEXT_GENERATION:
        raise InvalidManifestError(
            f"slot {component.slot!r} has adapters, and its model does {component.model.task}",
            advice="Only models that generate text take adapters.",
        )
    for adapter in component.adapters:
        for variant in component.model.variants:
            # A LoRA is trained on exact weights: on another quantization of the model its result is
            # unknown, so the binding is by digest.
            if not {file.sha256 for file in variant.files}.intersection(adapter.bases):
                raise InvalidManifestError(
                    f"the adapter {adapter.name!r} of slot {component.slot!r} is bound to other "
                    f"files than those of variant {variant.name!r}",
                    advice="Build the adapter for this base, or leave the variant out.",
                )


def _check_route(route: Route, components: dict[str, Component]) -> None:
    tasks = {components[target.slot].model.task for target in route.targets()}
    for target in route.targets():
        _check_adapter(route, target, components[target.slot])
    if route.pipeline is not None:
        _check_pipeline(route.name, route.pipeline, components)
    if (route.cascade or route.pipeline) and tasks != {Task.TEXT_GENERATION}:
        raise InvalidManifestError(
            f"route {route.name!r} leads to {', '.join(sorted(tasks))}",
            advice="A cascade's steps and a pipeline's targets have to generate text.",
        )
    if len(tasks) > 1:
        raise InvalidManifestError(
            f"route {route.name!r} splits between different tasks: {', '.join(sorted(tasks))}",
            advice="Let it lead to models of one task.",
        )


def _check_adapter(route: Route, target: Target, component: Component) -> None:
    names = [adapter.name for adapter in component.adapters]
    if target.adapter and target.adapter not in names:
        raise InvalidManifestError(
            f"route {route.name!r} names the unknown adapter {target.adapter!r}",
            advice=f"Slot {target.slot!r} has: {', '.join(names) or 'none'}.",
        )


def _check_pipeline(name: str, pipeline: Pipeline, components: dict[str, Component]) -> None:
    for slot, wanted in (
        (pipeline.embed, (Task.EMBEDDING,)),
        (pipeline.classify, (Task.CLASSIFICATION, Task.TENSOR)),
    ):
        task = components[slot].model.task
        if task not in wanted:
            raise InvalidManifestError(
                f"route {name!r} uses slot {slot!r}, which does {task}, for {wanted[0]}",
                advice="See docs/release-file.md for what a pipeline consists of.",
            )


def _refuse_repeats(kind: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise InvalidManifestError(
                f"{kind} {name!r} stands there twice", advice="Give each its own name."
            )
        seen.add(name)
