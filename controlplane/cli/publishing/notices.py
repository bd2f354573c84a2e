"""Checks of a release against its own figures, before it is signed.

Devices would find the same after the download: a slot whose limit no variant meets, or a check
that the publisher's own measurement fails.
"""

from collections.abc import Iterator

from artifact.manifest import Component, PerplexityCheck, Release
from artifact.sizes import in_bytes
from controlplane.cli.app import RefusedError


def check_figures(release: Release) -> list[str]:
    """Return warnings; raise RefusedError if no device can ever install the release."""
    for component in release.components:
        _refuse_impossible(component, component.max_memory_bytes)
        _refuse_impossible(component, release.selection.of(component.slot).max_memory_bytes)
    return list(_failing_checks(release))


def _refuse_impossible(component: Component, limit_bytes: int) -> None:
    # Only files count: a device may need less than the estimate, and never less than the weights.
    least = min(variant.size_bytes for variant in component.model.variants)
    if limit_bytes and limit_bytes < least:
        raise RefusedError(
            f"slot {component.slot!r} allows {in_bytes(limit_bytes)} of memory, and the smallest "
            f"variant of {component.model.reference} has {in_bytes(least)} of files",
            advice="Raise max_memory, or build a smaller variant.",
        )


def _failing_checks(release: Release) -> Iterator[str]:
    variants = {part.slot: part.model.variants for part in release.components}
    for check in release.probation.checks:
        if not isinstance(check, PerplexityCheck):
            continue
        for variant in variants.get(check.slot, ()):
            quality = variant.quality
            if quality and quality.metric == "perplexity" and quality.value > check.maximum:
                yield (
                    f"check {check.name!r} allows a perplexity of {check.maximum:g}; variant "
                    f"{variant.name!r} was built with {quality.value:.4g} on its evaluation text. "
                    "Devices will reject it unless the check's text is easier."
                )
