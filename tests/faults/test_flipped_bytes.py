"""A flipped byte on the wire or on the disk is detected or has no effect.

tests/artifact/trust and tests/security cover metadata and manifests; tests/artifact/deltas covers
deltas.
"""

import itertools
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agent.backoff import Backoff
from agent.daemon import _telemetry_queue
from agent.errors import CorruptDownloadError, JournalError
from agent.journal import Assignment, HeldRelease, Journal, Pointers, Receipt, Update
from agent.storage.download import Downloader
from agent.storage.file_store import FileStore
from agent.storage.transfer import TransferProgress
from artifact.chunks import verify_file
from tests.agent.chunk_server import ChunkServer, random_file

COPY = "journal-copy/contents"
ANYWHERE = st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 7))
Spot = tuple[float, int]


def flip(data: bytes, spot: Spot) -> bytes:
    """Flip one bit at a position between the first byte (0) and the last (1)."""
    where, bit = int(spot[0] * len(data)), 1 << spot[1]
    return data[:where] + bytes([data[where] ^ bit]) + data[where + 1 :]


# -- on the wire


@dataclass
class Wire:
    """Return a server with one file of three chunks, and a factory of empty boxes."""

    root: Path
    server: ChunkServer

    def __post_init__(self) -> None:
        self.file = self.server.add(random_file(self.root / "a", 3000), (1000, 2000))
        self.sound = dict(self.server.chunks)
        self.numbers = itertools.count()

    async def fetch(self) -> FileStore:
        store = FileStore(self.root / f"store-{next(self.numbers)}")
        downloader = Downloader(store, self.server, backoff=lambda: Backoff(0, 0))
        await downloader.fetch([self.file], TransferProgress(), lambda: None)
        return store


@pytest.fixture(scope="module")
def wire(tmp_path_factory: pytest.TempPathFactory) -> Wire:
    return Wire(tmp_path_factory.mktemp("wire"), ChunkServer())


@settings(max_examples=60)
@given(which=st.integers(0, 3), spot=ANYWHERE)
async def test_of_chunks_and_index_none_is_installed(wire: Wire, which: int, spot: Spot) -> None:
    digest = sorted(wire.sound)[which]
    wire.server.chunks = wire.sound | {digest: flip(wire.sound[digest], spot)}
    with pytest.raises(CorruptDownloadError):
        await wire.fetch()
    store = FileStore(wire.root / f"store-{next(wire.numbers) - 1}")
    assert not store.has(wire.file)
    wire.server.chunks = dict(wire.sound)
    store = await wire.fetch()
    verify_file(store.path(wire.file), bytes.fromhex(wire.file.sha256), wire.file.size)


# -- on the disk


def held(reference: str) -> HeldRelease:
    return HeldRelease(reference=reference, manifest=b"{}" * 900, manifest_sha256="0" * 64)


def update(generation: int) -> Update:
    assignment = Assignment(generation=generation, release="acme/a@2", manifest_sha256="1" * 64)
    return Update(assignment=assignment, state="soaking", stores={"soaking": 1})


def receipt(generation: int) -> Receipt:
    return Receipt(
        generation=generation,
        release="acme/a@1",
        outcome="committed",
        reason="",
        detail="d" * 200,
        received_bytes=1,
        switch_seconds=0.5,
        decisions=(),
        checks=(),
        finished_at=datetime(2026, 1, 1, tzinfo=UTC),
        current_release="acme/a@1",
        last_good_release="",
    )


def contents(path: Path) -> tuple[object, ...]:
    """Return the whole content of a journal; JournalError."""
    journal = Journal(path)
    try:
        found = (journal.update(), journal.pointers(), journal.receipts(), journal.floors())
        # Some flips are detected only by a write.
        journal.record(update=update(99))
        assert journal.update() == update(99)
    finally:
        journal.close()
    return found


@dataclass
class Rot:
    """A journal's files at a power cut, and its content before."""

    folder: Path
    files: dict[str, bytes]
    said: list[tuple[object, ...]]

    def after(self, name: str, spot: Spot) -> tuple[object, ...] | None:
        """Return the content of a journal with one bit flipped; None if it is refused."""
        shutil.rmtree(self.folder, ignore_errors=True)
        (self.folder / "journal-copy").mkdir(parents=True)
        for each, data in self.files.items():
            (self.folder / each).write_bytes(flip(data, spot) if each == name else data)
        try:
            return contents(self.folder / "journal.db")
        except JournalError:
            return None


@pytest.fixture(scope="module")
def rot(memory: Path) -> Rot:
    folder = memory / "journal"
    folder.mkdir()
    path = folder / "journal.db"
    journal = Journal(path)
    said: list[tuple[object, ...]] = [(None, Pointers(), [], {})]

    def say(**changes: Any) -> None:
        journal.record(**changes)
        remember()

    def remember() -> None:
        said.append((journal.update(), journal.pointers(), journal.receipts(), journal.floors()))

    say(update=update(1), pointers=Pointers(current=held("acme/a@1")), receipt=receipt(1))
    journal.raise_floors({"image/timestamp": 7})
    remember()
    # Later commits stand only in the log.
    journal._database.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    say(update=update(2), pointers=Pointers(current=held("acme/a@2"), last_good=held("acme/a@1")))
    say(receipt=receipt(2))
    names = ("journal.db", "journal.db-wal", COPY)
    files = {name: (folder / name).read_bytes() for name in names}
    journal.close()
    return Rot(folder / "flipped", files, said)


@pytest.fixture(scope="module")
def closed(rot: Rot) -> Rot:
    """Test a journal after an orderly end, which checkpoints the log."""
    folder = rot.folder.parent
    files = {name: (folder / name).read_bytes() for name in ("journal.db", COPY)}
    return Rot(folder / "flipped", files, rot.said)


def alone(rot: Rot) -> Rot:
    """Test a journal without its copy."""
    return Rot(
        rot.folder, {name: data for name, data in rot.files.items() if name != COPY}, rot.said
    )


@settings(max_examples=200)
@given(spot=ANYWHERE)
# A flip in a table's name makes SQLite report text that is not UTF-8.
@example(spot=(0.154296875, 7))
def test_of_a_journal_page_none_is_believed(closed: Rot, spot: Spot) -> None:
    assert alone(closed).after("journal.db", spot) in (None, closed.said[-1])


def test_a_damaged_queue_of_telemetry_lets_the_daemon_start(tmp_path: Path) -> None:
    path = tmp_path / "telemetry.db"
    _telemetry_queue(path).close()
    # SQLite's error contains the table's name, which is not UTF-8 then.
    data = path.read_bytes()
    damaged = data.replace(b"tablewire_windowswire_windows", b"table\xe5ire_windowswire_windows")
    assert damaged != data
    path.write_bytes(damaged)
    queue = _telemetry_queue(path)
    assert len(queue) == 0
    queue.close()


@settings(max_examples=200)
@given(spot=ANYWHERE)
def test_of_the_journals_log_all_from_there_on_is_as_if_the_power_had_gone_then(
    rot: Rot, spot: Spot
) -> None:
    assert alone(rot).after("journal.db-wal", spot) in (None, *rot.said[2:])


def test_of_a_journals_document_every_byte_is_told(closed: Rot) -> None:
    pages = closed.files["journal.db"]
    start = pages.index(b'{"assignment"')
    for position in range(start, start + 30):
        assert alone(closed).after("journal.db", ((position + 0.5) / len(pages), 1)) is None


@settings(max_examples=120)
@given(name=st.sampled_from(["journal.db", "journal.db-wal", COPY]), spot=ANYWHERE)
def test_of_a_journal_and_its_copy_no_flip_costs_anything(rot: Rot, name: str, spot: Spot) -> None:
    assert rot.after(name, spot) == rot.said[-1]


def test_no_flip_of_a_document_costs_anything(closed: Rot) -> None:
    pages = closed.files["journal.db"]
    start = pages.index(b'{"assignment"')
    for position in range(start, start + 30):
        assert closed.after("journal.db", ((position + 0.5) / len(pages), 1)) == closed.said[-1]
