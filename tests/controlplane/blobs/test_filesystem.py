"""The chunk store keeps each chunk once, whole, under its digest."""

import hashlib
import os
from pathlib import Path

import pytest

from artifact.chunks import MAX_INDEX_BYTES
from controlplane.blobs import MESSAGE_BYTES, ChunkStore
from controlplane.errors import InvalidInputError, NotFoundError, StorageFullError


@pytest.fixture
def store(tmp_path: Path) -> ChunkStore:
    return ChunkStore(tmp_path / "chunks")


def test_a_chunk_is_kept_once_under_its_digest(store: ChunkStore) -> None:
    digest, new = store.put(b"weights")
    assert (digest, new) == (hashlib.sha256(b"weights").digest(), True)
    assert store.put(b"weights") == (digest, False)
    assert store.read(digest) == b"weights"
    assert store.size(digest) == 7
    assert store.path(digest).parent.name == digest.hex()[2:4]


def test_missing_ones_are_named_once_in_order(store: ChunkStore) -> None:
    here, _ = store.put(b"here")
    one, two = b"\x01" * 32, b"\x02" * 32
    assert store.missing([two, here, one, two]) == [two, one]


def test_an_altered_chunk_is_missing_and_is_mended_by_putting_it_again(store: ChunkStore) -> None:
    digest, _ = store.put(b"weights")
    store.path(digest).write_bytes(b"weighty")
    assert store.missing([digest]) == [digest]
    assert store.put(b"weights") == (digest, True)
    assert store.read(digest) == b"weights"
    assert store.missing([digest]) == []


@pytest.mark.parametrize("digest", [b"", b"short", b"x" * 33])
def test_what_is_no_digest_is_refused(store: ChunkStore, digest: bytes) -> None:
    with pytest.raises(InvalidInputError):
        store.size(digest)


@pytest.mark.parametrize("size", [0, MAX_INDEX_BYTES + 1])
def test_chunks_are_bounded(store: ChunkStore, size: int) -> None:
    with pytest.raises(InvalidInputError):
        store.put(b"x" * size)


def test_what_a_crash_left_half_written_is_cleared(store: ChunkStore, tmp_path: Path) -> None:
    leftover = tmp_path / "chunks" / "incoming" / "half"
    leftover.write_bytes(b"hal")
    ChunkStore(tmp_path / "chunks")
    assert not leftover.exists()


def test_a_failed_write_leaves_nothing(
    store: ChunkStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageFullError, match=r"disk_full: .*No space"):
        store.put(b"weights")
    assert [path for path in (tmp_path / "chunks").rglob("*") if path.is_file()] == []


def flushed_by(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files and folders that are flushed from now on."""
    flushed: list[str] = []
    real = os.fsync

    def record(descriptor: int) -> None:
        flushed.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        real(descriptor)

    monkeypatch.setattr("os.fsync", record)
    return flushed


def test_a_folder_that_another_put_made_is_flushed_all_the_same(
    store: ChunkStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = hashlib.sha256(b"weights").hexdigest()
    store.path(bytes.fromhex(name)).parent.mkdir(parents=True)
    flushed = flushed_by(monkeypatch)
    store.put(b"weights")
    assert flushed[1:] == [name[2:4], name[:2], "chunks"]


def test_a_chunk_that_a_crash_left_unflushed_is_flushed_before_it_is_acknowledged(
    store: ChunkStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest, _ = store.put(b"weights")
    name = digest.hex()
    restarted = ChunkStore(tmp_path / "chunks")
    flushed = flushed_by(monkeypatch)
    assert restarted.put(b"weights") == (digest, False)
    assert flushed == [name[2:4], name[:2], "chunks"]
    restarted.put(b"weights")
    assert flushed[3:] == [name[2:4]]


def test_messages_are_the_chunks_in_order(store: ChunkStore) -> None:
    parts = [bytes([i]) * size for i, size in enumerate([100, MESSAGE_BYTES, 5, 2_500_000, 1])]
    digests = [store.put(part)[0] for part in parts]
    messages = list(store.messages(digests, 0))
    assert b"".join(messages) == b"".join(parts)
    # Small chunks share messages, so every message but the last is full.
    assert {len(message) for message in messages[:-1]} == {MESSAGE_BYTES}
    assert b"".join(store.messages(digests, 30)) == b"".join(parts)[30:]


def test_whole_chunks_travel_as_they_are(store: ChunkStore) -> None:
    parts = [bytes([i]) * MESSAGE_BYTES for i in range(3)]
    assert list(store.messages([store.put(part)[0] for part in parts], 0)) == parts


def test_a_missing_chunk_is_found_before_anything_is_sent(store: ChunkStore) -> None:
    here, _ = store.put(b"here")
    with pytest.raises(NotFoundError):
        next(store.messages([here, b"\x01" * 32], 0))
