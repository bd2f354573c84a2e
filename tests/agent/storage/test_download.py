"""Downloads fetch only missing chunks, verify them, resume, and install only complete files."""

import asyncio
import hashlib
import itertools
import threading
from pathlib import Path

import pytest

from agent.backoff import Backoff
from agent.errors import (
    ChunkMissingError,
    CorruptDownloadError,
    DiskFullError,
    SlowDownloadError,
    SourceUnavailableError,
)
from agent.storage.download import Downloader
from agent.storage.file_store import RESERVED_BYTES, FileStore
from agent.storage.partial_file import Partial
from agent.storage.transfer import TransferLimits, TransferProgress
from artifact.chunks import MAX_CHUNK_BYTES, Chunk
from artifact.manifest import File
from tests.agent.chunk_server import ChunkServer, random_file

MIB = 1 << 20


def no_wait() -> Backoff:
    return Backoff(0, 0)


class GivesUp(Backoff):
    """End a download at the first interruption, as the end of the agent would."""

    def next_seconds(self, asked_seconds: float = 0.0) -> float:
        raise SourceUnavailableError("not tried again")


class Box:
    """A store, a server and a downloader."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.server = ChunkServer()
        self.store = FileStore(root / "store")
        self.downloader = Downloader(self.store, self.server, backoff=no_wait)
        self.progress = TransferProgress()

    async def fetch(self, *files: File) -> TransferProgress:
        self.progress = TransferProgress()
        await self.downloader.fetch(files, self.progress, lambda: None)
        return self.progress

    def left(self) -> list[str]:
        """List the partial files."""
        return [path.name for path in (self.root / "store" / "partial").iterdir()]


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path)


async def test_a_file_arrives_whole_under_its_digest(box: Box, tmp_path: Path) -> None:
    source = random_file(tmp_path / "a.gguf", 3 * MIB + 17)
    file = box.server.add(source)
    progress = await box.fetch(file)
    assert box.store.path(file).read_bytes() == source.read_bytes()
    assert progress.done_bytes == progress.total_bytes == file.size
    assert progress.received_bytes == box.server.sent_bytes
    assert box.left() == []


async def test_an_empty_file_arrives(box: Box, tmp_path: Path) -> None:
    file = box.server.add(random_file(tmp_path / "empty", 0))
    await box.fetch(file)
    assert box.store.has(file)


async def test_what_is_here_is_not_fetched_again(box: Box, tmp_path: Path) -> None:
    file = box.server.add(random_file(tmp_path / "a", 2 * MIB))
    await box.fetch(file)
    requests = len(box.server.requests)
    assert (await box.fetch(file)).received_bytes == 0
    assert len(box.server.requests) == requests


async def test_a_break_resumes_with_the_chunks_that_are_missing(box: Box, tmp_path: Path) -> None:
    file = box.server.add(random_file(tmp_path / "a", 5 * MIB))
    index_bytes = len(box.server.chunks[bytes.fromhex(file.index)])
    # The index arrives completely, then the connection breaks in the third chunk.
    box.server.break_after = [index_bytes + 1, 2 * MIB + MIB // 2]
    progress = await box.fetch(file)
    assert [len(request) for request in box.server.requests] == [1, 5, 3]
    assert progress.received_bytes == index_bytes + 5 * MIB + MIB // 2


async def test_a_cancelled_download_waits_for_the_thread_that_writes(
    box: Box, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it were closed first, the thread could write to another file with its descriptor."""
    file = box.server.add(random_file(tmp_path / "a", MIB))
    writing, go_on, written = threading.Event(), threading.Event(), threading.Event()
    write = Partial.write

    def slow(partial: Partial, chunk: Chunk, data: bytes) -> None:
        writing.set()
        go_on.wait()
        write(partial, chunk, data)
        written.set()

    monkeypatch.setattr(Partial, "write", slow)
    download = asyncio.create_task(box.fetch(file))
    await asyncio.to_thread(writing.wait)
    # The task is cancelled once directly, then again at the end of the event loop.
    for _ in range(3):
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        done, _ = await asyncio.wait({download}, timeout=0.05)
        assert not done
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await download
    assert written.is_set()


async def test_a_restart_of_the_agent_resumes_too(box: Box, tmp_path: Path) -> None:
    file = box.server.add(random_file(tmp_path / "a", 4 * MIB))
    box.server.break_after = [10**9, 3 * MIB]
    impatient = Downloader(box.store, box.server, backoff=lambda: GivesUp(0, 0))
    with pytest.raises(SourceUnavailableError):
        await impatient.fetch([file], TransferProgress(), lambda: None)
    again = Box(tmp_path)
    again.server.chunks = box.server.chunks
    progress = await again.fetch(file)
    assert [len(request) for request in again.server.requests] == [1]
    assert progress.received_bytes == MIB


async def test_chunks_of_installed_files_are_used_again(box: Box, tmp_path: Path) -> None:
    base = random_file(tmp_path / "base", 4 * MIB)
    first = box.server.add(base)
    await box.fetch(first)
    tuned = tmp_path / "tuned"
    tuned.write_bytes(
        base.read_bytes()[: 3 * MIB] + random_file(tmp_path / "x", MIB, 2).read_bytes()
    )
    second = box.server.add(tuned)
    progress = await box.fetch(second)
    index_bytes = len(box.server.chunks[bytes.fromhex(second.index)])
    assert progress.received_bytes == MIB + index_bytes
    assert box.store.path(second).read_bytes() == tuned.read_bytes()


async def test_an_installed_file_that_rotted_is_no_source(box: Box, tmp_path: Path) -> None:
    base = random_file(tmp_path / "base", 2 * MIB)
    first = box.server.add(base)
    await box.fetch(first)
    rotten = box.store.path(first)
    rotten.chmod(0o600)
    rotten.write_bytes(bytes(2 * MIB))
    tuned = tmp_path / "tuned"
    tuned.write_bytes(base.read_bytes() + b"more")
    second = box.server.add(tuned)
    await box.fetch(second)
    assert box.store.path(second).read_bytes() == tuned.read_bytes()


async def test_a_chunk_that_repeats_is_fetched_once(box: Box, tmp_path: Path) -> None:
    block = random_file(tmp_path / "block", MAX_CHUNK_BYTES).read_bytes()
    (tmp_path / "a").write_bytes(block * 4)
    file = box.server.add(tmp_path / "a")
    await box.fetch(file)
    assert [len(request) for request in box.server.requests] == [1, 1]
    assert box.store.path(file).read_bytes() == block * 4


async def test_a_chunk_altered_once_is_fetched_again(box: Box, tmp_path: Path) -> None:
    file = box.server.add(random_file(tmp_path / "a", 2 * MIB))
    box.server.altered = {digest: 2 for digest in box.server.chunks if digest.hex() != file.index}
    await box.fetch(file)
    assert box.store.has(file)


async def test_a_chunk_that_stays_altered_is_refused(box: Box, tmp_path: Path) -> None:
    file = box.server.add(random_file(tmp_path / "a", 2 * MIB))
    box.server.altered = dict.fromkeys(box.server.chunks, 3)
    box.server.altered[bytes.fromhex(file.index)] = 0
    with pytest.raises(CorruptDownloadError, match="tried 3 times"):
        await box.fetch(file)
    assert not box.store.has(file)
    assert box.left() == []


async def test_an_altered_index_is_refused(box: Box, tmp_path: Path) -> None:
    file = box.server.add(random_file(tmp_path / "a", MIB))
    box.server.altered = {bytes.fromhex(file.index): 3}
    with pytest.raises(CorruptDownloadError):
        await box.fetch(file)
    assert box.left() == []


async def test_a_truncated_chunk_is_refused(box: Box, tmp_path: Path) -> None:
    file = box.server.add(random_file(tmp_path / "a", MIB + 5))
    for digest, data in box.server.chunks.items():
        if len(data) == 5:
            box.server.chunks[digest] = data[:4]
    with pytest.raises(CorruptDownloadError):
        await box.fetch(file)
    assert box.left() == []


async def test_a_chunk_that_the_server_lacks_ends_it_at_once(box: Box, tmp_path: Path) -> None:
    file = box.server.add(random_file(tmp_path / "a", 2 * MIB))
    box.server.chunks = {
        digest: data for digest, data in box.server.chunks.items() if digest.hex() == file.index
    }
    with pytest.raises(ChunkMissingError):
        await box.fetch(file)
    assert box.left() == []


async def test_a_full_disk_is_told_before_the_first_byte(box: Box, tmp_path: Path) -> None:
    file = box.server.add(random_file(tmp_path / "a", 2 * MIB))
    store = FileStore(tmp_path / "store", free=lambda _: RESERVED_BYTES + 2 * MIB - 1)
    with pytest.raises(DiskFullError, match=str(2 * MIB)) as refused:
        await Downloader(store, box.server).fetch([file], TransferProgress(), lambda: None)
    assert "Free space" in refused.value.advice
    assert box.server.requests == []
    roomy = FileStore(tmp_path / "store", free=lambda _: RESERVED_BYTES + 2 * MIB)
    await Downloader(roomy, box.server).fetch([file], TransferProgress(), lambda: None)
    assert roomy.has(file)


async def test_the_owners_budget_counts_what_is_here(box: Box, tmp_path: Path) -> None:
    first = box.server.add(random_file(tmp_path / "a", 2 * MIB, 1))
    second = box.server.add(random_file(tmp_path / "b", 2 * MIB, 2))
    await box.fetch(first)
    tight = FileStore(tmp_path / "store", budget_bytes=4 * MIB - 1)
    with pytest.raises(DiskFullError, match=f"{2 * MIB} bytes are needed"):
        await Downloader(tight, box.server).fetch([second], TransferProgress(), lambda: None)
    assert tight.keep_only(set()) >= 2 * MIB
    await Downloader(tight, box.server).fetch([second], TransferProgress(), lambda: None)
    assert tight.has(second)


async def test_what_a_begun_file_holds_already_needs_no_more_space(
    box: Box, tmp_path: Path
) -> None:
    file = box.server.add(random_file(tmp_path / "a", 4 * MIB))
    box.server.break_after = [10**9, 3 * MIB]
    impatient = Downloader(box.store, box.server, backoff=lambda: GivesUp(0, 0))
    with pytest.raises(SourceUnavailableError):
        await impatient.fetch([file], TransferProgress(), lambda: None)
    tight = FileStore(tmp_path / "store", free=lambda _: RESERVED_BYTES + MIB)
    await Downloader(tight, box.server).fetch([file], TransferProgress(), lambda: None)
    assert tight.has(file)


async def test_a_trickle_is_broken_off_and_given_up_at_the_deadline(
    box: Box, tmp_path: Path
) -> None:
    file = box.server.add(random_file(tmp_path / "a", MIB))
    box.server.piece_bytes = 10
    seconds = itertools.count()
    slow = Downloader(
        box.store,
        box.server,
        limits=TransferLimits(stalled_seconds=100, least_bytes_per_second=11, window_seconds=30),
        clock=lambda: float(next(seconds)),
        backoff=no_wait,
    )
    with pytest.raises(SlowDownloadError):
        await slow.fetch([file], TransferProgress(), lambda: None)


async def test_a_server_that_goes_on_after_the_last_chunk_is_not_listened_to(
    box: Box, tmp_path: Path
) -> None:
    file = box.server.add(random_file(tmp_path / "a", MIB))
    box.server.endless = set(box.server.chunks) - {bytes.fromhex(file.index)}
    await box.fetch(file)
    # The requested bytes are good and stay; at most one further piece is read.
    index_bytes = len(box.server.chunks[bytes.fromhex(file.index)])
    assert box.server.sent_bytes <= index_bytes + MIB + 2 * box.server.piece_bytes
    assert box.store.has(file)


async def test_the_index_must_describe_the_file_that_the_manifest_names(
    box: Box, tmp_path: Path
) -> None:
    one = box.server.add(random_file(tmp_path / "a", MIB, 1))
    other = box.server.add(random_file(tmp_path / "b", MIB, 2))
    lie = File(name="a", size=one.size, sha256=one.sha256, index=other.index)
    with pytest.raises(CorruptDownloadError):
        await box.fetch(lie)
    assert not box.store.has(lie)


async def test_clearing_spares_what_is_named_and_takes_the_rest(box: Box, tmp_path: Path) -> None:
    keep = box.server.add(random_file(tmp_path / "a", MIB, 1))
    drop = box.server.add(random_file(tmp_path / "b", MIB, 2))
    await box.fetch(keep, drop)
    begun = hashlib.sha256(b"begun").hexdigest()
    (tmp_path / "store" / "partial" / begun).write_bytes(b"some")
    freed = box.store.keep_only({keep.sha256})
    assert freed > MIB
    assert box.store.has(keep)
    assert box.store.index(keep) is not None
    assert not box.store.has(drop)
    assert box.left() == []


async def test_a_download_that_progresses_may_take_longer_than_its_deadline(
    box: Box, tmp_path: Path
) -> None:
    """A large model over a slow link takes days; the deadline counts from the last chunk."""
    now = 0.0

    def ten_hours_later(_: float, __: float) -> float:
        nonlocal now
        now += 36_000
        return 0.0

    file = box.server.add(random_file(tmp_path / "a", 5 * MIB))
    index_bytes = len(box.server.chunks[bytes.fromhex(file.index)])
    # One chunk per connection, ten hours apart: 50 hours in all, against a deadline of 24.
    box.server.break_after = [index_bytes + 1, *[MIB] * 5]
    box.downloader = Downloader(
        box.store,
        box.server,
        clock=lambda: now,
        backoff=lambda: Backoff(0, 0, uniform=ten_hours_later),
    )
    await box.fetch(file)
    assert box.store.has(file)
    assert now >= 5 * 36_000


async def test_a_download_without_progress_ends_at_its_deadline(box: Box, tmp_path: Path) -> None:
    now = 0.0

    def ten_hours_later(_: float, __: float) -> float:
        nonlocal now
        now += 36_000
        return 0.0

    file = box.server.add(random_file(tmp_path / "a", 5 * MIB))
    # Every connection delivers bytes, and none a complete chunk.
    index_bytes = len(box.server.chunks[bytes.fromhex(file.index)])
    box.server.break_after = [index_bytes + 1] + [1000] * 10
    box.downloader = Downloader(
        box.store,
        box.server,
        clock=lambda: now,
        backoff=lambda: Backoff(0, 0, uniform=ten_hours_later),
    )
    with pytest.raises(SourceUnavailableError):
        await box.fetch(file)
    assert now == 3 * 36_000
