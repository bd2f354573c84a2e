"""A delta is made once for all devices, within a budget, or refused."""

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from artifact.chunks import encode_index, index_file, read_chunks
from artifact.deltas.restore import restore
from controlplane.blobs import ChunkStore, DeltaCache
from controlplane.errors import InvalidInputError
from controlplane.services.publishing.deltas import (
    BeingMade,
    Budget,
    DeltaService,
    FileDigests,
    Ready,
)

MIB = 1 << 20
BASE = random.Random(1).randbytes(MIB + 300)  # noqa: S311 - bytes to move, no secret
TUNED = BASE[:5000] + b"tuned" + BASE[5005:]
OTHER = random.Random(2).randbytes(MIB)  # noqa: S311

ORDINARY = Budget()


class Bench:
    """A chunk store with files, and the delta service over it."""

    def __init__(self, folder: Path, budget: Budget = ORDINARY) -> None:
        self.folder = folder
        self.chunks = ChunkStore(folder / "chunks")
        self.cache = DeltaCache(folder / "deltas", 64 * MIB)
        self.now = 0.0
        self.service = DeltaService(self.chunks, self.cache, budget, lambda: self.now)

    def add(self, data: bytes) -> FileDigests:
        path = self.folder / "file"
        path.write_bytes(data)
        index = index_file(path)
        for _, piece in read_chunks(path, index):
            self.chunks.put(piece)
        digest, _ = self.chunks.put(encode_index(index))
        return FileDigests(index.sha256, digest)

    async def made(self, base: FileDigests, target: FileDigests) -> Ready | None:
        """Return the answer once all comparisons have ended."""
        for _ in range(2):
            found = await self.service.get([base], target)
            if not isinstance(found, BeingMade):
                return found
            await self.idle()
        raise AssertionError("it is being made for ever")

    async def idle(self) -> None:
        await asyncio.gather(*self.service._making.values())


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    await bench.service.close()


async def test_a_delta_is_made_once_and_restores_the_file(bench: Bench, tmp_path: Path) -> None:
    base, target = bench.add(BASE), bench.add(TUNED)
    answers = await asyncio.gather(*(bench.service.get([base], target) for _ in range(20)))
    assert all(isinstance(answer, BeingMade) for answer in answers)
    assert len(bench.service._making) == 1
    ready = await bench.made(base, target)
    assert ready is not None
    assert ready.base_sha256 == base.sha256
    assert ready.delta.size < 10_000

    holder = bench.service.holder(bytes.fromhex(ready.delta.index))
    assert holder is bench.cache.chunks
    (tmp_path / "base").write_bytes(BASE)
    delta = tmp_path / "delta"
    delta.write_bytes(holder.read(bytes.fromhex(ready.delta.sha256)))
    assert hashlib.sha256(delta.read_bytes()).hexdigest() == ready.delta.sha256
    restore(tmp_path / "base", delta, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == TUNED
    assert list(bench.cache.work.iterdir()) == []


async def test_the_first_base_for_which_there_is_one_serves(bench: Bench) -> None:
    base, other, target = bench.add(BASE), bench.add(OTHER), bench.add(TUNED)
    assert await bench.made(base, target) is not None
    found = await bench.service.get([other, base], target)
    assert isinstance(found, Ready)
    assert found.base_sha256 == base.sha256


async def test_files_with_nothing_in_common_are_compared_once(bench: Bench) -> None:
    base, target = bench.add(OTHER), bench.add(TUNED)
    assert await bench.made(base, target) is None
    assert await bench.service.get([base], target) is None
    assert not bench.service._making


async def test_files_that_are_not_here_are_not_compared(bench: Bench) -> None:
    base, target = bench.add(BASE), bench.add(TUNED)
    absent = FileDigests(bytes(32), bytes(32))
    swapped = FileDigests(target.sha256, base.index)
    no_index = FileDigests(target.sha256, hashlib.sha256(TUNED[:MIB]).digest())
    for wrong in (absent, swapped, no_index):
        assert await bench.service.get([base], wrong) is None
        assert await bench.service.get([wrong], target) is None


async def test_a_missing_chunk_ends_it_without_a_trace(bench: Bench) -> None:
    base, target = bench.add(BASE), bench.add(TUNED)
    bench.chunks.remove(hashlib.sha256(BASE[MIB:]).digest())
    assert isinstance(await bench.service.get([base], target), BeingMade)
    await bench.idle()
    assert list(bench.cache.work.iterdir()) == []
    bench.add(BASE)
    assert await bench.made(base, target) is not None


async def test_what_is_asked_for_must_be_digests(bench: Bench) -> None:
    good = FileDigests(bytes(32), bytes(32))
    for bases, target in (
        ([], good),
        ([good] * 9, good),
        ([FileDigests(bytes(31), bytes(32))], good),
        ([good], FileDigests(bytes(32), b"../../etc/passwd")),
    ):
        with pytest.raises(InvalidInputError):
            await bench.service.get(bases, target)


@pytest.mark.parametrize(
    "budget", [Budget(file_bytes=MIB), Budget(waiting=0), Budget(seconds_per_hour=0)]
)
async def test_beyond_the_budget_nothing_is_made(tmp_path: Path, budget: Budget) -> None:
    bench = Bench(tmp_path, budget)
    base, target = bench.add(BASE), bench.add(TUNED)
    assert await bench.service.get([base], target) is None


async def test_each_hour_has_its_budget(tmp_path: Path) -> None:
    bench = Bench(tmp_path, Budget(seconds_per_hour=10))
    base, target, other = bench.add(BASE), bench.add(TUNED), bench.add(OTHER)
    assert isinstance(await bench.service.get([base], target), BeingMade)
    await asyncio.sleep(0)
    bench.now = 10
    await bench.idle()
    assert await bench.service.get([other], target) is None
    bench.now = 3611
    assert isinstance(await bench.service.get([other], target), BeingMade)
    await bench.service.close()


async def test_a_comparison_that_takes_too_long_is_killed(tmp_path: Path) -> None:
    bench = Bench(tmp_path, Budget(seconds=0.01))
    base, target = bench.add(BASE), bench.add(TUNED)
    assert isinstance(await bench.service.get([base], target), BeingMade)
    await bench.idle()
    assert await bench.service.get([base], target) is None
    # A restarted server may try again.
    again = DeltaService(bench.chunks, bench.cache)
    assert isinstance(await again.get([base], target), BeingMade)
    await again.close()


async def test_closing_ends_what_is_being_made(bench: Bench) -> None:
    base, target = bench.add(BASE), bench.add(TUNED)
    assert isinstance(await bench.service.get([base], target), BeingMade)
    await asyncio.sleep(0)
    await bench.service.close()
    assert not bench.service._making
    assert list(bench.cache.work.iterdir()) == []
