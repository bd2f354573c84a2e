"""After a power cut at any point, the old or the new release serves, complete and verified."""

from collections import Counter
from pathlib import Path

import pytest

from agent.backoff import Backoff
from agent.journal import Journal
from agent.storage.atomic_file import write_file
from agent.storage.download import Downloader
from agent.storage.file_store import FileStore
from agent.storage.transfer import TransferProgress
from agent.update.machine import State
from artifact.chunks import verify_file
from tests.agent.box import Life, World
from tests.agent.chunk_server import ChunkServer, random_file
from tests.faults.answers import AFTER_RESTART, HAPPY, UNDONE, resume
from tests.faults.failing_steps import fails_in
from tests.faults.power import Cut, Recorder

STORE = ("store/files", "store/indexes", "store/partial")
BOX = ("journal-copy", *STORE)


async def restart(world: World, cut: Cut, root: Path) -> tuple[State, list[State]]:
    """Restart after a cut and finish; return the stored state and the following chain."""
    cut.leave(root)
    return await resume(world, root)


async def test_at_any_point_of_an_update_that_succeeds(tmp_path: Path) -> None:
    (tmp_path / "before").mkdir()
    world = World(tmp_path / "before")
    recorder = Recorder(world.root, BOX)
    async with Life(world) as life:
        await life.do(world.publish("1"))
        second = world.publish("2")
        with recorder.recording():
            await life.do(second)
    reached = Counter[State]()
    for number, cut in enumerate(recorder.cuts.values()):
        state, chain = await restart(world, cut, tmp_path / str(number))
        assert chain == AFTER_RESTART[state], cut.point
        reached[state] += 1
    assert set(reached) == set(HAPPY)
    assert reached[State.FETCHING] > 10


@pytest.mark.parametrize(
    ("failing", "ends"),
    [
        ({State.STAGING}, [State.REJECTED]),
        ({State.SOAKING}, UNDONE[:-1]),
        ({State.SOAKING, State.ROLLING_BACK}, [State.ROLLING_BACK, State.INCONSISTENT]),
    ],
)
async def test_at_any_point_of_an_end_without_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: set[State], ends: list[State]
) -> None:
    (tmp_path / "before").mkdir()
    world = World(tmp_path / "before")
    recorder = Recorder(world.root, BOX)
    async with Life(world) as life:
        await life.do(world.publish("1"))
        second = world.publish("2")
        with monkeypatch.context() as patch, recorder.recording():
            fails_in(failing, patch, before=True)
            await life.do(second)
        assert life.chain[-len(ends) - 1 :] == [*ends, State.IDLE]
    reached = set()
    for number, cut in enumerate(recorder.cuts.values()):
        # The earlier points are the same as in the successful update.
        if stored_state(cut, tmp_path / f"look-{number}") in ends:
            state, chain = await restart(world, cut, tmp_path / str(number))
            assert chain == AFTER_RESTART[state], cut.point
            reached.add(state)
    assert reached == set(ends)


def stored_state(cut: Cut, root: Path) -> State:
    cut.leave(root)
    journal = Journal(root / "journal.db")
    update = journal.update()
    journal.close()
    assert update is not None
    return State(update.state)


async def test_at_any_point_of_a_download_a_file_with_its_name_is_whole(tmp_path: Path) -> None:
    server = ChunkServer()
    base = random_file(tmp_path / "base", 3000)
    (tmp_path / "tuned").write_bytes(base.read_bytes() + b"more of it" * 100)
    first, second = server.add(base, (1000, 2000)), server.add(tmp_path / "tuned", (1000, 2000))
    box = tmp_path / "box"
    store = FileStore(box / "store")
    await fetch(store, server, first)
    recorder = Recorder(box, STORE)
    with recorder.recording():
        await fetch(store, server, second)
    whole = Counter[bool]()
    for number, cut in enumerate(recorder.cuts.values()):
        cut.leave(tmp_path / str(number))
        left = FileStore(tmp_path / str(number) / "store")
        assert left.has(first)
        if left.has(second):
            verify_file(left.path(second), bytes.fromhex(second.sha256), second.size)
        whole[left.has(second)] += 1
        await fetch(left, server, second)
        verify_file(left.path(second), bytes.fromhex(second.sha256), second.size)
    assert whole[False] > 5
    assert whole[True] > 0


async def fetch(store: FileStore, server: ChunkServer, *files: object) -> None:
    downloader = Downloader(store, server, backoff=lambda: Backoff(0, 0))
    await downloader.fetch(files, TransferProgress(), lambda: None)  # type: ignore[arg-type]


def test_at_any_point_of_replacing_a_small_file_it_is_the_old_or_the_new(tmp_path: Path) -> None:
    folder = tmp_path / "box" / "identity"
    folder.mkdir(parents=True)
    write_file(folder / "device.pem", b"the old certificate")
    recorder = Recorder(folder.parent, ("identity",))
    with recorder.recording():
        write_file(folder / "device.pem", b"new certificate, longer than the old")
    found = set()
    for number, cut in enumerate(recorder.cuts.values()):
        cut.leave(tmp_path / str(number))
        found.add((tmp_path / str(number) / "identity" / "device.pem").read_bytes())
    assert found == {b"the old certificate", b"new certificate, longer than the old"}


def test_the_recorder_sees_what_a_missing_fsync_loses(tmp_path: Path) -> None:
    """Guard: the recorder of the tests above loses writes without an fsync."""
    folder = tmp_path / "box" / "identity"
    folder.mkdir(parents=True)
    (folder / "name").write_bytes(b"old")
    recorder = Recorder(folder.parent, ("identity",))
    with recorder.recording():
        (folder / "other").write_bytes(b"newer")
        (folder / "other").replace(folder / "name")
    found = {dict(cut.tree).get("identity/name") for cut in recorder.cuts.values()}
    assert found == {b"old", b"newer", b"", bytes(5)}
