"""Result of a comparison, in a module that does not import NumPy: the CLI reads it at start."""

from dataclasses import dataclass

from artifact.manifest import Divergence, Quality


@dataclass(frozen=True, slots=True)
class Comparison:
    """Quality of a variant and of its source on the same data, and how far they diverge.

    ``divergence`` is None for embeddings, whose quality is the cosine to the source's vectors.
    ``memory_bytes`` is the variant's peak while loading and evaluating, 0 if unknown.
    """

    quality: Quality
    source_quality: Quality
    divergence: Divergence | None
    memory_bytes: int = 0
