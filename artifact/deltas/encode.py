"""Create a delta, with one segment of both files in memory at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import zstandard

from artifact.deltas.differences import LAYOUTS, OTHER_LAYOUT, put_difference, unit_bytes
from artifact.deltas.format import (
    MAX_SEGMENT_BYTES,
    PATCH_BYTES,
    Header,
    Mode,
    Segment,
    StreamWriter,
)
from artifact.splitting import Span

LEVEL: Final = 3
# Faster levels do not search far enough back to find the common bytes.
_PATCH_LEVEL: Final = 9
# Bytes before a segment's counterpart in the base that PATCH may use too.
_PATCH_BEFORE: Final = 512 << 10


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of a file: its place, and the properties that must be equal for a comparison."""

    name: str
    type: str
    shape: tuple[int, ...]
    span: Span


@dataclass(frozen=True, slots=True)
class Side:
    """A file with its tensors, already verified against its digest."""

    path: Path
    sha256: bytes
    tensors: Sequence[Tensor]


@dataclass(frozen=True, slots=True)
class _Stretch:
    """A run of the target and its counterpart in the base; ``size`` 0 if it has none."""

    span: Span
    base: Span
    layout: int | None = None


def make_delta(base: Side, target: Side, destination: Path) -> int:
    """Write the delta from ``base`` to ``target``; return its size in bytes.

    Tensors of the same name, type and shape are compared; each segment gets its smallest form.
    ``destination`` must not exist.
    """
    base_size, target_size = (side.path.stat().st_size for side in (base, target))
    header = Header(base.sha256, base_size, target.sha256, target_size)
    with (
        base.path.open("rb") as old,
        target.path.open("rb") as new,
        destination.open("xb") as delta,
    ):
        # The number of segments is known at the end only; its place is kept by a header with 0.
        delta.write(header.encode())
        count = 0
        for segment in _joined(_segments(old, new, _stretches(base, target, base_size))):
            delta.write(segment.encode())
            count += 1
        size = delta.tell()
        delta.seek(0)
        complete = Header(base.sha256, base_size, target.sha256, target_size, count)
        delta.write(complete.encode())
    return size


def _stretches(base: Side, target: Side, base_size: int) -> Iterator[_Stretch]:
    """Yield the target from start to end: its tensors, and the runs between them."""
    known = {(tensor.name, tensor.type, tensor.shape): tensor.span for tensor in base.tensors}
    target_size = target.path.stat().st_size
    end = base_end = 0
    for tensor in sorted(target.tensors, key=lambda tensor: tensor.span):
        span = tensor.span
        if span.offset < end or span.offset + span.size > target_size or not span.size:
            continue
        like = known.get((tensor.name, tensor.type, tensor.shape), Span(0, 0))
        if like.size != span.size or like.offset + like.size > base_size:
            like = Span(0, 0)
        if span.offset > end:
            # Tensors may lie in another order in the base. Then the run up to the next known one is
            # no counterpart, and everything after the last one may be.
            gap_end = like.offset if like.offset >= base_end and like.size else base_size
            between = Span(base_end, gap_end - base_end)
            yield _Stretch(Span(end, span.offset - end), between)
        yield _Stretch(span, like, LAYOUTS.get(tensor.type, OTHER_LAYOUT))
        end = span.offset + span.size
        if like.size:
            base_end = like.offset + like.size
    if end < target_size:
        between = Span(base_end, base_size - base_end)
        yield _Stretch(Span(end, target_size - end), between)


def _segments(old: BinaryIO, new: BinaryIO, stretches: Iterator[_Stretch]) -> Iterator[Segment]:
    for stretch in stretches:
        unit = (unit_bytes(stretch.layout) if stretch.layout else None) or 1
        # Whole blocks, since a block is compared as a unit.
        step = MAX_SEGMENT_BYTES // unit * unit
        for start in range(0, stretch.span.size, step):
            length = min(step, stretch.span.size - start)
            data = _read(new, stretch.span.offset + start, length)
            # Both begin alike; where the target's run is longer, the base has no more to offer.
            offset = stretch.base.offset + min(start, max(0, stretch.base.size - length))
            like = _read(old, offset, length) if stretch.base.size else b""
            if like == data:
                yield Segment(Mode.COPY, length, offset)
            elif stretch.layout and len(like) == length and length % unit == 0:
                # Noise of another model compresses better by itself than as differences.
                yield min(
                    (_blocks(stretch.layout, offset, like, data), _plain(data)),
                    key=lambda segment: len(segment.payload),
                )
            else:
                yield _patch(old, offset, data) if like else _plain(data)


def _blocks(layout: int, offset: int, base: bytes, target: bytes) -> Segment:
    streams = StreamWriter(LEVEL)
    put_difference(streams, layout, base, target)
    return Segment(Mode.BLOCKS, len(target), offset, layout, streams.payload())


def _plain(data: bytes) -> Segment:
    streams = StreamWriter(LEVEL)
    streams.add(data)
    return Segment(Mode.PLAIN, len(data), payload=streams.payload())


def _patch(old: BinaryIO, offset: int, data: bytes) -> Segment:
    """Compress against the base's bytes around ``offset``; grown text costs about its growth."""
    offset = max(0, offset - _PATCH_BEFORE)
    like = _read(old, offset, PATCH_BYTES)
    around = zstandard.ZstdCompressionDict(like, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    parameters = zstandard.ZstdCompressionParameters.from_level(
        _PATCH_LEVEL, source_size=len(data), dict_size=len(like), write_content_size=True
    )
    packer = zstandard.ZstdCompressor(compression_params=parameters, dict_data=around)
    packed = packer.compress(data)
    plain = _plain(data)
    if len(packed) >= len(plain.payload):
        return plain
    return Segment(Mode.PATCH, len(data), offset, payload=packed)


def _joined(segments: Iterator[Segment]) -> Iterator[Segment]:
    """Join copies that continue each other."""
    held: Segment | None = None
    for segment in segments:
        if (
            held is not None
            and held.mode is segment.mode is Mode.COPY
            and held.base_offset + held.length == segment.base_offset
        ):
            held = Segment(Mode.COPY, held.length + segment.length, held.base_offset)
            continue
        if held is not None:
            yield held
        held = segment
    if held is not None:
        yield held


def _read(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)
