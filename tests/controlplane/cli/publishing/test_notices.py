"""What publishing notices before a device would: impossible limits and checks that must fail."""

import msgspec
import pytest

from artifact.manifest import (
    Component,
    File,
    ModelVersion,
    PerplexityCheck,
    Probation,
    Quality,
    Release,
    SelectionPolicy,
    Task,
    Variant,
)
from controlplane.cli.app import RefusedError
from controlplane.cli.publishing.notices import check_figures

FILE = File(name="q4.gguf", size=1 << 20, sha256="c" * 64, index="d" * 64)


def changed(*, max_memory: int = 0, perplexity: float = 0) -> Release:
    """Return a release with one variant of 1 MiB and a check of a perplexity of at most 30."""
    quality = Quality(
        metric="perplexity", value=perplexity, higher_is_better=False, dataset="a" * 64
    )
    variant = Variant(
        name="q4",
        runtime="llama_cpp",
        format="gguf",
        quantization="q4_k_m",
        files=(FILE,),
        memory_bytes=4 << 20,
        quality=quality if perplexity else None,
    )
    model = ModelVersion(
        name="acme/tiny", version="1.0.0", task=Task.TEXT_GENERATION, variants=(variant,)
    )
    check = PerplexityCheck(name="reads", slot="chat", text="words", maximum=30)
    return Release(
        schema=1,
        name="acme/assistant",
        version="1.0.0",
        counter=1,
        components=(Component(slot="chat", model=model, max_memory_bytes=max_memory),),
        probation=Probation(checks=(check,)),
    )


def test_a_limit_below_the_smallest_variant_is_refused() -> None:
    with pytest.raises(RefusedError, match=r"allows 1\.0 KiB of memory, .* has 1\.0 MiB of files"):
        check_figures(changed(max_memory=1024))
    assert check_figures(changed(max_memory=1 << 20)) == []


def test_the_limit_of_the_selection_policy_is_checked_too() -> None:
    release = msgspec.structs.replace(changed(), selection=SelectionPolicy(max_memory_bytes=1024))
    with pytest.raises(RefusedError, match=r"allows 1\.0 KiB"):
        check_figures(release)


def test_a_check_below_the_measured_perplexity_is_a_warning() -> None:
    (warning,) = check_figures(changed(perplexity=1030))
    assert "allows a perplexity of 30; variant 'q4' was built with 1030" in warning
    assert check_figures(changed(perplexity=29)) == []
    assert check_figures(changed()) == []
