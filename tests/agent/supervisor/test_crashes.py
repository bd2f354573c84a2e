"""A request that crashes or blocks its worker fails; the requests beside it succeed."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from fake_fleet import worker_spec

from agent.backoff import Backoff
from agent.errors import WorkerCrashedError
from agent.supervisor import Supervisor, Worker
from agent.supervisor.spec import WorkerTimeouts
from agent.supervisor.worker import _Delivered, _DivergedError
from agent.worker import messages as wire
from artifact.manifest import Task
from runtimes.base import Sampling, Usage
from runtimes.fake import FakeModel, Faults
from tests.agent.box import eventually

POISON = "poison"
TIMEOUTS = WorkerTimeouts(backoff_first_seconds=0.01, backoff_most_seconds=1000)
FAULTS = Faults(crash_on_text=POISON, hang_on_text="stuck")


@pytest.fixture
async def supervisor() -> AsyncIterator[Supervisor]:
    supervisor = Supervisor(timeouts=TIMEOUTS)
    yield supervisor
    await supervisor.close()


@pytest.fixture
async def impatient() -> AsyncIterator[Supervisor]:
    supervisor = Supervisor(timeouts=replace(TIMEOUTS, silence_seconds=1))
    yield supervisor
    await supervisor.close()


async def text_of(worker: Worker, prompt: str = "hi", **sampling: object) -> str:
    options = Sampling(**{"max_tokens": 4, **sampling})  # type: ignore[arg-type]
    generation = worker.generate(prompt, None, options)
    return "".join([piece.text async for pieces in generation for piece in pieces])


async def test_a_request_that_crashes_the_worker_alone_is_never_sent_again(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    worker = await supervisor.start(worker_spec(tmp_path, FakeModel(reply="abcd", faults=FAULTS)))
    with pytest.raises(WorkerCrashedError, match="while it answered this request alone") as caught:
        await text_of(worker, POISON)
    assert "Do not send the same request again" in caught.value.advice
    assert await text_of(worker) == "abcd"
    assert worker.stats().restarts == 1


async def test_crashing_requests_do_not_delay_the_others(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    """Doubled twelve times, the backoff would wait for 20 s on average."""
    worker = await supervisor.start(worker_spec(tmp_path, FakeModel(reply="abcd", faults=FAULTS)))
    for _ in range(12):
        with pytest.raises(WorkerCrashedError):
            await text_of(worker, POISON)
    async with asyncio.timeout(5):
        assert await text_of(worker) == "abcd"


async def test_a_worker_that_dies_by_itself_backs_off(
    supervisor: Supervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resets: list[str] = []
    monkeypatch.setattr(Backoff, "reset", lambda _: resets.append("reset"))
    worker = await supervisor.start(worker_spec(tmp_path, FakeModel(faults=FAULTS)))
    os.kill(worker.pid, signal.SIGKILL)
    await eventually(lambda: worker.stats().restarts == 1)
    assert await text_of(worker)
    assert resets == []
    with pytest.raises(WorkerCrashedError):
        await text_of(worker, POISON)
    assert resets == ["reset"]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
async def test_requests_beside_the_cause_of_a_crash_are_answered_in_full(
    supervisor: Supervisor, tmp_path: Path, temperature: float
) -> None:
    """Three clients have received text, two not: all get theirs, without a repetition or gap."""
    model = FakeModel(
        reply="abcdefghijklmnopqrstuvwxyz", token_seconds=0.01, parallel=6, faults=FAULTS
    )
    worker = await supervisor.start(worker_spec(tmp_path, model))
    begun = [
        worker.generate("hi", None, Sampling(max_tokens=30, temperature=temperature))
        for _ in range(3)
    ]
    texts = ["".join(piece.text for piece in await anext(each)) for each in begun]
    fresh = [asyncio.create_task(text_of(worker, max_tokens=26)) for _ in range(2)]
    with pytest.raises(WorkerCrashedError):
        await text_of(worker, POISON)
    for number, generation in enumerate(begun):
        async for pieces in generation:
            texts[number] += "".join(piece.text for piece in pieces)
        assert generation.usage is not None
        assert texts[number] in model.reply * 3
        assert len(texts[number]) == 30
    assert [await each for each in fresh] == [model.reply] * 2
    # Once with all of them, once with the cause alone.
    assert worker.stats().restarts == 2


async def test_long_answers_beside_the_cause_do_not_wait_for_each_other(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    """Repeated, each starts alone; then all four run at once instead of one after another."""
    model = FakeModel(token_seconds=0.01, parallel=6, context_length=20_000, faults=FAULTS)
    worker = await supervisor.start(worker_spec(tmp_path, model))
    long = [asyncio.create_task(text_of(worker, max_tokens=10_000)) for _ in range(4)]
    await eventually(lambda: len(worker._lifecycle.process._unanswered) == 4)
    with pytest.raises(WorkerCrashedError):
        await text_of(worker, POISON)

    def all_run_again() -> bool:
        return worker.stats().restarts == 2 and len(worker._lifecycle.process._unanswered) == 4

    await eventually(all_run_again, seconds=30)
    for task in long:
        task.cancel()
    await asyncio.gather(*long, return_exceptions=True)


async def test_every_kind_of_command_is_judged_alike(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    model = FakeModel(task=Task.EMBEDDING, token_seconds=0.05, parallel=4, faults=FAULTS)
    worker = await supervisor.start(worker_spec(tmp_path, model))
    beside = [asyncio.create_task(worker.embed(["a", "b", "c", "d"])) for _ in range(3)]
    await eventually(lambda: len(worker._lifecycle.process._unanswered) == 3)
    with pytest.raises(WorkerCrashedError):
        await worker.embed([POISON])
    assert [len((await each)[0].vectors) for each in beside] == [4, 4, 4]
    assert worker.stats().restarts == 2


async def test_a_cause_whose_caller_has_given_up_is_not_sent_again(
    impatient: Supervisor, tmp_path: Path
) -> None:
    model = FakeModel(reply="abcd", parallel=2, faults=FAULTS)
    worker = await impatient.start(worker_spec(tmp_path, model))
    stuck = asyncio.create_task(text_of(worker, "stuck"))
    await eventually(lambda: worker._lifecycle.process._unanswered)
    stuck.cancel()
    assert await text_of(worker) == "abcd"
    assert worker.stats().restarts == 1


async def test_a_stuck_worker_is_ended_although_its_callers_give_up(
    impatient: Supervisor, tmp_path: Path
) -> None:
    """Callers that wait for less than the allowed silence must not keep it alive."""
    worker = await impatient.start(worker_spec(tmp_path, FakeModel(faults=FAULTS)))
    loop = asyncio.get_running_loop()
    started = loop.time()
    while worker.stats().restarts == 0:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await text_of(worker, "stuck")
        assert loop.time() - started < 5
    async with asyncio.timeout(10):
        assert await text_of(worker)


async def test_a_stuck_worker_is_ended_without_any_caller(
    impatient: Supervisor, tmp_path: Path
) -> None:
    worker = await impatient.start(worker_spec(tmp_path, FakeModel(faults=FAULTS)))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await text_of(worker, "stuck")
    await eventually(lambda: worker.stats().restarts == 1)


async def test_the_caller_of_a_stuck_worker_is_answered(
    impatient: Supervisor, tmp_path: Path
) -> None:
    worker = await impatient.start(worker_spec(tmp_path, FakeModel(faults=FAULTS)))
    with pytest.raises(WorkerCrashedError, match="stopped responding"):
        await text_of(worker, "stuck")
    assert worker.stats().restarts == 1


async def test_an_idle_worker_is_not_stuck(impatient: Supervisor, tmp_path: Path) -> None:
    worker = await impatient.start(worker_spec(tmp_path, FakeModel()))
    process = worker._lifecycle.process
    process._alive_at -= 1000
    assert not process._is_stuck()
    assert await text_of(worker)
    assert worker.stats().restarts == 0


def tokens(text: str) -> wire.Tokens:
    return wire.Tokens(id=1, pieces=[(letter, ord(letter), None, None) for letter in text])


def test_a_repeated_text_is_left_out_up_to_where_it_was() -> None:
    delivered = _Delivered()
    assert delivered.unseen(tokens("abc")) == tokens("abc")
    delivered.restart()
    assert delivered.unseen(tokens("ab")) is None
    assert delivered.unseen(tokens("cd")) == tokens("d")
    delivered.restart()
    assert delivered.unseen(tokens("abcde")) == tokens("e")


@pytest.mark.parametrize(
    "other", [tokens("abd"), wire.Generated(id=1, usage=Usage(1, 1, 0.0, 0.0))]
)
def test_a_text_that_is_not_repeated_is_an_error(other: wire.AnyEvent) -> None:
    delivered = _Delivered()
    delivered.unseen(tokens("abc"))
    delivered.restart()
    with pytest.raises(_DivergedError):
        delivered.unseen(other)
