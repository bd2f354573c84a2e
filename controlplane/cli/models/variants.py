"""Tables of variants: their cost and their quality."""

from collections.abc import Sequence

from artifact.manifest import ModelVersion, Quality, Variant
from artifact.sizes import in_bytes
from controlplane.cli.output import print_table


def print_variants(variants: Sequence[Variant]) -> None:
    """Print a table; a figure measured for some variants only has a column if any has it."""
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
    """Describe a model's origin; empty if it has none."""
    bases = [*([model.lineage] if model.lineage else []), *model.also_from]
    return ", ".join(f"{base.relation} of {base.reference}" for base in bases)


def recipes_of(variants: Sequence[Variant]) -> str:
    """Describe steps of the build beyond the quantization; empty if there are none."""
    return "; ".join(f"{one.name}: {one.recipe}" for one in variants if one.recipe)


def warnings_of(variants: Sequence[Variant]) -> str:
    """Return the warnings that the build left in the manifest; empty if there are none."""
    return "; ".join(f"{one.name}: {each}" for one in variants for each in one.warnings)


def _quality(quality: Quality | None) -> str:
    return f"{quality.metric} {quality.value:.4g}" if quality else "unmeasured"


def _divergence(variant: Variant) -> list[str]:
    found = variant.divergence
    if found is None:
        return ["-", "-"]
    return ["-" if found.mean_kl is None else f"{found.mean_kl:.3g}", f"{found.same_top:.1%}"]
