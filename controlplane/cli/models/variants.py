"""Variants as tables show them: what they take, and what they lost."""

from collections.abc import Sequence

from artifact.manifest import ModelVersion, Quality, Variant
from artifact.sizes import in_bytes
from controlplane.cli.output import print_table


def print_variants(variants: Sequence[Variant]) -> None:
    """What was measured only of some has a column only then."""
    compared = any(variant.divergence for variant in variants)
    measured = any(variant.measured_memory_bytes for variant in variants)
    header = ["VARIANT", "RUNTIME", "QUANTIZATION", "SIZE", "MEMORY"]
    header += ["MEASURED"] if measured else []
    header += ["QUALITY"]
    header += ["KL", "SAME TOP"] if compared else []
    rows = []
    for one in variants:
        row = [one.name, one.runtime, one.quantization, in_bytes(one.size_bytes)]
        row.append(in_bytes(one.memory_bytes))
        if measured:
            row.append(in_bytes(one.measured_memory_bytes) if one.measured_memory_bytes else "-")
        row.append(_quality(one.quality))
        if compared:
            row += _divergence(one)
        rows.append(row)
    print_table(header, rows, empty="No variants.")


def lineage_of(model: ModelVersion) -> str:
    """Where a model comes from, in words; empty when it does not say."""
    bases = [*([model.lineage] if model.lineage else []), *model.also_from]
    return ", ".join(f"{base.relation} of {base.reference}" for base in bases)


def recipes_of(variants: Sequence[Variant]) -> str:
    """How variants were made beyond their quantization; empty when there is nothing to say."""
    return "; ".join(f"{one.name}: {one.recipe}" for one in variants if one.recipe)


def _quality(quality: Quality | None) -> str:
    return f"{quality.metric} {quality.value:.4g}" if quality else "unmeasured"


def _divergence(variant: Variant) -> list[str]:
    found = variant.divergence
    if found is None:
        return ["-", "-"]
    return ["-" if found.mean_kl is None else f"{found.mean_kl:.3g}", f"{found.same_top:.1%}"]
