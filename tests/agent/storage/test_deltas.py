"""A box fetches a delta if that is fewer bytes, and chunks if the delta is unusable."""

import asyncio
import hashlib
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pytest

from agent.backoff import Backoff
from agent.errors import DeltaRefusedError, SourceUnavailableError
from agent.storage import deltas
from agent.storage.deltas import MAX_BASES, BeingMade, Offer, likely_bases
from agent.storage.download import Downloader
from agent.storage.file_store import RESERVED_BYTES, FileStore
from agent.storage.transfer import DEFAULT_LIMITS, TransferLimits, TransferProgress
from artifact.deltas.encode import Side, Tensor, make_delta
from artifact.manifest import File
from artifact.splitting import Span
from tests.agent.chunk_server import ChunkServer

BLOCKS = 60_000
SIZE = BLOCKS * 34


@dataclass
class World:
    """A box with a base file, a server with a tuned version, and the delta between them."""

    root: Path
    server: ChunkServer
    store: FileStore
    base: File
    tuned: File
    tuned_bytes: bytes
    delta: File
    progress: TransferProgress

    async def fetch(
        self, *, store: FileStore | None = None, limits: TransferLimits = DEFAULT_LIMITS
    ) -> None:
        downloader = Downloader(
            store or self.store, self.server, limits=limits, backoff=lambda: Backoff(0, 0)
        )
        await downloader.fetch([self.tuned], self.progress, lambda: None)

    def arrived(self) -> bool:
        whole = self.store.path(self.tuned).read_bytes() == self.tuned_bytes
        return whole and self.left() == set()

    def left(self) -> set[str]:
        """List the files of the store other than the base and the tuned file."""
        found = {path.name for path in (self.root / "store").rglob("*") if path.is_file()}
        return found - {self.base.sha256, self.tuned.sha256}


def side(path: Path, data: bytes) -> Side:
    path.write_bytes(data)
    tensor = Tensor("weight", "q8_0", (BLOCKS, 32), Span(0, SIZE))
    return Side(path, hashlib.sha256(data).digest(), [tensor])


@pytest.fixture
async def world(tmp_path: Path) -> World:
    random = np.random.default_rng(1)
    blocks = random.integers(0, 256, (BLOCKS, 34), np.uint8)
    base_bytes = blocks.tobytes()
    # Tuned throughout: every chunk differs, although most bytes are equal.
    blocks[:, 5] += 1
    tuned_bytes = blocks.tobytes()
    make_delta(
        side(tmp_path / "base", base_bytes), side(tmp_path / "tuned", tuned_bytes), tmp_path / "d"
    )
    server = ChunkServer()
    store = FileStore(tmp_path / "store")
    base, tuned, delta = (server.add(tmp_path / name) for name in ("base", "tuned", "d"))
    await Downloader(store, server).fetch([base], TransferProgress(), lambda: None)
    server.asked.clear()
    server.offers = [Offer(base.sha256, delta)]
    return World(tmp_path, server, store, base, tuned, tuned_bytes, delta, TransferProgress())


async def test_a_delta_that_is_fewer_bytes_is_fetched_and_the_file_made_of_it(world: World) -> None:
    await world.fetch()
    assert world.arrived()
    bases, target = world.server.asked[0]
    assert [(file.sha256, file.index) for file in bases] == [(world.base.sha256, world.base.index)]
    assert target == world.tuned
    assert world.progress.received_bytes < 0.1 * SIZE
    assert world.progress.done_bytes == world.progress.total_bytes == SIZE
    # From now on it is a source of chunks like any other file.
    assert world.store.index(world.tuned) is not None


async def test_a_delta_that_is_being_made_is_waited_for(world: World) -> None:
    world.server.offers = [BeingMade(0.001), BeingMade(0.001), *world.server.offers]
    await world.fetch()
    assert world.arrived()
    assert len(world.server.asked) == 3
    assert world.progress.received_bytes < 0.1 * SIZE


async def test_a_delta_that_takes_too_long_to_make_is_not_waited_for(world: World) -> None:
    world.server.offers = [BeingMade(60)] * 9
    await world.fetch(limits=TransferLimits(delta_seconds=0))
    assert world.arrived()
    assert len(world.server.asked) == 1


async def test_without_a_delta_the_chunks_come(world: World) -> None:
    world.server.offers = []
    await world.fetch()
    assert world.arrived()
    assert world.progress.received_bytes > SIZE


@pytest.mark.parametrize("size", [SIZE, SIZE * 0.95])
async def test_a_delta_that_saves_too_little_is_left(world: World, size: float) -> None:
    world.server.offers = [
        Offer(world.base.sha256, msgspec.structs.replace(world.delta, size=int(size)))
    ]
    await world.fetch()
    assert world.arrived()
    assert world.progress.received_bytes > SIZE


async def test_a_base_that_is_not_here_is_no_base(world: World) -> None:
    world.server.offers = [Offer("00" * 32, world.delta)]
    await world.fetch()
    assert world.arrived()


async def test_without_room_for_both_the_chunks_come(world: World) -> None:
    tight = FileStore(
        world.root / "store", free=lambda _: RESERVED_BYTES + SIZE + world.delta.size - 1
    )
    await world.fetch(store=tight)
    assert world.arrived()
    assert world.progress.received_bytes > SIZE


async def test_a_delta_that_arrives_altered_is_not_used(world: World) -> None:
    index = bytes.fromhex(world.delta.index)
    world.server.altered = {index: 1}
    await world.fetch()
    assert world.arrived()


async def test_a_delta_that_the_server_dropped_is_done_without(world: World) -> None:
    del world.server.chunks[bytes.fromhex(world.delta.index)]
    await world.fetch()
    assert world.arrived()


async def test_a_delta_of_another_file_is_found_out(world: World) -> None:
    """The author of a delta is not trusted; the signed digest decides."""
    other = np.random.default_rng(9).integers(0, 256, SIZE, np.uint8).tobytes()
    sides = side(world.root / "base", (world.root / "base").read_bytes())
    make_delta(sides, side(world.root / "evil", other[: SIZE // 8]), world.root / "e")
    world.server.offers = [Offer(world.base.sha256, world.server.add(world.root / "e"))]
    await world.fetch()
    assert world.arrived()


async def test_rubbish_for_a_delta_is_found_out(world: World) -> None:
    (world.root / "rubbish").write_bytes(b"FLTD\x01" + bytes(5000))
    world.server.offers = [Offer(world.base.sha256, world.server.add(world.root / "rubbish"))]
    await world.fetch()
    assert world.arrived()


@pytest.mark.parametrize("victim", ["base", "tuned"])
async def test_what_the_server_calls_a_delta_never_costs_a_model(world: World, victim: str) -> None:
    """A delta is deleted after use; this one has the name of a model file."""
    file = {"base": world.base, "tuned": world.tuned}[victim]
    lie = msgspec.structs.replace(file, size=SIZE // 2)
    world.server.offers = [Offer(world.base.sha256, lie)]
    await world.fetch()
    assert world.arrived()
    assert world.store.has(world.base)


async def test_a_base_that_rotted_is_found_out(world: World) -> None:
    rotten = world.store.path(world.base)
    rotten.chmod(0o600)
    data = bytearray(rotten.read_bytes())
    data[SIZE // 2] ^= 1
    rotten.write_bytes(data)
    await world.fetch()
    assert world.store.path(world.tuned).read_bytes() == world.tuned_bytes


async def test_a_break_in_a_delta_resumes(world: World) -> None:
    offer = world.server.offers[0]
    world.server.offers = [offer, offer]
    world.server.break_after = [10**9, 10**9, world.delta.size // 2]
    await world.fetch()
    assert world.arrived()
    assert world.progress.received_bytes < 0.15 * SIZE


async def test_a_restart_uses_the_delta_that_came(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer = world.server.offers[0]
    began = asyncio.Event()

    async def hang(*_: object) -> None:
        began.set()
        await asyncio.Event().wait()

    with monkeypatch.context() as patch:
        patch.setattr("agent.storage.download.restore", hang)
        life = asyncio.create_task(world.fetch())
        await began.wait()
        life.cancel()
        with pytest.raises(asyncio.CancelledError):
            await life
    received, world.progress = world.progress.received_bytes, TransferProgress()
    world.server.offers = [offer]
    await world.fetch(store=FileStore(world.root / "store"))
    assert world.arrived()
    assert received > world.delta.size
    assert world.progress.received_bytes == 0


async def test_a_server_out_of_reach_is_tried_again(world: World) -> None:
    offer = world.server.offers[0]
    broken = True

    async def delta(bases: list[File], target: File) -> Offer | None:
        nonlocal broken
        if broken:
            broken = False
            raise SourceUnavailableError("the connection broke")
        return offer if isinstance(offer, Offer) else None

    world.server.delta = delta  # type: ignore[assignment, method-assign]
    await world.fetch()
    assert world.arrived()
    assert world.progress.received_bytes < 0.1 * SIZE


async def test_cancelling_ends_the_process(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pipe").unlink(missing_ok=True)
    os.mkfifo(tmp_path / "pipe")
    begun: asyncio.Queue[asyncio.subprocess.Process] = asyncio.Queue()
    create = asyncio.create_subprocess_exec

    async def remember(*arguments: str, **options: object) -> asyncio.subprocess.Process:
        process = await create(*arguments, **options)  # type: ignore[arg-type]
        begun.put_nowait(process)
        return process

    monkeypatch.setattr(asyncio, "create_subprocess_exec", remember)
    # The process waits for a writer of its base, a named pipe.
    task = asyncio.create_task(
        deltas.restore(tmp_path / "pipe", tmp_path / "d", tmp_path / "out", SIZE)
    )
    process = await begun.get()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert process.returncode is not None


async def test_restoring_that_takes_too_long_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setattr(deltas, "LEAST_SECONDS", 0.05)
    with pytest.raises(DeltaRefusedError, match="longer than its limit"):
        await deltas.restore(tmp_path / "pipe", tmp_path / "pipe", tmp_path / "out", 0)


async def test_what_ended_the_process_is_told(tmp_path: Path) -> None:
    (tmp_path / "base").write_bytes(b"")
    (tmp_path / "delta").write_bytes(b"no delta" + bytes(200))
    with pytest.raises(DeltaRefusedError, match="it starts with b'no de'"):
        await deltas.restore(tmp_path / "base", tmp_path / "delta", tmp_path / "out", 0)
    assert not (tmp_path / "out").exists()


def test_the_likeliest_bases_are_the_nearest_in_size() -> None:
    files = [
        File(name="installed", size=size, sha256=f"{size:064x}", index="0" * 64)
        for size in (49, 50, 90, 101, 200, 201, *range(120, 140))
    ]
    target = replace_size(files[0], 100)
    found = [file.size for file in likely_bases(files, target)]
    assert found == [101, 90, 120, 121, 122, 123, 124, 125]
    assert len(found) == MAX_BASES
    assert [file.size for file in likely_bases(files[:6], target)] == [101, 90, 50, 200]


def replace_size(file: File, size: int) -> File:
    return msgspec.structs.replace(file, size=size)


def test_restoring_takes_less_than_64_mib(world: World) -> None:
    """The bound covers the process with interpreter and libraries."""
    program = (
        "import sys; from agent.worker import restore; restore.main();"
        "print(*(line for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    paths = (world.root / "base", world.root / "d", world.root / "restored")
    result = subprocess.run(
        [sys.executable, "-c", program, str(os.getpid()), *map(str, paths)],
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert paths[2].read_bytes() == world.tuned_bytes
    assert int(result.stdout.split()[1]) << 10 < 64 << 20
