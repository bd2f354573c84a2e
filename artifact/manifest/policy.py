"""Refusal of selection policies that no device could follow, at publishing."""

from artifact.errors import InvalidManifestError
from artifact.manifest.release import Component, Release
from artifact.manifest.selection import SelectionPolicy


def check_policy(component: Component, policy: SelectionPolicy) -> None:
    """Raise InvalidManifestError if the policy leaves a slot without a variant."""
    slot, variants = component.slot, component.model.variants
    names = [variant.name for variant in variants]
    pinned = policy.pins.get(slot)
    if pinned is not None and pinned not in names:
        raise InvalidManifestError(
            f"slot {slot!r} is pinned to the unknown variant {pinned!r}",
            advice=f"Use one of: {', '.join(names)}.",
        )
    allowed = [
        variant
        for variant in variants
        if pinned in {None, variant.name}
        and not any(exclusion.matches(slot, variant) for exclusion in policy.exclude)
    ]
    if not allowed:
        what = f"pinned to {pinned!r}, which is excluded" if pinned else "left with no variant"
        raise InvalidManifestError(
            f"slot {slot!r} is {what}", advice="Take a line out of `exclude:`, or the pin."
        )
    asked = policy.of(slot)
    # Models without a context have length 0 and are not restricted.
    longest = max(variant.context_length for variant in allowed)
    if 0 < longest < asked.min_context_length:
        raise InvalidManifestError(
            f"slot {slot!r} asks for a context of {asked.min_context_length} tokens, and its "
            f"variants have at most {longest}",
            advice="Lower min_context_length, or build with a longer --context-length.",
        )
    smallest = min(variant.size_bytes for variant in allowed)
    if 0 < asked.max_memory_bytes < smallest:
        raise InvalidManifestError(
            f"slot {slot!r} allows {asked.max_memory_bytes} bytes of memory, and the files of its "
            f"smallest variant have {smallest}",
            advice="Raise the policy's max_memory, or build a smaller variant.",
        )


def refuse_idle_exclusions(release: Release) -> None:
    """Raise InvalidManifestError for an exclusion without a match, which is likely misspelt."""
    for exclusion in release.selection.exclude:
        if not (exclusion.variant or exclusion.runtime or exclusion.quantization):
            raise InvalidManifestError(
                "an exclusion does not say what it excludes",
                advice="Give it a variant, a runtime or a quantization.",
            )
        found = [(each.slot, v) for each in release.components for v in each.model.variants]
        if not any(exclusion.matches(slot, variant) for slot, variant in found):
            known = sorted({f"{v.name} ({v.runtime}, {v.quantization})" for _, v in found})
            raise InvalidManifestError(
                f"the exclusion of {exclusion} matches no variant",
                advice=f"The release has {', '.join(known)}.",
            )
