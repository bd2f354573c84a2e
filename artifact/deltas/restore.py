"""Restore a file from its base and an untrusted delta."""

import hashlib
import os
from pathlib import Path
from typing import BinaryIO, Final

import zstandard

from artifact.deltas.differences import take_difference, unit_bytes
from artifact.deltas.format import (
    PATCH_BYTES,
    Header,
    Mode,
    Segment,
    StreamReader,
    bad_delta,
    read_header,
    read_segments,
    unpack,
)
from artifact.errors import InvalidDeltaError

_COPY_BYTES: Final = 1 << 20


def restore(base: Path, delta: Path, destination: Path) -> Header:
    """Write the file that ``delta`` makes from ``base``, flushed to disk.

    Raises InvalidDeltaError and leaves no file unless the result has the digest that the delta
    names. The caller checks that this is the wanted digest.
    """
    with destination.open("xb") as target:
        try:
            with base.open("rb") as old, delta.open("rb") as source:
                return _restore(old, source, target)
        except BaseException:
            destination.unlink()
            raise


def _restore(old: BinaryIO, source: BinaryIO, target: BinaryIO) -> Header:
    header = read_header(source)
    whole = hashlib.sha256()
    # Cheap, and tells a wrong base before gigabytes are written. The digest at the end decides.
    if os.fstat(old.fileno()).st_size != header.base_size:
        raise bad_delta(f"its base has {header.base_size} bytes, the file given does not")
    for segment in read_segments(source, header):
        if segment.mode is Mode.COPY:
            _copy(old, segment, target, whole)
            continue
        data = _bytes_of(old, segment)
        if len(data) != segment.length:
            raise bad_delta(f"a segment of {segment.length} bytes came out with {len(data)}")
        whole.update(data)
        target.write(data)
    target.flush()
    os.fsync(target.fileno())
    if whole.digest() != header.target_sha256:
        raise InvalidDeltaError(
            f"the restored file has the digest {whole.hexdigest()}, the delta names "
            f"{header.target_sha256.hex()}",
            advice="The file is fetched whole instead.",
        )
    return header


def _copy(old: BinaryIO, segment: Segment, target: BinaryIO, whole: "hashlib._Hash") -> None:
    left = segment.length
    old.seek(segment.base_offset)
    while left:
        data = old.read(min(_COPY_BYTES, left))
        # A zero-length read would loop without end.
        if not data:
            raise bad_delta("its base became shorter")
        whole.update(data)
        target.write(data)
        left -= len(data)


def _bytes_of(old: BinaryIO, segment: Segment) -> bytes:
    if segment.mode is Mode.PATCH:
        old.seek(segment.base_offset)
        around = zstandard.ZstdCompressionDict(
            old.read(PATCH_BYTES), dict_type=zstandard.DICT_TYPE_RAWCONTENT
        )
        return unpack(segment.payload, segment.length, around)
    streams = StreamReader(segment.payload)
    if segment.mode is Mode.PLAIN:
        data = streams.take(segment.length)
    else:
        unit = unit_bytes(segment.layout)
        if unit is None or segment.length % unit:
            raise bad_delta(f"layout {segment.layout} cannot give {segment.length} bytes")
        old.seek(segment.base_offset)
        data = take_difference(streams, segment.layout, old.read(segment.length))
    streams.finish()
    return data
