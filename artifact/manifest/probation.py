"""Checks that a candidate must pass beside the live model before it may serve."""

from typing import Annotated

from msgspec import Meta

from artifact.manifest.fields import Label, Record


class Tensor(Record, frozen=True):
    """A small tensor in the Open Inference Protocol's JSON form, row-major."""

    name: Annotated[str, Meta(max_length=128)]
    datatype: Annotated[str, Meta(pattern=r"^(BOOL|U?INT(8|16|32|64)|FP(16|32|64))\Z")]
    shape: Annotated[tuple[Annotated[int, Meta(ge=0, le=1 << 24)], ...], Meta(max_length=8)]
    data: Annotated[tuple[float, ...], Meta(max_length=65536)]


class PerplexityCheck(Record, frozen=True, tag="perplexity", tag_field="check"):
    """The candidate's perplexity on ``text`` must not exceed ``maximum``."""

    name: Label
    slot: Label
    text: Annotated[str, Meta(min_length=16, max_length=65536)]
    maximum: Annotated[float, Meta(gt=1)]


class CompletionCheck(Record, frozen=True, tag="completion", tag_field="check"):
    """Greedy completion of ``prompt`` must give at least ``min_tokens``, and ``contains``."""

    name: Label
    slot: Label
    prompt: Annotated[str, Meta(min_length=1, max_length=16384)]
    max_tokens: Annotated[int, Meta(ge=1, le=4096)] = 32
    min_tokens: Annotated[int, Meta(ge=1, le=4096)] = 1
    contains: Annotated[str, Meta(max_length=1024)] = ""


class TensorCheck(Record, frozen=True, tag="tensor", tag_field="check"):
    """``outputs`` must match within ``tolerance``, or only in their argmax over the last axis."""

    name: Label
    slot: Label
    inputs: Annotated[tuple[Tensor, ...], Meta(min_length=1, max_length=16)]
    outputs: Annotated[tuple[Tensor, ...], Meta(min_length=1, max_length=16)]
    tolerance: Annotated[float, Meta(ge=0)] = 1e-3
    argmax_only: bool = False
    # Fraction of rows whose argmax must match, with argmax_only.
    min_match: Annotated[float, Meta(gt=0, le=1)] = 1.0


class Embedding(Record, frozen=True):
    """A text and its model's vector, of any length but zero."""

    text: Annotated[str, Meta(min_length=1, max_length=8192)]
    vector: Annotated[
        tuple[Annotated[float, Meta(ge=-1e6, le=1e6)], ...], Meta(min_length=1, max_length=8192)
    ]


class EmbeddingCheck(Record, frozen=True, tag="embedding", tag_field="check"):
    """The candidate's vector of each text must have at least this cosine with the expected one."""

    name: Label
    slot: Label
    expected: Annotated[tuple[Embedding, ...], Meta(min_length=1, max_length=16)]
    min_cosine: Annotated[float, Meta(gt=0, lt=1)]


Check = PerplexityCheck | CompletionCheck | TensorCheck | EmbeddingCheck


class Probation(Record, frozen=True):
    """Checks and measurements of a release's probation."""

    checks: Annotated[tuple[Check, ...], Meta(max_length=256)] = ()
    # Tokens and repetitions of the speed measurement of a text model.
    benchmark_tokens: Annotated[int, Meta(ge=1, le=4096)] = 32
    benchmark_repetitions: Annotated[int, Meta(ge=1, le=100)] = 5
    timeout_seconds: Annotated[float, Meta(gt=0, le=86400)] = 300
    # Time that the new release must serve without a worker crash before it is committed.
    soak_seconds: Annotated[float, Meta(ge=0, le=86400)] = 2
