"""Expiry of offline metadata is announced 60 days before, and no rollout starts on it."""

import asyncio
import urllib.request
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from control_plane import Clock, Plane, Publisher, request_id, running_plane
from flotilla.v1 import rollout_pb2, rollout_pb2_grpc

YEAR = timedelta(days=365)


async def start(plane: Plane, strategy: str) -> Any:
    stub: Any = rollout_pb2_grpc.RolloutServiceStub(plane.channel())
    request = rollout_pb2.StartRolloutRequest(
        request_id=request_id(), release="acme/chat@1.0.0", strategy=strategy
    )
    return await stub.StartRollout(request)


@dataclass(frozen=True)
class Case:
    """A start this long before the metadata expires, of a rollout with this soak."""

    before_the_end: timedelta
    soak_days: int
    starts: bool


@pytest.mark.parametrize(
    "case",
    [
        Case(timedelta(days=30), soak_days=0, starts=True),
        Case(timedelta(days=6), soak_days=7, starts=False),
        Case(timedelta(days=8), soak_days=7, starts=True),
        Case(-timedelta(minutes=2), soak_days=0, starts=False),
    ],
)
async def test_a_rollout_that_would_outlive_its_metadata_is_refused(
    plane: Plane, publisher: Publisher, clock: Clock, tmp_path: Path, case: Case
) -> None:
    file, chunks = publisher.make_file(tmp_path / "model.gguf", b"weights" * 1000)
    await publisher.upload(chunks)
    await publisher.publish(publisher.manifest(file))
    await plane.enroll("box-1")
    clock.ahead = YEAR - case.before_the_end - timedelta(minutes=1)
    strategy = (
        f"waves: [{{name: first, count: 1, soak_seconds: {case.soak_days * 86400}}}, "
        "{name: all, percent: 100}]"
    )
    if case.starts:
        assert (await start(plane, strategy)).rollout.id
        return
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await start(plane, strategy)
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "the metadata of root (" in str(refused.value.details())


def fetched(plane: Plane, path: str) -> str:
    with urllib.request.urlopen(f"http://{plane.endpoints.http}{path}") as answer:
        return str(answer.read().decode())


async def test_expiry_is_announced_60_days_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    async with running_plane(tmp_path, clock) as plane:
        await Publisher(plane).initialise()
        assert await asyncio.to_thread(fetched, plane, "/readyz") == "ok\n"
    clock.ahead = YEAR - timedelta(days=61)
    async with running_plane(tmp_path, clock) as plane:
        assert await asyncio.to_thread(fetched, plane, "/readyz") == "ok\n"
    assert "metadata_expires_soon" not in caplog.text
    clock.ahead = YEAR - timedelta(days=59)
    async with running_plane(tmp_path, clock) as plane:
        lines = (await asyncio.to_thread(fetched, plane, "/readyz")).splitlines()
        metrics = await asyncio.to_thread(fetched, plane, "/metrics")
    assert lines[0] == "ok"
    assert [line.partition(" (")[0] for line in lines[1:]] == [
        f"warning: {role} expires in 58 days" for role in ("acme", "root", "targets")
    ]
    assert all(line.endswith("run `flotilla keys renew`") for line in lines[1:])
    for role in ("root", "targets", "acme", "authority"):
        assert f'flotilla_metadata_expires_timestamp_seconds{{role="{role}"}}' in metrics
    assert caplog.text.count("metadata_expires_soon role=root") == 1
