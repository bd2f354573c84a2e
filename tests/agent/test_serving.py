"""Visits, routes, and the swap between deployments."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest
from fake_fleet import release_of, worker_spec

from agent.errors import NothingServedError, UnknownRouteError, WorkerUnavailableError
from agent.serving import Deployment, Serving
from agent.supervisor import Supervisor
from artifact.manifest import Route, Share
from runtimes.base import Sampling
from runtimes.fake import FakeModel


@pytest.fixture
async def supervisor() -> AsyncIterator[Supervisor]:
    supervisor = Supervisor()
    yield supervisor
    await supervisor.close()


async def deploy(
    supervisor: Supervisor, directory: Path, version: str, model: FakeModel | None = None
) -> Deployment:
    spec = worker_spec(directory, model, version=version)
    release = release_of(spec, routes=(Route(name="assistant", slot="chat"),))
    return Deployment(release, {"chat": await supervisor.start(spec)})


async def ask(serving: Serving, max_tokens: int = 4, name: str = "assistant") -> str:
    async with serving.lease(name) as worker:
        generation = worker.generate("hi", None, Sampling(max_tokens=max_tokens))
        async with aclosing(generation):
            return "".join([piece.text async for pieces in generation for piece in pieces])


async def test_names_are_routes_and_slots(supervisor: Supervisor, tmp_path: Path) -> None:
    serving = Serving(supervisor)
    with pytest.raises(NothingServedError):
        await ask(serving)
    await serving.swap(await deploy(supervisor, tmp_path, "1"))
    assert await ask(serving, name="assistant")
    assert await ask(serving, name="chat")
    with pytest.raises(UnknownRouteError, match="nobody") as caught:
        await ask(serving, name="nobody")
    assert caught.value.advice == "Use one of: assistant, chat."


async def test_of_a_split_only_the_version_that_was_asked_for_is_led_to(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    specs = [
        worker_spec(tmp_path, FakeModel(reply=slot), slot=slot, version=version)
        for slot, version in (("old", "1"), ("new", "2"), ("newer", "2"))
    ]
    shares = tuple(Share(slot=spec.slot, weight=1) for spec in specs)
    release = release_of(*specs, routes=(Route(name="both", split=shares),))
    workers = {spec.slot: await supervisor.start(spec) for spec in specs}
    serving = Serving(supervisor)
    await serving.swap(Deployment(release, workers))

    async def led_to(version: str) -> list[str]:
        found = []
        for _ in range(6):
            async with serving.lease("both", version) as worker:
                found.append(worker.spec.slot)
        return sorted(found)

    assert await led_to("") == ["new"] * 2 + ["newer"] * 2 + ["old"] * 2
    assert await led_to("1") == ["old"] * 6
    assert await led_to("2") == ["new"] * 3 + ["newer"] * 3
    assert serving.versions("both") == ["1", "2"]
    assert serving.worker("both", "2") is workers["new"]
    with pytest.raises(UnknownRouteError, match="'3' of 'both'") as caught:
        await led_to("3")
    assert caught.value.advice == "Leave it out, or use 1 or 2."


async def test_a_swap_under_load_fails_no_request(supervisor: Supervisor, tmp_path: Path) -> None:
    serving = Serving(supervisor)
    model = FakeModel(reply="1", token_seconds=0.001)
    await serving.swap(await deploy(supervisor, tmp_path, "1", model))
    answers: list[str] = []
    stop = asyncio.Event()

    async def caller() -> None:
        while not stop.is_set():
            answers.append(await ask(serving, max_tokens=20))

    callers = [asyncio.create_task(caller()) for _ in range(8)]
    for version in ("2", "3"):
        candidate = FakeModel(reply=version, token_seconds=0.001)
        old = serving.deployment
        report = await serving.swap(await deploy(supervisor, tmp_path, version, candidate))
        assert report.cut_requests == 0
        assert report.longest_wait_seconds <= 0.1
        assert report.switch_seconds < 0.1
        assert old is not None
        assert not old.workers["chat"].stats().live
    stop.set()
    await asyncio.gather(*callers)
    # Every answer is complete and of one release; all three releases answered.
    assert {answer[0] for answer in answers} == {"1", "2", "3"}
    assert {len(set(answer)) for answer in answers} == {1}
    assert {len(answer) for answer in answers} == {20}


async def test_requests_are_held_while_the_candidate_comes_up(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    serving = Serving(supervisor)
    await serving.swap(await deploy(supervisor, tmp_path, "1", FakeModel(reply="1")))
    assert await serving.hold() == 0
    held = [asyncio.create_task(ask(serving)) for _ in range(3)]
    await asyncio.sleep(0.05)
    assert not any(task.done() for task in held)
    candidate = await deploy(supervisor, tmp_path, "2", FakeModel(reply="2"))
    report = await serving.swap(candidate)
    assert await asyncio.gather(*held) == ["2222"] * 3
    assert report.held_requests == 3


async def test_a_held_request_is_told_when_nothing_comes_up(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    serving = Serving(supervisor, hold_seconds=0.05)
    await serving.swap(await deploy(supervisor, tmp_path, "1"))
    await serving.hold()
    with pytest.raises(NothingServedError, match="did not start within"):
        await ask(serving)


async def test_a_worker_in_both_deployments_is_kept(supervisor: Supervisor, tmp_path: Path) -> None:
    serving = Serving(supervisor)
    first = await deploy(supervisor, tmp_path, "1")
    await serving.swap(first)
    second = Deployment(first.release, dict(first.workers))
    await serving.swap(second)
    assert await ask(serving)


async def test_what_runs_too_long_is_cut_and_counted(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    serving = Serving(supervisor, drain_seconds=0.1)
    slow = FakeModel(token_seconds=0.05, context_length=10_000)
    await serving.swap(await deploy(supervisor, tmp_path, "1", slow))
    endless = asyncio.create_task(ask(serving, max_tokens=5000))
    await asyncio.sleep(0.05)
    report = await serving.swap(await deploy(supervisor, tmp_path, "2"))
    assert report.cut_requests == 1
    with pytest.raises(WorkerUnavailableError):
        await endless


async def test_clearing_stops_every_worker(supervisor: Supervisor, tmp_path: Path) -> None:
    serving = Serving(supervisor)
    deployment = await deploy(supervisor, tmp_path, "1")
    await serving.swap(deployment)
    await serving.clear()
    assert serving.deployment is None
    assert not deployment.workers["chat"].stats().live


async def test_a_hold_given_up_while_draining_leaves_the_live_model_serving(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    serving = Serving(supervisor)
    slow = FakeModel(reply="1", token_seconds=0.05, context_length=10_000)
    live = await deploy(supervisor, tmp_path, "1", slow)
    await serving.swap(live)
    running = asyncio.create_task(ask(serving, max_tokens=5000))
    await asyncio.sleep(0.05)
    holding = asyncio.create_task(serving.hold())
    await asyncio.sleep(0)
    assert serving.deployment is None
    waiting = asyncio.create_task(ask(serving, max_tokens=1))
    holding.cancel()
    await asyncio.gather(holding, return_exceptions=True)
    assert serving.deployment is live
    assert live.workers["chat"].stats().live
    running.cancel()
    assert await waiting == "1"
