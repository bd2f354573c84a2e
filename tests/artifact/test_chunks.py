"""Chunks that differ from the published ones are refused."""

import dataclasses
import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifact.chunks import (
    MAX_CHUNK_BYTES,
    MAX_INDEX_BYTES,
    Chunk,
    ChunkIndex,
    assemble_file,
    decode_index,
    decode_index_of,
    encode_index,
    index_file,
    read_chunks,
    verify_chunk,
    verify_file,
)
from artifact.errors import ChunkMismatchError
from artifact.manifest import File

SIZE = 2 * MAX_CHUNK_BYTES + 4711


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(hashlib.shake_256(b"weights").digest(SIZE))
    return path


def small_index(*sizes: int) -> ChunkIndex:
    chunks = tuple(Chunk(hashlib.sha256(bytes([n])).digest(), n) for n in sizes)
    return ChunkIndex(hashlib.sha256(b"whole").digest(), sum(sizes), chunks)


def test_a_file_travels_as_chunks_and_comes_out_the_same(source: Path, tmp_path: Path) -> None:
    index = decode_index(encode_index(index_file(source)))

    assert [chunk.size for chunk in index.chunks] == [MAX_CHUNK_BYTES, MAX_CHUNK_BYTES, 4711]
    pieces = {chunk.sha256: data for chunk, data in read_chunks(source, index)}
    copy = tmp_path / "copy"
    assemble_file(index, (pieces[chunk.sha256] for chunk in index.chunks), copy)
    assert copy.read_bytes() == source.read_bytes()
    verify_file(copy, index.sha256, index.size)


def test_an_empty_file_has_no_chunks(tmp_path: Path) -> None:
    path = tmp_path / "empty"
    path.touch()
    index = decode_index(encode_index(index_file(path)))
    assert index == ChunkIndex(hashlib.sha256().digest(), 0, ())


def test_chunks_end_at_boundaries_so_a_changed_tensor_costs_only_itself(
    source: Path, tmp_path: Path
) -> None:
    boundaries = (100, 3000, MAX_CHUNK_BYTES + 5000)
    data = bytearray(source.read_bytes())
    data[200] ^= 1
    tuned = tmp_path / "tuned.gguf"
    tuned.write_bytes(data)

    before, after = index_file(source, boundaries), index_file(tuned, boundaries)

    assert [chunk.size for chunk in before.chunks] == [
        100,
        2900,
        MAX_CHUNK_BYTES,
        2000,
        MAX_CHUNK_BYTES - 289,
    ]
    assert sum(chunk.size for chunk in after.chunks if chunk not in before.chunks) == 2900


@pytest.mark.parametrize("boundaries", [(5, 4), (SIZE + 1,), (-1,)])
def test_boundaries_outside_the_file_or_out_of_order_are_a_mistake(
    source: Path, boundaries: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match="is not within"):
        index_file(source, boundaries)


@given(st.lists(st.integers(1, MAX_CHUNK_BYTES), max_size=50))
def test_an_index_survives_encoding(sizes: list[int]) -> None:
    chunks = tuple(Chunk(hashlib.sha256(b"%d" % size).digest(), size) for size in sizes)
    index = ChunkIndex(hashlib.sha256().digest(), sum(sizes), chunks)
    assert decode_index(encode_index(index)) == index


@given(st.data())
def test_a_flipped_bit_in_an_index_never_passes_for_what_the_manifest_names(
    data: st.DataObject,
) -> None:
    encoded = bytearray(encode_index(small_index(1, 200, 30)))
    file = File(
        name="m.gguf",
        size=231,
        sha256=hashlib.sha256(b"whole").hexdigest(),
        index=hashlib.sha256(encoded).hexdigest(),
    )
    decode_index_of(file, bytes(encoded))
    position = data.draw(st.integers(0, len(encoded) - 1))
    encoded[position] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(ChunkMismatchError):
        decode_index_of(file, bytes(encoded))


@given(st.binary(max_size=200))
def test_bytes_that_are_no_index_are_refused(data: bytes) -> None:
    with pytest.raises(ChunkMismatchError):
        decode_index(data)


def test_a_cut_or_lengthened_index_is_refused() -> None:
    encoded = encode_index(small_index(7, 8))
    for wrong in (encoded[:-1], encoded + b"\0", encoded[:-36], encoded + encoded[-36:], b""):
        with pytest.raises(ChunkMismatchError):
            decode_index(wrong)
    with pytest.raises(ChunkMismatchError, match="bytes"):
        decode_index(bytes(MAX_INDEX_BYTES + 1))


@pytest.mark.parametrize(
    ("index", "reason"),
    [
        (dataclasses.replace(small_index(5, 6), size=10), "its chunks have 11 bytes"),
        (ChunkIndex(bytes(32), MAX_CHUNK_BYTES + 1, (Chunk(bytes(32), MAX_CHUNK_BYTES + 1),)), "0"),
        (ChunkIndex(bytes(32), 0, (Chunk(bytes(32), 0),)), "chunk 0 has 0 bytes"),
    ],
)
def test_an_index_that_breaks_a_bound_cannot_even_be_written(
    index: ChunkIndex, reason: str
) -> None:
    with pytest.raises(ChunkMismatchError, match=reason):
        encode_index(index)


def test_an_index_of_another_file_is_refused() -> None:
    encoded = encode_index(small_index(3))
    right = File(
        name="m.gguf",
        size=3,
        sha256=hashlib.sha256(b"whole").hexdigest(),
        index=hashlib.sha256(encoded).hexdigest(),
    )
    assert decode_index_of(right, encoded) == small_index(3)
    for sha256, size in ((right.sha256, 4), ("00" * 32, 3)):
        wrong = File(name="m.gguf", size=size, sha256=sha256, index=right.index)
        with pytest.raises(ChunkMismatchError, match="the manifest"):
            decode_index_of(wrong, encoded)


def test_a_truncated_or_altered_chunk_is_refused() -> None:
    chunk = Chunk(hashlib.sha256(b"tensor").digest(), 6)
    verify_chunk(chunk, b"tensor")
    for wrong in (b"tenso", b"tensoR", b"tensors", b""):
        with pytest.raises(ChunkMismatchError, match="expected 6 bytes"):
            verify_chunk(chunk, wrong)


def test_a_file_altered_after_indexing_is_found(source: Path) -> None:
    index = index_file(source)
    data = bytearray(source.read_bytes())
    data[MAX_CHUNK_BYTES + 1] ^= 1
    source.write_bytes(data)
    with pytest.raises(ChunkMismatchError, match="digest"):
        verify_file(source, index.sha256, index.size)
    with pytest.raises(ChunkMismatchError):
        list(read_chunks(source, index))
    source.write_bytes(data[:-1])
    with pytest.raises(ChunkMismatchError, match="bytes; expected"):
        verify_file(source, index.sha256, index.size)


def test_nothing_half_made_is_left_when_assembly_fails(source: Path, tmp_path: Path) -> None:
    index = index_file(source)
    pieces = [data for _, data in read_chunks(source, index)]
    target = tmp_path / "target"
    lying = dataclasses.replace(index, sha256=bytes(32))
    for wrong_index, wrong_pieces in (
        (index, [pieces[0], pieces[1]]),
        (index, [pieces[0], pieces[2], pieces[1]]),
        (lying, pieces),
    ):
        with pytest.raises(ChunkMismatchError):
            assemble_file(wrong_index, wrong_pieces, target)
        assert not target.exists()


def test_assembly_never_overwrites(source: Path) -> None:
    index = index_file(source)
    with pytest.raises(FileExistsError):
        assemble_file(index, [], source)
    assert source.stat().st_size == SIZE
