"""The delta cache keeps its budget, and survives the deletion of its files."""

import os
import random
from pathlib import Path

import pytest

from controlplane.blobs.deltas import USELESS, Delta, DeltaCache, Pair

MIB = 1 << 20


def pair(number: int) -> Pair:
    return Pair(bytes([number]) * 32, bytes([number + 1]) * 32)


@pytest.fixture
def cache(tmp_path: Path) -> DeltaCache:
    return DeltaCache(tmp_path / "deltas", 3 * MIB)


def delta_file(path: Path, *seeds: int) -> Path:
    path.write_bytes(b"".join(random.Random(seed).randbytes(MIB) for seed in seeds))  # noqa: S311
    return path


def add(cache: DeltaCache, number: int, path: Path, *seeds: int) -> Delta:
    delta = cache.add(pair(number), delta_file(path, *seeds))
    # Explicit times, because the file system's clock may be too coarse to order the files.
    made = cache.work.parent / "made" / pair(number).name
    os.utime(made, (number, number))
    return delta


def is_whole(cache: DeltaCache, delta: Delta) -> bool:
    return cache.chunks.size(bytes.fromhex(delta.index)) is not None


def stored_bytes(cache: DeltaCache) -> int:
    folder = cache.work.parent / "chunks"
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_what_was_made_is_found_after_a_restart(cache: DeltaCache, tmp_path: Path) -> None:
    delta = add(cache, 1, tmp_path / "delta", 1, 2)
    assert delta.size == 2 * MIB
    again = DeltaCache(tmp_path / "deltas", 3 * MIB)
    assert again.find(pair(1)) == delta
    assert again.find(pair(2)) is None
    assert again.find(Pair(pair(1).target, pair(1).base)) is None


def test_that_nothing_is_gained_is_remembered_too(cache: DeltaCache) -> None:
    assert cache.add(pair(1), None) == USELESS
    assert cache.find(pair(1)) == USELESS


def test_what_was_not_asked_for_longest_goes_first(cache: DeltaCache, tmp_path: Path) -> None:
    first = add(cache, 1, tmp_path / "delta", 1)
    second = add(cache, 2, tmp_path / "delta", 2)
    assert cache.find(pair(1)) == first
    add(cache, 3, tmp_path / "delta", 3, 4)
    assert cache.find(pair(1)) == first
    assert cache.find(pair(2)) is None
    assert not is_whole(cache, second)
    assert stored_bytes(cache) < 3 * MIB + 1000


def test_a_chunk_that_another_delta_has_too_stays(cache: DeltaCache, tmp_path: Path) -> None:
    add(cache, 1, tmp_path / "delta", 1, 2)
    add(cache, 2, tmp_path / "delta", 2, 3)
    delta = cache.find(pair(2))
    assert cache.find(pair(1)) is None
    assert delta is not None
    before = stored_bytes(cache)
    assert 2 * MIB < before < 2 * MIB + 1000


def test_one_delta_over_the_budget_is_kept_alone(cache: DeltaCache, tmp_path: Path) -> None:
    add(cache, 1, tmp_path / "delta", 1)
    large = add(cache, 2, tmp_path / "delta", 2, 3, 4, 5)
    assert cache.find(pair(2)) == large
    assert cache.find(pair(1)) is None


def test_a_delta_without_its_chunks_is_none(cache: DeltaCache, tmp_path: Path) -> None:
    delta = add(cache, 1, tmp_path / "delta", 1)
    cache.chunks.remove(bytes.fromhex(delta.index))
    assert cache.find(pair(1)) is None


@pytest.mark.parametrize("damage", [b"", b"{", b'{"size":-1}', b"[1]"])
def test_a_damaged_entry_is_none(cache: DeltaCache, tmp_path: Path, damage: bytes) -> None:
    add(cache, 1, tmp_path / "delta", 1)
    (tmp_path / "deltas" / "made" / pair(1).name).write_bytes(damage)
    assert cache.find(pair(1)) is None
    add(cache, 1, tmp_path / "delta", 1)
    assert cache.find(pair(1)) is not None


def test_half_made_files_are_cleared_at_the_start(cache: DeltaCache, tmp_path: Path) -> None:
    (cache.work / "half").mkdir()
    (cache.work / "half" / "base").write_bytes(b"much")
    assert list(DeltaCache(tmp_path / "deltas", MIB).work.iterdir()) == []
