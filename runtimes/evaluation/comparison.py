"""What a comparison finds; apart from how, which needs more than a command line should import."""

from dataclasses import dataclass

from artifact.manifest import Divergence, Quality


@dataclass(frozen=True, slots=True)
class Comparison:
    """What was found of a variant, and of its source on the same data.

    Vectors have no ``divergence`` but their cosine, which is the variant's quality.
    ``memory_bytes`` is the variant's peak while loading and reading; 0 where that cannot be told.
    """

    quality: Quality
    source_quality: Quality
    divergence: Divergence | None
    memory_bytes: int = 0
