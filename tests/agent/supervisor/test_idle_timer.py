"""Models are unloaded while idle and loaded again for the next request. Workers are processes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest
from fake_fleet import worker_spec

from agent.errors import WorkerUnavailableError
from agent.supervisor import Supervisor, Worker
from agent.supervisor.idle_timer import IdleTimer
from agent.supervisor.spec import WorkerTimeouts
from runtimes.base import Sampling
from runtimes.fake import FakeModel, write_model

IDLE_SECONDS = 0.05
TIMEOUTS = WorkerTimeouts(backoff_first_seconds=0.02, backoff_most_seconds=0.1)


class Memory:
    """The free memory that the supervisor sees."""

    def __init__(self) -> None:
        self.free_bytes = 1 << 40

    def __call__(self) -> int:
        return self.free_bytes


@pytest.fixture
def memory() -> Memory:
    return Memory()


@pytest.fixture
async def supervisor(memory: Memory) -> AsyncIterator[Supervisor]:
    supervisor = Supervisor(timeouts=TIMEOUTS, free_bytes=memory)
    yield supervisor
    await supervisor.close()


async def resting(supervisor: Supervisor, directory: Path, model: FakeModel) -> Worker:
    """Return a worker whose model is unloaded."""
    spec = replace(worker_spec(directory, model), idle_unload_seconds=IDLE_SECONDS)
    worker = await supervisor.start(spec)
    await worker._lifecycle.process.gone.wait()
    return worker


async def text_of(worker: Worker) -> str:
    async with aclosing(worker.generate("hi", None, Sampling(max_tokens=4))) as generation:
        return "".join([piece.text async for pieces in generation for piece in pieces])


async def test_a_model_that_nobody_calls_leaves_memory_and_comes_back(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    worker = await resting(supervisor, tmp_path, FakeModel(reply="abcd"))
    stats = worker.stats()
    assert (stats.live, stats.loaded, stats.memory_bytes) == (True, False, 0)
    texts = await asyncio.gather(text_of(worker), text_of(worker))
    assert texts == ["abcd", "abcd"]
    stats = worker.stats()
    assert (stats.loaded, stats.loads, stats.restarts) == (True, 2, 0)
    assert stats.peak_memory_bytes > 0


async def test_it_stays_while_it_is_called(supervisor: Supervisor, tmp_path: Path) -> None:
    model = FakeModel(reply="abcd", token_seconds=2 * IDLE_SECONDS)
    spec = replace(worker_spec(tmp_path, model), idle_unload_seconds=IDLE_SECONDS)
    worker = await supervisor.start(spec)
    assert await text_of(worker) == "abcd"
    assert worker.stats().loads == 1


async def test_a_pinned_model_stays(supervisor: Supervisor, tmp_path: Path) -> None:
    worker = await supervisor.start(worker_spec(tmp_path))
    assert worker._lifecycle.idle_timer._timer is None


async def test_without_memory_for_it_the_caller_is_told_and_may_come_again(
    supervisor: Supervisor, memory: Memory, tmp_path: Path
) -> None:
    worker = await resting(supervisor, tmp_path, FakeModel(reply="abcd", memory_bytes=1 << 20))
    memory.free_bytes = 1 << 20
    with pytest.raises(WorkerUnavailableError, match=r"needs \d+ MiB; \d+ MiB are free"):
        await text_of(worker)
    memory.free_bytes = 256 << 20
    assert await text_of(worker) == "abcd"


async def test_a_file_that_does_not_load_any_more_is_told(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    worker = await resting(supervisor, tmp_path, FakeModel(reply="abcd"))
    path = worker.spec.files["model.fake"]
    path.write_bytes(b"nothing")
    with pytest.raises(WorkerUnavailableError, match="could not be loaded again"):
        await text_of(worker)
    write_model(path, FakeModel(reply="abcd"))
    assert await text_of(worker) == "abcd"


async def test_loading_takes_only_so_long_and_goes_on(tmp_path: Path) -> None:
    supervisor = Supervisor(timeouts=replace(TIMEOUTS, restart_wait_seconds=0.05))
    worker = await resting(supervisor, tmp_path, FakeModel(reply="abcd", load_seconds=0.3))
    with pytest.raises(WorkerUnavailableError, match="did not come back"):
        await text_of(worker)
    async with asyncio.timeout(10):
        while worker.stats().loads == 1:  # noqa: ASYNC110 - another process's doing
            await asyncio.sleep(0.01)
    await supervisor.close()


async def test_stopping_tells_who_waits_for_it_to_load(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    worker = await resting(supervisor, tmp_path, FakeModel(load_seconds=5))
    waiting = asyncio.create_task(text_of(worker))
    await asyncio.sleep(0)
    await supervisor.stop(worker)
    with pytest.raises(WorkerUnavailableError, match="stopped"):
        await waiting


async def test_the_time_begins_when_the_last_caller_leaves() -> None:
    unloaded = asyncio.Event()
    timer = IdleTimer(0.01, unloaded.set)
    with timer.caller():
        with timer.caller():
            pass
        assert timer._timer is None
    assert timer._timer is not None
    async with asyncio.timeout(5):
        await unloaded.wait()
