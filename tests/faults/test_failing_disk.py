"""A full or broken disk at every write: a typed error, no partial files, no false success.

The live release is unaffected.
"""

import contextlib
import itertools
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.backoff import Backoff
from agent.config import DataDir
from agent.daemon import _telemetry_queue, exclusive
from agent.errors import DiskFailedError, DiskFullError, JournalError
from agent.hardware import benchmark
from agent.journal import Assignment, Journal, Pointers, Update
from agent.storage.atomic_file import write_file
from agent.storage.download import Downloader
from agent.storage.file_store import FileStore
from agent.storage.transfer import TransferProgress
from agent.update.machine import State
from artifact.chunks import verify_file
from artifact.device_facts import MicroBenchmark
from artifact.manifest import File
from tests.agent.box import Life, World, eventually
from tests.agent.chunk_server import ChunkServer, random_file
from tests.faults.answers import HAPPY, ONE, TWO, WORKING, answer
from tests.faults.disk import BROKEN, CALLS, FULL, Fault, tapped

MIB = 1 << 20
ERRORS = [(FULL, DiskFullError), (BROKEN, DiskFailedError)]


class Box:
    """Return a store with a file, and a server with that file's next version."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.server = ChunkServer()
        self.store = FileStore(root / "store")
        self.downloader = Downloader(self.store, self.server, backoff=lambda: Backoff(0, 0))
        base = random_file(root / "base", MIB)
        tuned = root / "tuned"
        tuned.write_bytes(base.read_bytes() + random_file(root / "more", MIB + 7, 2).read_bytes())
        self.base, self.tuned = self.server.add(base), self.server.add(tuned)

    async def fetch(self, file: File) -> TransferProgress:
        progress = TransferProgress()
        await self.downloader.fetch([file], progress, lambda: None)
        return progress

    def check(self, file: File) -> None:
        verify_file(self.store.path(file), bytes.fromhex(file.sha256), file.size)

    def begun(self) -> list[str]:
        return [path.name for path in (self.root / "store" / "partial").iterdir()]


@pytest.mark.parametrize("forever", [False, True])
@pytest.mark.parametrize(("number", "error"), ERRORS)
async def test_a_download_ends_typed_at_every_write_and_succeeds_once_the_disk_is_sound(
    tmp_path: Path, number: int, error: type[Exception], forever: bool
) -> None:
    hits = []
    for nth in itertools.count():
        box = Box(tmp_path / str(nth))
        await box.fetch(box.base)
        fault, raised = Fault(number, nth=nth, forever=forever), None
        with tapped(fault):
            try:
                await box.fetch(box.tuned)
            except error as failure:
                raised = failure
        assert bool(raised) == bool(fault.hit)
        box.check(box.base)
        if not fault.hit:
            break
        hits.append(fault.hit)
        assert not box.store.has(box.tuned) or forever
        if not forever:
            # A page lost by a failed fsync still reads correctly from the cache: do not reuse it.
            assert box.begun() == []
            again = await box.fetch(box.tuned)
            assert again.received_bytes > MIB
        else:
            await box.fetch(box.tuned)
        box.check(box.tuned)
    assert set(hits) == set(CALLS) - {"unlink"} | {"write"}


@pytest.mark.parametrize(("number", "error"), ERRORS)
def test_restoring_from_a_delta_ends_typed_at_every_write(
    tmp_path: Path, number: int, error: type[Exception]
) -> None:
    for nth in itertools.count():
        box = Box(tmp_path / str(nth))
        fault = Fault(number, nth=nth)
        try:
            with tapped(fault), box.store.restoring(box.tuned) as whole:
                whole.write_bytes((box.root / "tuned").read_bytes())
        except error:
            assert not box.store.has(box.tuned)
        if not fault.hit:
            break
    assert nth > 6
    box.check(box.tuned)


@pytest.mark.parametrize("number", [FULL, BROKEN])
def test_a_small_file_is_the_old_or_the_new_whatever_write_fails(
    tmp_path: Path, number: int
) -> None:
    path = tmp_path / "config.json"
    calls = []
    for nth in itertools.count():
        write_file(path, b"old")
        fault, raised = Fault(number, nth=nth), 0
        try:
            with tapped(fault):
                write_file(path, b"the new")
        except OSError as error:
            raised = error.errno or 0
        assert raised == (number if fault.hit else 0)
        calls.append(fault.hit)
        # The last failure is the fsync of the directory after the rename.
        assert path.read_bytes() == (b"old" if nth < 4 else b"the new")
        assert list(tmp_path.iterdir()) == [path]
        if not fault.hit:
            break
    assert calls == ["open", "write", "fsync", "replace", "fsync", ""]


def test_a_full_disk_leaves_the_journal_as_it_was(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.db")
    small = Update(
        assignment=Assignment(generation=1, release="", manifest_sha256=""), state="idle"
    )
    journal.record(update=small)
    pages = journal._database.connection.execute("PRAGMA page_count").fetchone()[0]
    journal._database.connection.execute(f"PRAGMA max_page_count={pages}")
    large = Update(assignment=small.assignment, state="planning", detail="x" * 100_000)
    with pytest.raises(JournalError, match="full"):
        journal.record(update=large, pointers=Pointers())
    assert journal.update() == small
    journal._database.connection.execute("PRAGMA max_page_count=100000")
    journal.record(update=large)
    assert journal.update() == large
    journal.close()


@pytest.mark.parametrize("kind", ["pwrite", "rename"])
@pytest.mark.parametrize("number", [FULL, BROKEN])
async def test_a_failing_disk_rejects_the_update_and_the_live_release_never_notices(
    tmp_path: Path, kind: str, number: int
) -> None:
    world = World(tmp_path)
    async with Life(world) as life:
        await life.do(world.publish("1"))
        life.chain.clear()
        # Clearing the store would make room, but there is no file to delete.
        with tapped(Fault(number, kind=kind, forever=True)):
            life.engine.assign(world.publish("2"))
            await life.until(State.REJECTED, 2)
        await life.until(State.IDLE, 2)
        assert life.chain == [*WORKING[:3], State.REJECTED, State.IDLE]
        receipt = life.journal.receipts()[-1]
        assert receipt.reason == ("disk_full" if number == FULL else "disk_failed")
        assert await answer(life) == "This is release 1"
        assert life.pointers == ("", ONE, "")
        receipt = await life.do(world.publish("3"))
        assert receipt.outcome == State.COMMITTED


@pytest.mark.parametrize("kind", ["open", "fsync"])
async def test_on_a_disk_that_takes_no_file_no_update_begins_until_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr("agent.update.engine.JOURNAL_RETRY_SECONDS", 0.01)
    world = World(tmp_path)
    async with Life(world) as life:
        await life.do(world.publish("1"))
        second = world.publish("2")
        life.chain.clear()
        with tapped(Fault(BROKEN, kind=kind, forever=True)):
            life.engine.assign(second)
            await eventually(lambda: "Input/output error" in life.engine.status().detail)
            assert life.chain == []
            assert await answer(life) == "This is release 1"
        await life.until(State.IDLE, 2)
        assert life.chain == HAPPY
        assert life.engine.status().detail == ""


async def test_a_store_that_cannot_be_cleared_stops_nothing(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with Life(world) as life:
        for version in ("1", "2"):
            await life.do(world.publish(version))
        life.chain.clear()
        fault = Fault(BROKEN, kind="unlink", forever=True)
        with tapped(fault):
            await life.do(world.publish("3"))
        assert fault.hit
        assert life.chain == HAPPY
        assert await answer(life) == "This is release 3"
        await life.do(world.publish("4"))
        assert len(life.files()) == 2


async def test_while_the_journal_cannot_be_written_the_live_release_serves_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.update.engine.JOURNAL_RETRY_SECONDS", 0.01)
    world = World(tmp_path)
    async with Life(world) as life:
        await life.do(world.publish("1"))
        second = world.publish("2")
        life.chain.clear()
        database = life.journal._database.connection
        database.execute("PRAGMA query_only=1")
        life.engine.assign(second)
        assert await answer(life) == "This is release 1"
        assert life.engine.status().generation == 1
        database.execute("PRAGMA query_only=0")
        await life.until(State.IDLE, 2)
        assert life.chain == HAPPY
        assert life.serves == TWO


@pytest.fixture
def small_disk(tmp_path: Path, require: Callable[..., None]) -> Iterator[Path]:
    """Mount a file system that a test may fill."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(folder)]
    mounted = subprocess.run(command, check=False, capture_output=True).returncode == 0
    require("mount", missing=None if mounted else "no file system may be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Fill the file system to the last byte, like a log without rotation."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)):
                    pass
    return filler


async def test_a_box_that_starts_on_a_full_disk_serves_and_updates_once_there_is_room(
    small_disk: Path,
) -> None:
    world = World(small_disk)
    async with Life(world) as life:
        await life.do(world.publish("1"))
    second = world.publish("2")
    filler = fill(small_disk)
    async with Life(world) as life:
        await eventually(lambda: life.serves)
        assert await answer(life) == "This is release 1"
        filler.unlink()
        await life.do(second)
        assert life.chain == HAPPY
        assert life.serves == TWO


async def test_telemetry_and_lock_of_a_daemon_do_without_a_disk(small_disk: Path) -> None:
    data_dir = DataDir(small_disk)
    _telemetry_queue(data_dir.telemetry).close()
    fill(small_disk)
    with exclusive(data_dir):
        pass
    queue = _telemetry_queue(data_dir.telemetry)
    assert len(queue) == 0
    queue.close()


async def test_a_benchmark_that_cannot_be_kept_is_known_all_the_same(tmp_path: Path) -> None:
    facts = World(tmp_path).facts()
    measured = facts.benchmark
    assert measured is not None

    async def measure(*_: object) -> MicroBenchmark:
        return measured

    path = tmp_path / "benchmark.json"
    with tapped(Fault(FULL, kind="write", forever=True)):
        assert await benchmark(path, facts, measure=measure) == measured
    assert not path.exists()
