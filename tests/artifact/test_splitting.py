"""Content that two versions of a file share becomes shared chunks, wherever it lies."""

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifact.chunks import MAX_CHUNK_BYTES, ChunkIndex, index_file
from artifact.splitting import MIN_SPAN_BYTES, Span, boundaries

# The cuts are part of the format of built models: these figures must not change.
CUT = [113487, 100897, 85616, 100000, 37500, 75443, 46128, 40929]


def noise(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)  # noqa: S311 - bytes to move, no secret


def indexed(path: Path, data: bytes, *tensors: Span) -> ChunkIndex:
    path.write_bytes(data)
    return index_file(path, boundaries(path, tensors))


def new_bytes(base: ChunkIndex, target: ChunkIndex) -> int:
    return sum(chunk.size for chunk in target.chunks if chunk not in base.chunks)


def test_a_changed_tensor_costs_itself_though_the_header_grew(tmp_path: Path) -> None:
    tensors = [noise(900_000, 1), noise(2_000_000, 2), noise(700, 3), noise(50_000, 4)]

    def write(name: str, head: bytes, parts: list[bytes]) -> ChunkIndex:
        spans, data = [], head
        for part in parts:
            spans.append(Span(len(data), len(part)))
            data += part
        return indexed(tmp_path / name, data, *spans)

    base = write("base", noise(3000, 8), tensors)
    tuned = write("tuned", noise(3011, 9), [*tensors[:3], noise(50_000, 5)])
    assert new_bytes(base, tuned) == 50_000 + 3011


def test_large_tensors_are_cut_by_size_from_their_start(tmp_path: Path) -> None:
    index = indexed(
        tmp_path / "a", noise(2 * MAX_CHUNK_BYTES + 5, 1), Span(100, MAX_CHUNK_BYTES + 7)
    )
    assert [chunk.size for chunk in index.chunks][:3] == [100, MAX_CHUNK_BYTES, 7]


def test_small_gaps_stay_with_the_tensor_before_them(tmp_path: Path) -> None:
    data = noise(10_000, 1)
    spans = (Span(1000, 2000), Span(3000 + MIN_SPAN_BYTES - 1, 2000))
    index = indexed(tmp_path / "a", data, *spans)
    gap = MIN_SPAN_BYTES - 1
    assert [chunk.size for chunk in index.chunks] == [1000, 2000 + gap, 2000, 5000 - gap]


def test_an_insertion_into_text_costs_the_chunks_around_it(tmp_path: Path) -> None:
    text = b"".join(b'"word %d",\n' % n for n in range(150_000))
    base = indexed(tmp_path / "a", text)
    tuned = indexed(tmp_path / "b", text[:700_000] + b'"a new word",\n' + text[700_000:])
    assert new_bytes(base, tuned) <= 512 << 10
    assert len(base.chunks) > len(text) >> 18


@given(data=st.data())
def test_any_tensor_table_gives_a_cut_of_the_whole_file(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("table") / "file"
    size = 40_000
    path.write_bytes(bytes(size))
    spans = data.draw(
        st.lists(st.builds(Span, st.integers(0, size + 10), st.integers(0, size + 10)), max_size=6)
    )
    found = boundaries(path, spans)
    assert found == sorted(found)
    assert 0 <= found[0] <= found[-1] == size


def test_cutting_again_gives_the_same_chunks(tmp_path: Path) -> None:
    """The digest of the list of chunks is signed, so the cuts must not change."""
    data = noise(600_000, 7)
    index = indexed(tmp_path / "a", data, Span(300_000, 100_000))
    assert index == indexed(tmp_path / "b", data, Span(300_000, 100_000))
    assert [chunk.size for chunk in index.chunks] == CUT
