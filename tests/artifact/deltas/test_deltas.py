"""A delta restores exactly the file that it was made for, or leaves no file."""

import hashlib
import itertools
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from artifact.deltas.blocks import QUANTIZED
from artifact.deltas.differences import LAYOUTS, put_difference, take_difference, unit_bytes
from artifact.deltas.encode import Side, Tensor, make_delta
from artifact.deltas.format import (
    MAX_SEGMENT_BYTES,
    Header,
    Mode,
    Segment,
    StreamReader,
    StreamWriter,
    read_header,
    read_segments,
)
from artifact.deltas.restore import restore
from artifact.errors import InvalidDeltaError
from artifact.splitting import Span

LAYOUT_NUMBERS = sorted({*LAYOUTS.values(), 16})
HEADER_BYTES = len(Header(bytes(32), 0, bytes(32), 0).encode())


def noise(size: int, seed: int) -> bytes:
    return np.random.default_rng(seed).bytes(size)


def side(path: Path, data: bytes, *tensors: Tensor) -> Side:
    path.write_bytes(data)
    return Side(path, hashlib.sha256(data).digest(), tensors)


def write_delta(
    path: Path, base: bytes, target: bytes, *segments: Segment, count: int | None = None
) -> Path:
    header = Header(
        hashlib.sha256(base).digest(),
        len(base),
        hashlib.sha256(target).digest(),
        len(target),
        len(segments) if count is None else count,
    )
    path.write_bytes(header.encode() + b"".join(segment.encode() for segment in segments))
    return path


@pytest.mark.parametrize("layout", LAYOUT_NUMBERS)
@given(data=st.data())
@settings(max_examples=60)
def test_any_bytes_come_back_from_any_other_in_every_layout(
    layout: int, data: st.DataObject
) -> None:
    """Blocks of any bits, whose scales may be infinite, not a number, or zero."""
    unit = unit_bytes(layout)
    assert unit is not None
    size = unit * data.draw(st.integers(1, 5))
    base, target = (data.draw(st.binary(min_size=size, max_size=size)) for _ in range(2))
    streams = StreamWriter(1)
    put_difference(streams, layout, base, target)
    reader = StreamReader(streams.payload())
    assert take_difference(reader, layout, base) == target
    reader.finish()


@pytest.mark.parametrize("layout", LAYOUT_NUMBERS)
def test_a_whole_segment_of_random_blocks_comes_back(layout: int) -> None:
    unit = unit_bytes(layout)
    assert unit is not None
    size = MAX_SEGMENT_BYTES // unit * unit
    base, target = noise(size, 1), noise(size, 2)
    streams = StreamWriter(1)
    put_difference(streams, layout, base, target)
    assert take_difference(StreamReader(streams.payload()), layout, base) == target


@pytest.mark.parametrize("layout", sorted(QUANTIZED))
def test_taking_a_block_apart_loses_nothing(layout: int) -> None:
    kind = QUANTIZED[layout]
    blocks = np.frombuffer(noise(kind.block_bytes * 200, 3), np.uint8)
    blocks = blocks.reshape(-1, kind.block_bytes)
    fields, quants = kind.split(blocks)
    assert quants.shape == kind.quants_of(200)
    assert quants.max() <= kind.largest_quant
    assert (kind.join(fields, quants) == blocks).all()


def tensor(name: str, offset: int, size: int, kind: str = "q4_k") -> Tensor:
    return Tensor(name, kind, (size,), Span(offset, size))


def test_equal_tensors_cost_nothing_wherever_they_lie(tmp_path: Path) -> None:
    first, second = noise(144 * 4000, 1), noise(144 * 4000, 2)
    base = side(
        tmp_path / "base",
        b"head" + first + second,
        tensor("a", 4, len(first)),
        tensor("b", 4 + len(first), len(second)),
    )
    target_data = b"another head" + second + first
    target = side(
        tmp_path / "target",
        target_data,
        tensor("b", 12, len(second)),
        tensor("a", 12 + len(second), len(first)),
    )
    size = make_delta(base, target, tmp_path / "delta")
    assert size == (tmp_path / "delta").stat().st_size < 300
    restore(base.path, tmp_path / "delta", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == target_data


def test_a_tensor_of_another_type_or_shape_is_not_compared(tmp_path: Path) -> None:
    data, other = noise(144 * 100, 1), noise(144 * 100, 2)
    base = side(tmp_path / "base", data, tensor("a", 0, len(data)))
    target = side(tmp_path / "target", other, tensor("a", 0, len(data), "q5_k"))
    make_delta(base, target, tmp_path / "delta")
    with (tmp_path / "delta").open("rb") as delta:
        header = read_header(delta)
        modes = [segment.mode for segment in read_segments(delta, header)]
    assert Mode.BLOCKS not in modes
    restore(base.path, tmp_path / "delta", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == other


def test_noise_costs_hardly_more_than_itself(tmp_path: Path) -> None:
    data, other = noise(144 * 20_000, 1), noise(144 * 20_000, 2)
    base = side(tmp_path / "base", data, tensor("a", 0, len(data)))
    target = side(tmp_path / "target", other, tensor("a", 0, len(data)))
    assert make_delta(base, target, tmp_path / "delta") < len(other) * 1.001


def test_a_header_that_grew_costs_what_grew(tmp_path: Path) -> None:
    """Vocabularies are megabytes of text that two versions share."""
    text = b"".join(
        b"token %d " % int(n) for n in np.random.default_rng(1).integers(0, 1e9, 90_000)
    )
    base = side(tmp_path / "base", text)
    target_data = b"name of another length " + text[:500_000] + b"new token" + text[500_000:]
    target = side(tmp_path / "target", target_data)
    assert make_delta(base, target, tmp_path / "delta") < 2000
    restore(base.path, tmp_path / "delta", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == target_data


@given(data=st.data())
@settings(max_examples=60)
def test_any_file_comes_back_whatever_its_tensors_claim(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("delta")
    sides = []
    for name in ("base", "target"):
        content = data.draw(st.binary(max_size=3000))
        claimed = data.draw(
            st.lists(
                st.tuples(
                    st.sampled_from("abc"),
                    st.sampled_from(["q4_0", "q8_0", "f16", "f32", "iq4_xs"]),
                    st.integers(0, 4000),
                    st.integers(0, 2000),
                ),
                max_size=5,
            )
        )
        tensors = [
            Tensor(n, kind, (size,), Span(offset, size)) for n, kind, offset, size in claimed
        ]
        sides.append(side(folder / name, content, *tensors))
    make_delta(sides[0], sides[1], folder / "delta")
    header = restore(sides[0].path, folder / "delta", folder / "out")
    assert (folder / "out").read_bytes() == sides[1].path.read_bytes()
    assert header.target_sha256 == sides[1].sha256


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with base, target and a delta that has a segment of every mode."""
    folder = tmp_path_factory.mktemp("made")
    base_data = noise(3000, 1) + noise(34 * 40, 2) + noise(34 * 40, 3)
    tuned = bytearray(base_data[3000 : 3000 + 34 * 40])
    for place in range(5, len(tuned), 34):
        tuned[place] ^= 1
    head = noise(200, 6) + base_data[400:3000]
    data = head + bytes(tuned) + base_data[-34 * 40 :] + noise(64, 9)
    sizes = (len(head), 34 * 40)
    base = side(
        folder / "base",
        base_data,
        tensor("a", 3000, 34 * 40, "q8_0"),
        tensor("b", 3000 + 34 * 40, 34 * 40, "q8_0"),
    )
    target = side(
        folder / "target",
        data,
        tensor("a", sizes[0], sizes[1], "q8_0"),
        tensor("b", sizes[0] + sizes[1], sizes[1], "q8_0"),
    )
    make_delta(base, target, folder / "delta")
    with (folder / "delta").open("rb") as delta:
        modes = [segment.mode for segment in read_segments(delta, read_header(delta))]
    assert modes == [Mode.PATCH, Mode.BLOCKS, Mode.COPY, Mode.PLAIN]
    return folder


@given(data=st.data())
@settings(max_examples=200)
def test_a_flipped_bit_gives_the_right_file_or_none(
    made: Path, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    delta = bytearray((made / "delta").read_bytes())
    position = data.draw(st.integers(0, len(delta) - 1))
    delta[position] ^= 1 << data.draw(st.integers(0, 7))
    folder = tmp_path_factory.mktemp("flipped")
    (folder / "delta").write_bytes(delta)
    right = hashlib.sha256((made / "target").read_bytes()).digest()
    try:
        header = restore(made / "base", folder / "delta", folder / "out")
    except InvalidDeltaError:
        assert not (folder / "out").exists()
    else:
        # Bits without influence on the target, such as the base's digest.
        assert header.target_sha256 == right
        assert hashlib.sha256((folder / "out").read_bytes()).digest() == right


def test_a_delta_cut_anywhere_or_lengthened_is_refused(made: Path, tmp_path: Path) -> None:
    whole = (made / "delta").read_bytes()
    cuts = itertools.chain(range(200), range(200, len(whole), 97))
    for wrong in (*(whole[:cut] for cut in cuts), whole + b"\0"):
        (tmp_path / "delta").write_bytes(wrong)
        with pytest.raises(InvalidDeltaError):
            restore(made / "base", tmp_path / "delta", tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_another_base_is_refused(made: Path, tmp_path: Path) -> None:
    base = bytearray((made / "base").read_bytes())
    base[3100] ^= 1
    for wrong in (bytes(base), bytes(base[:-1]), b""):
        (tmp_path / "base").write_bytes(wrong)
        with pytest.raises(InvalidDeltaError):
            restore(tmp_path / "base", made / "delta", tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_an_existing_file_is_never_written_over(made: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"precious")
    with pytest.raises(FileExistsError):
        restore(made / "base", made / "delta", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"precious"


def stream(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


def test_a_bomb_is_refused_before_it_takes_memory(tmp_path: Path) -> None:
    bomb = zstandard.ZstdCompressor(level=19).compress(bytes(1 << 30))
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1 << 20))
    for frame in (bomb, unsized):
        assert len(frame) < 1 << 17
        plain = Segment(Mode.PLAIN, 100, payload=stream(frame))
        patch = Segment(Mode.PATCH, 100, payload=frame)
        blocks = Segment(Mode.BLOCKS, 34, layout=2, payload=stream(frame))
        for segment, length in ((plain, 100), (patch, 100), (blocks, 34)):
            delta = write_delta(tmp_path / "delta", b"b" * 64, b"t" * length, segment)
            with pytest.raises(InvalidDeltaError, match="announce"):
                restore_beside(tmp_path, b"b" * 64, delta)


def restore_beside(folder: Path, base: bytes, delta: Path) -> None:
    (folder / "base").write_bytes(base)
    restore(folder / "base", delta, folder / "out")


BASE = bytes(range(200))
FRAME = zstandard.ZstdCompressor().compress(b"t" * 50)


@pytest.mark.parametrize(
    ("segments", "reason"),
    [
        ([Segment(Mode.COPY, 51)], "51 bytes where 50 are left"),
        ([Segment(Mode.COPY, 0)], "0 bytes where 50 are left"),
        ([Segment(Mode.COPY, 50, 151)], "bytes 151 to 201 of a base with 200"),
        ([Segment(Mode.COPY, 50, 1 << 63)], "of a base with 200"),
        ([Segment(Mode.COPY, 50, payload=b"x")], "a layout or a payload"),
        ([Segment(Mode.PLAIN, 50, layout=2, payload=stream(FRAME))], "a layout or a payload"),
        ([Segment(Mode.COPY, 20)], "leave 30 bytes out"),
        ([Segment(Mode.PLAIN, 50)], "beyond its payload"),
        ([Segment(Mode.PLAIN, 50, payload=stream(b"not a frame"))], "does not unpack"),
        ([Segment(Mode.PLAIN, 50, payload=stream(FRAME) + b"x")], "left over"),
        ([Segment(Mode.PLAIN, 50, payload=stream(FRAME + b"x"))], "does not unpack"),
        ([Segment(Mode.BLOCKS, 50, layout=2)], "layout 2 cannot give 50"),
        ([Segment(Mode.BLOCKS, 50, layout=99)], "layout 99 cannot give 50"),
        ([Segment(Mode.BLOCKS, 50, 180, layout=16)], "of a base with 200"),
        ([Segment(Mode.PATCH, 50, 201, payload=b"junk")], "of a base with 200"),
        ([Segment(Mode.PATCH, 50, 200, payload=b"junk")], "does not unpack"),
    ],
)
def test_segments_that_break_a_bound_are_refused(
    tmp_path: Path, segments: list[Segment], reason: str
) -> None:
    delta = write_delta(tmp_path / "delta", BASE, b"t" * 50, *segments)
    with pytest.raises(InvalidDeltaError, match=reason):
        restore_beside(tmp_path, BASE, delta)
    assert not (tmp_path / "out").exists()


def test_headers_that_break_a_bound_are_refused(tmp_path: Path) -> None:
    good = Header(hashlib.sha256(BASE).digest(), 200, hashlib.sha256(b"").digest(), 0)
    delta = tmp_path / "delta"
    delta.write_bytes(good.encode())
    restore_beside(tmp_path, BASE, delta)
    (tmp_path / "out").unlink()
    for wrong, reason in (
        (replace(good, target_size=1 << 41), "names files of"),
        (replace(good, segments=1 << 31), "segments, more than"),
        (replace(good, base_size=199), "its base has 199"),
        (replace(good, target_sha256=bytes(32)), "the delta names 0000"),
    ):
        delta.write_bytes(wrong.encode())
        with pytest.raises(InvalidDeltaError, match=reason):
            restore_beside(tmp_path, BASE, delta)
    for magic in (b"FLTD\x02", b"GGUF\x01"):
        delta.write_bytes(magic + good.encode()[5:])
        with pytest.raises(InvalidDeltaError, match="it starts with"):
            restore_beside(tmp_path, BASE, delta)


def test_a_segment_larger_than_the_box_unpacks_at_once_is_refused(tmp_path: Path) -> None:
    size = MAX_SEGMENT_BYTES + 1
    frame = zstandard.ZstdCompressor().compress(bytes(size))
    segment = Segment(Mode.PLAIN, size, payload=stream(frame))
    delta = write_delta(tmp_path / "delta", BASE, bytes(size), segment)
    with pytest.raises(InvalidDeltaError, match="packs"):
        restore_beside(tmp_path, BASE, delta)
