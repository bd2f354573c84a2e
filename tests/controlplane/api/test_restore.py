"""A server restored from a backup keeps its fleet: it continues above what devices have seen.

The device verifies as an agent does, with durable floors. The server loses everything after the
backup: publications, rollouts, a rollback, and the renewal of the device's certificate.
"""

import asyncio
import contextlib
import json
import shutil
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from built_models import build_model, write_release
from control_plane import Box, Clock, Plane, Publisher, request_id, running_plane
from databases import fresh_postgres
from flotilla.v1 import (
    access_pb2,
    device_pb2,
    enrollment_pb2,
    fleet_pb2,
    rollout_pb2,
    rollout_pb2_grpc,
)
from image_world import Numbers
from operator_cli import Operator, document, refusal
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import create_async_engine

from artifact.trust.director import DirectorVerifier
from artifact.trust.statements import DirectorMetadata, check_agreement, check_directive
from artifact.trust.verify import ImageVerifier
from controlplane.services.devices.restored import MAX_ADOPTED_GENERATION

STRATEGY = "waves: [{name: all, percent: 100}]"


@dataclass
class Site:
    """A data directory and a database that can be saved and restored while the server is down."""

    root: Path
    clock: Clock = field(default_factory=Clock)
    postgres: str | None = None

    @property
    def data_dir(self) -> Path:
        return self.root / "server"

    def running(self) -> contextlib.AbstractAsyncContextManager[Plane]:
        return running_plane(self.data_dir, self.clock, database_url=self.postgres)

    async def save(self) -> None:
        shutil.copytree(self.data_dir, self.root / "backup")
        if self.postgres:
            await self._copy(make_url(self.postgres).database or "", "backup")

    async def restore(self, *, chunks: bool) -> None:
        """Restore the backup; without ``chunks`` the newer chunk store is kept."""
        kept = self.root / "kept"
        self.data_dir.rename(kept)
        shutil.copytree(self.root / "backup", self.data_dir)
        if not chunks:
            shutil.rmtree(self.data_dir / "chunks")
            (kept / "chunks").rename(self.data_dir / "chunks")
        if self.postgres:
            name = make_url(self.postgres).database or ""
            await self._execute(f"DROP DATABASE {name}")
            await self._copy("backup", name)

    async def close(self) -> None:
        if self.postgres:
            await self._execute(f"DROP DATABASE IF EXISTS {self._backup_name}")

    @property
    def _backup_name(self) -> str:
        return f"{make_url(self.postgres or '').database}_backup"

    async def _copy(self, source: str, target: str) -> None:
        names = [self._backup_name if name == "backup" else name for name in (source, target)]
        await self._execute(f"CREATE DATABASE {names[1]} TEMPLATE {names[0]}")

    async def _execute(self, statement: str) -> None:
        url = make_url(self.postgres or "").set(database="postgres")
        engine = create_async_engine(url, isolation_level="AUTOCOMMIT")
        async with engine.connect() as connection:
            await connection.execute(text(statement))
        await engine.dispose()


@pytest.fixture(params=["sqlite", "postgresql"])
async def site(
    request: pytest.FixtureRequest, tmp_path: Path, require: Callable[..., None]
) -> AsyncIterator[Site]:
    if request.param == "sqlite":
        yield Site(tmp_path)
        return
    async with fresh_postgres(require) as url:
        site = Site(tmp_path, postgres=url)
        yield site
        await site.close()


@dataclass
class Device:
    """A box with the verification of an agent: both repositories, and floors that never fall."""

    box: Box
    plane: Plane
    director: DirectorVerifier
    image: ImageVerifier
    generation: int = 0
    current: str = ""

    async def follow(self, *, until: int) -> device_pb2.Assignment:
        """Connect, and carry out the assignment of this generation as an agent would."""
        life = await self.box.connect(generation=self.generation, current_release=self.current)
        async with asyncio.timeout(15):
            while (wanted := await life.read_assignment()).generation < until:
                pass
        assert wanted.generation == until
        await asyncio.to_thread(self.verify, wanted)
        self.generation, self.current = wanted.generation, wanted.release
        receipt = device_pb2.Receipt(
            generation=wanted.generation,
            release=wanted.release,
            outcome=device_pb2.UPDATE_STATE_COMMITTED,
            current_release=wanted.release,
        )
        await life.send(receipt=self.box.sign(receipt))
        assert (await life.read_ack()).receipt_generations == [until]
        await life.end()
        return wanted

    def verify(self, wanted: device_pb2.Assignment) -> None:
        signed = wanted.director
        metadata = DirectorMetadata(
            signed.timestamp, signed.snapshot, signed.targets, tuple(signed.roots)
        )
        directive = self.director.directive(metadata)
        check_directive(directive, wanted.generation, wanted.release)
        if wanted.release:
            check_agreement(directive, self.image.resolve(wanted.release), "")

    async def renew_certificate(self) -> None:
        request = device_pb2.RenewCertificateRequest(csr_pem=self.box.csr())
        answer = await self.box.stub.RenewCertificate(request)
        self.box.certificate_pem = answer.certificate_pem
        await self.box.stub.FetchMetadata(device_pb2.FetchMetadataRequest(name="timestamp.json"))

    def moved_to(self, plane: Plane) -> None:
        self.plane = self.box.plane = plane


async def enrolled(plane: Plane, site: Site) -> Device:
    box = await plane.enroll("box-1")
    fetch: Any = box.stub.FetchMetadata
    root = (await fetch(device_pb2.FetchMetadataRequest(name="1.root.json"))).data
    bundle = await plane.enrollment().GetTrustBundle(enrollment_pb2.GetTrustBundleRequest())
    floors, loop = Numbers(), asyncio.get_running_loop()

    def fetched(name: str) -> bytes | None:
        async def fetch() -> bytes | None:
            try:
                request = device_pb2.FetchMetadataRequest(name=name)
                return bytes((await device.box.stub.FetchMetadata(request)).data)
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.NOT_FOUND:
                    return None
                raise

        return asyncio.run_coroutine_threadsafe(fetch(), loop).result(15)

    device = Device(
        box,
        plane,
        DirectorVerifier(bundle.director_root, box.device_id, clock=site.clock, floors=floors),
        ImageVerifier(site.root / "device", root, fetched, clock=site.clock, floors=floors),
    )
    return device


def operator_of(plane: Plane, site: Site) -> Operator:
    context = json.loads((site.data_dir / "admin.json").read_text())
    path = site.root / "context.json"
    path.write_text(json.dumps({**context, "server": str(plane.endpoints.public)}))
    path.chmod(0o600)
    return Operator(path, site.root / "keys")


async def publish(operator: Operator, site: Site, version: str) -> dict[str, Any]:
    release = write_release(site.root, version=version)
    return document(await asyncio.to_thread(operator.publish, release, as_json=True))


async def roll_out(plane: Plane, version: str) -> str:
    stub: Any = rollout_pb2_grpc.RolloutServiceStub(plane.channel())
    request = rollout_pb2.StartRolloutRequest(
        request_id=request_id(), release=f"acme/assistant@{version}", strategy=STRATEGY
    )
    return str((await stub.StartRollout(request)).rollout.id)


async def roll_back(plane: Plane, rollout_id: str) -> None:
    stub: Any = rollout_pb2_grpc.RolloutServiceStub(plane.channel())
    await stub.RollbackRollout(
        rollout_pb2.RollbackRolloutRequest(request_id=request_id(), id=rollout_id)
    )


async def ended(plane: Plane, rollout_id: str) -> None:
    stub: Any = rollout_pb2_grpc.RolloutServiceStub(plane.channel())
    async with asyncio.timeout(15):
        async for _ in stub.WatchRollout(rollout_pb2.WatchRolloutRequest(id=rollout_id)):
            pass


async def shown(plane: Plane) -> Any:
    answer = await plane.fleet().ListDevices(fleet_pb2.ListDevicesRequest())
    return answer.devices[0]


async def audited(plane: Plane) -> list[str]:
    answer = await plane.access().ListAuditEvents(access_pb2.ListAuditEventsRequest())
    return [event.action for event in answer.events]


async def lose(plane: Plane, site: Site, device: Device, operator: Operator) -> None:
    """Everything that the backup lacks: the device ends at generation 4, running 2.0.0."""
    await publish(operator, site, "1.0.0")
    first = await roll_out(plane, "1.0.0")
    await device.follow(until=1)
    await ended(plane, first)
    await publish(operator, site, "2.0.0")
    second = await roll_out(plane, "2.0.0")
    await device.follow(until=2)
    await roll_back(plane, second)
    await device.follow(until=3)
    await ended(plane, second)
    await roll_out(plane, "2.0.0")
    await device.follow(until=4)
    site.clock.ahead = timedelta()
    await device.renew_certificate()


@pytest.mark.parametrize("chunks", [True, False], ids=["whole", "chunks-survived"])
async def test_a_restored_server_publishes_rolls_out_and_rolls_back(
    site: Site, caplog: pytest.LogCaptureFixture, *, chunks: bool
) -> None:
    build_model(site.root / "tiny")
    # TLS checks certificates by the real time, so the past is where the backup is made.
    site.clock.ahead = -timedelta(hours=2)
    async with site.running() as plane:
        document(await asyncio.to_thread(operator_of(plane, site).init, as_json=True))
        device = await enrolled(plane, site)
    await site.save()
    async with site.running() as plane:
        device.moved_to(plane)
        await lose(plane, site, device, operator_of(plane, site))
    await site.restore(chunks=chunks)

    async with site.running() as plane:
        device.moved_to(plane)
        await is_taken_back(plane, device, caplog)
        operator = operator_of(plane, site)
        release = write_release(site.root, version="3.0.0")
        refused = await asyncio.to_thread(operator.publish, release)
        assert "flotilla keys restore" in refusal(refused)
        arguments = ("keys", "restore", "--dir", str(operator.folder))
        report = document(await asyncio.to_thread(operator.run, *arguments, as_json=True))
        lost = ["acme/assistant@1.0.0", "acme/assistant@2.0.0"]
        expected = ([], lost) if chunks else (lost, [])
        assert (report["releases"], report["incomplete"]) == expected
        assert report["roles"] == ["acme"]
        repeated = document(await asyncio.to_thread(operator.run, *arguments, as_json=True))
        assert repeated["roles"] == []

        assert (await publish(operator, site, "2.0.0"))["counter"] == 2
        assert (await publish(operator, site, "3.0.0"))["counter"] == 3
        third = await roll_out(plane, "3.0.0")
        await device.follow(until=5)
        assert device.current == "acme/assistant@3.0.0"
        await roll_back(plane, third)
        await device.follow(until=6)
        assert device.current == "acme/assistant@2.0.0"


async def is_taken_back(plane: Plane, device: Device, caplog: pytest.LogCaptureFixture) -> None:
    """The server continues above the device, does not change what it runs, and warns."""
    life = await device.box.connect(generation=4, current_release=device.current)
    assert (await life.read_assignment()).generation == 4
    await life.end()
    view = await shown(plane)
    assert (view.assigned_generation, view.current_release) == (4, "acme/assistant@2.0.0")
    assert view.state == "active"
    warned = {
        record.getMessage().partition(" ")[0]
        for record in caplog.records
        if record.levelname == "WARNING"
    }
    assert {"device_ahead", "certificate_ahead"} <= warned
    assert {"device.adopt-generation", "device.adopt-certificate"} <= set(await audited(plane))


async def test_an_absurd_generation_is_not_adopted(
    plane: Plane, publisher: Publisher, caplog: pytest.LogCaptureFixture
) -> None:
    """It would leave the device no room for later assignments; other devices are unaffected."""
    box = await plane.enroll("box-1")
    for reported in (1 << 63, 1 << 32, MAX_ADOPTED_GENERATION + 1):
        with contextlib.suppress(grpc.aio.AioRpcError):
            life = await box.connect(generation=reported)
            await life.end()
        assert (await shown(plane)).assigned_generation == 0
    assert "generation_refused" in caplog.text
    life = await box.connect(generation=MAX_ADOPTED_GENERATION)
    await life.end()
    assert (await shown(plane)).assigned_generation == MAX_ADOPTED_GENERATION
