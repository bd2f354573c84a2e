"""Variants in tables: a column for what was measured of some, none for what was not."""

import msgspec
import pytest

from artifact.manifest import (
    Divergence,
    File,
    Lineage,
    ModelVersion,
    Quality,
    Relation,
    Task,
    Variant,
)
from controlplane.cli.models.variants import lineage_of, print_variants, recipes_of

PLAIN = Variant(
    name="q4",
    runtime="llama_cpp",
    format="gguf",
    quantization="q4_k_m",
    files=(File(name="m.gguf", size=1 << 20, sha256="ab" * 32, index="cd" * 32),),
    memory_bytes=2 << 20,
    quality=Quality(metric="perplexity", value=8.5, higher_is_better=False, dataset=""),
)
COMPARED = msgspec.structs.replace(
    PLAIN,
    name="q2",
    divergence=Divergence(mean_kl=0.0123, same_top=0.91, predictions=9, dataset=""),
    measured_memory_bytes=3 << 20,
    recipe="calibrated on text",
)


def test_columns_are_there_for_what_was_measured(capsys: pytest.CaptureFixture[str]) -> None:
    print_variants([PLAIN])
    header, row = capsys.readouterr().out.splitlines()
    assert header.split() == ["VARIANT", "RUNTIME", "QUANTIZATION", "SIZE", "MEMORY", "QUALITY"]
    assert row.split()[-4:] == ["2.0", "MiB", "perplexity", "8.5"]
    print_variants([PLAIN, COMPARED])
    header, plain, compared = capsys.readouterr().out.splitlines()
    assert header.split()[-5:] == ["MEASURED", "QUALITY", "KL", "SAME", "TOP"]
    assert plain.split()[-5:] == ["-", "perplexity", "8.5", "-", "-"]
    assert compared.split()[-6:] == ["3.0", "MiB", "perplexity", "8.5", "0.0123", "91.0%"]


def test_lineage_and_recipes_are_words() -> None:
    model = ModelVersion(
        name="acme/tiny", version="1", task=Task.TEXT_GENERATION, variants=(PLAIN, COMPARED)
    )
    assert lineage_of(model) == ""
    bases = [Lineage(relation=Relation.MERGE, name="acme/a", version=v) for v in ("1", "2")]
    merged = msgspec.structs.replace(model, lineage=bases[0], also_from=(bases[1],))
    assert lineage_of(merged) == "merge of acme/a@1, merge of acme/a@2"
    assert recipes_of(model.variants) == "q2: calibrated on text"
