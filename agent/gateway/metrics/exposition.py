"""The Prometheus text format, version 0.0.4.

Written here because the client library costs the daemon more memory than these lines.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple

from artifact.sketch import Sketch

CONTENT_TYPE: Final = (b"content-type", b"text/plain; version=0.0.4; charset=utf-8")
QUANTILES: Final = (0.5, 0.95, 0.99)

Labels = Mapping[str, str]
Sample = tuple[str, Labels, float]


class Family(NamedTuple):
    """One metric. A sample is a suffix of its name, its labels and its value."""

    name: str
    kind: str
    text: str
    samples: Iterable[Sample]


def document(families: Iterable[Family]) -> bytes:
    """Encode all families as one document."""
    lines: list[str] = []
    for name, kind, text, samples in families:
        lines += (f"# HELP {name} {text}", f"# TYPE {name} {kind}")
        lines += (
            f"{name}{suffix}{_labels(labels)} {value:.10g}" for suffix, labels, value in samples
        )
    return ("\n".join(lines) + "\n").encode()


def summary(labels: Labels, sketch: Sketch) -> Iterator[Sample]:
    """Yield the samples of one summary: quantiles, sum and count."""
    for quantile in QUANTILES:
        value = sketch.quantile(quantile)
        if value is not None:
            yield "", {**labels, "quantile": str(quantile)}, value
    yield "_sum", labels, sketch.sum
    yield "_count", labels, float(sketch.count)


def _labels(labels: Labels) -> str:
    if not labels:
        return ""
    # No escaping: values come from a validated manifest, whose patterns exclude quotes,
    # backslashes and line ends.
    return "{" + ",".join(f'{name}="{value}"' for name, value in labels.items()) + "}"
