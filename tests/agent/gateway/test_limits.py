"""Limits per slot, and requests to a model that was unloaded while idle."""

import asyncio
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from fake_fleet import release_of, worker_spec
from gateway_box import Box, running

from agent import serving as serving_module
from agent.serving import Deployment
from runtimes.fake import FakeModel

SLOW = FakeModel(token_seconds=0.02)


async def test_past_a_slots_own_limit_is_429_with_retry_after(tmp_path: Path) -> None:
    async with running(tmp_path) as box:
        deployment = await box.deploy(chat=SLOW, other=FakeModel())
        deployment.limits["chat"] = 2
        calls = [asyncio.create_task(box.complete(max_tokens=20)) for _ in range(5)]
        answers = await asyncio.gather(*calls)
        assert sorted(answer.status_code for answer in answers) == [200, 200, 429, 429, 429]
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert refused.headers["retry-after"] == "1"
        assert refused.json()["error"]["code"] == "too_many_requests"
        assert (
            "flotilla_gateway_requests_refused_total 3" in (await box.client.get("/metrics")).text
        )
        assert (await box.complete(max_tokens=1)).status_code == 200


async def test_a_releases_limit_is_the_slots(tmp_path: Path) -> None:
    async with running(tmp_path) as box:
        spec = worker_spec(tmp_path, FakeModel())
        (component,) = release_of(spec).components
        limited = msgspec.structs.replace(component, max_concurrency=3)
        release = msgspec.structs.replace(release_of(spec), components=(limited,))
        worker = await box.supervisor.start(spec)
        assert Deployment(release, {"chat": worker}).limits == {"chat": 3}


async def test_callers_of_one_slot_leave_room_for_those_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving_module, "MOST_PER_SLOT", 3)
    async with running(tmp_path, max_concurrency=4) as box:
        await box.deploy(chat=SLOW, other=FakeModel())
        calls = [asyncio.create_task(box.complete(max_tokens=20)) for _ in range(4)]
        await asyncio.sleep(0.1)
        assert (await box.complete(model="other", max_tokens=1)).status_code == 200
        answers = await asyncio.gather(*calls)
        assert sorted(answer.status_code for answer in answers) == [200, 200, 200, 429]


async def unloaded(box: Box, directory: Path) -> Deployment:
    """A box whose only model is unloaded."""
    spec = replace(worker_spec(directory, FakeModel(reply="abcd")), idle_unload_seconds=0.05)
    worker = await box.supervisor.start(spec)
    deployment = Deployment(release_of(spec), {"chat": worker})
    await box.serving.swap(deployment)
    await worker._lifecycle.process.gone.wait()
    return deployment


async def test_an_unloaded_model_says_so_and_is_loaded_for_the_next_request(
    tmp_path: Path,
) -> None:
    async with running(tmp_path) as box:
        await unloaded(box, tmp_path)
        (model,) = (await box.client.get("/v1/models")).json()["data"]
        assert model["flotilla"]["loaded"] is False
        assert (await box.client.get("/v2/models/chat")).json()["loaded"] is False
        ready = await box.client.get("/v2/models/chat/ready")
        assert (ready.status_code, ready.json()["loaded"]) == (200, False)
        assert (await box.client.get("/readyz")).status_code == 200
        answer = await box.complete(model="chat", max_tokens=4, temperature=0)
        assert answer.json()["choices"][0]["text"] == "abcd"
        metrics = (await box.client.get("/metrics")).text
        assert "flotilla_worker_loads_total{" in metrics
        assert metrics.partition("flotilla_worker_loads_total{")[2].partition("} ")[2][0] == "2"


async def test_one_that_cannot_be_loaded_is_503_with_retry_after(tmp_path: Path) -> None:
    async with running(tmp_path) as box:
        deployment = await unloaded(box, tmp_path)
        deployment.workers["chat"].spec.files["model.fake"].write_bytes(b"nothing")
        answer = await box.complete(model="chat")
        assert answer.status_code == 503
        assert answer.headers["retry-after"]
        assert answer.json()["error"]["code"] == "worker_unavailable"
