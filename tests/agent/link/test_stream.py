"""The stream over real TLS: receipts and telemetry arrive, however often it breaks."""

import asyncio
import hashlib
import math
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from asking import asking, signed
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from flotilla.v1 import device_pb2 as wire

from agent.backoff import Backoff
from agent.config import AgentConfig, DataDir, save_config
from agent.errors import ChunkMissingError, IdentityError, SourceUnavailableError
from agent.identity.credentials import Credentials
from agent.identity.keys import Identity, load_identity, load_key, make_or_load_key, signing_request
from agent.journal import Assignment
from agent.link import connection as connections
from agent.link import renewal as renewals
from agent.link.connection import Connection
from agent.link.pacing import METERED, STANDARD, Pace
from agent.link.renewal import Renewal
from agent.link.stream import ControlPlaneStream
from agent.link.translate import window_to_wire
from agent.selection import Prior
from agent.storage.atomic_file import write_file
from agent.telemetry import TelemetryQueue
from agent.update.machine import State
from artifact.health import ReleaseHealth, SlotHealth
from artifact.window import Window
from tests.agent.box import Life, World, eventually
from tests.agent.link.control_plane import ControlPlane
from tests.agent.tls import Authority

WINDOW = window_to_wire(
    Window(
        started_at=datetime(2026, 1, 1, tzinfo=UTC),
        duration_seconds=1.0,
        release="acme/a@1",
        slot="chat",
        model_version="acme/m@1",
        variant="v0",
        runtime="fake",
        requests=3,
        prompt_tokens=1,
        generated_tokens=2,
        prefill_seconds=0.1,
        decode_seconds=0.2,
    )
).SerializeToString()


class Box:
    """An enrolled box with a stream, and its control plane."""

    def __init__(
        self, root: Path, life: Life, plane: ControlPlane, identity: Credentials, pace: Pace
    ) -> None:
        self.root = root
        self.life = life
        self.plane = plane
        self.identity = identity
        self.telemetry = TelemetryQueue(root / "telemetry.db", "boot-1")
        self.connection = Connection(f"127.0.0.1:{plane.port}", identity)
        self.health = ReleaseHealth()
        self.waits: list[float] = []
        self.class_measurements: list[tuple[str, str, Prior]] = []
        self.directed: list[int] = []
        self.link = ControlPlaneStream(
            self.connection,
            life.engine,
            life.journal,
            self.telemetry,
            facts=life.world.facts,
            identity=lambda: self.identity,
            sign=partial(signed, DataDir(root)),
            agent_version="1.2.3",
            health=lambda: self.health,
            class_measured=self.class_measurements.extend,
            directed=self._directed,
            pace=pace,
            backoff=Backoff(0.01, 0.05, uniform=self._draw),
            refused_backoff=Backoff(0.02, 0.2, uniform=self._draw),
        )
        life.listeners.append(self.link.wake)

    async def _directed(self, assignment: Assignment) -> None:
        self.directed.append(assignment.generation)

    def _draw(self, low: float, high: float) -> float:
        self.waits.append(high)
        return low


@asynccontextmanager
async def connected(world: World, plane: ControlPlane, pace: Pace = STANDARD) -> AsyncIterator[Box]:
    data_dir = DataDir(world.root)
    key = make_or_load_key(data_dir)
    identity = Identity(
        key, plane.authority.device(signing_request(key, "box-1")), plane.authority.pem
    ).credentials
    async with Life(world) as life:
        box = Box(world.root, life, plane, identity, pace)
        task = asyncio.create_task(box.link.run())
        try:
            yield box
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await box.connection.close()
            box.telemetry.close()


def renewal_of(box: Box, **options: Any) -> Renewal:
    data_dir = DataDir(box.root)
    ask = asking(data_dir)
    return Renewal(data_dir, box.identity, box.connection, ask=ask, name="box-1", **options)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
async def plane() -> AsyncIterator[ControlPlane]:
    plane = ControlPlane(Authority())
    await plane.start()
    yield plane
    await plane.stop()


def hellos(received: list[wire.ConnectRequest]) -> list[wire.Hello]:
    return [message.hello for message in received if message.HasField("hello")]


def statuses(received: list[wire.ConnectRequest]) -> list[wire.UpdateStatus]:
    return [message.status for message in received if message.HasField("status")]


def receipts(received: list[wire.ConnectRequest]) -> list[wire.SignedReceipt]:
    return [message.receipt for message in received if message.HasField("receipt")]


def batches(received: list[wire.ConnectRequest]) -> list[wire.TelemetryBatch]:
    return [message.telemetry for message in received if message.HasField("telemetry")]


async def test_a_stream_opens_with_hello_then_the_whole_state(
    world: World, plane: ControlPlane
) -> None:
    async with connected(world, plane) as box:
        await plane.until(statuses)
        assert plane.received[0].HasField("hello")
        hello = plane.received[0].hello
        assert (hello.boot_id, hello.agent_version, hello.generation) == ("boot-1", "1.2.3", 0)
        assert hello.facts.cpu_model == "test"
        assert statuses(plane.received)[0].state == wire.UPDATE_STATE_IDLE
        assert box.link.connected


async def test_every_status_has_the_health_of_what_serves(
    world: World, plane: ControlPlane
) -> None:
    async with connected(world, plane) as box:
        await plane.until(statuses)
        for slot in (
            SlotHealth("chat", ready=False, worker_restarts=1, requests=5, errors=2),
            SlotHealth("chat", ready=True, worker_restarts=1, requests=6, errors=2),
        ):
            box.health = ReleaseHealth("acme/a@1", (slot,))
            seen = len(statuses(plane.received))
            box.link.wake()
            await plane.until(lambda received, seen=seen: len(statuses(received)) > seen)
            health = statuses(plane.received)[-1].health
            assert health.release == "acme/a@1"
            assert health.slots == [wire.SlotHealth(**asdict(slot))]


async def test_an_assignment_is_carried_out_and_its_signed_receipt_acknowledged(
    world: World, plane: ControlPlane
) -> None:
    wanted = world.publish("1")
    plane.assignment = wire.Assignment(
        generation=1, release=wanted.release, manifest_sha256=wanted.manifest_sha256
    )
    async with connected(world, plane) as box:
        (signed,) = await plane.until(receipts)
        load_key(DataDir(world.root)).public_key().verify(
            signed.signature, signed.receipt, ec.ECDSA(hashes.SHA256())
        )
        receipt = wire.Receipt.FromString(signed.receipt)
        assert (receipt.generation, receipt.outcome) == (1, wire.UPDATE_STATE_COMMITTED)
        assert receipt.current_release == wanted.release
        assert receipt.decisions[0].chosen_variant == "v0"
        assert receipt.bytes_downloaded == world.server.sent_bytes
        await eventually(lambda: not box.life.journal.receipts())
        last = await plane.until(
            lambda received: [s for s in statuses(received) if s.current_release]
        )
        assert last[-1].current_release == wanted.release


async def test_valid_class_measurements_are_used_and_invalid_ones_ignored(
    world: World, plane: ControlPlane
) -> None:
    wanted = world.publish("1")

    def told(speed: float, variant: str = "v0", joules: float | None = None) -> Any:
        return wire.ClassMeasurement(
            model="acme/model@1",
            variant=variant,
            tokens_per_second=speed,
            joules_per_token=joules,
            devices=3,
        )

    plane.assignment = wire.Assignment(
        generation=1,
        release=wanted.release,
        manifest_sha256=wanted.manifest_sha256,
        class_measurements=[
            told(20, joules=0.5),
            *(told(speed) for speed in (0, -1, math.nan, math.inf, 1e12)),
            told(1, variant="v" * 1000),
            told(30, variant="v1", joules=-1),
        ],
    )
    async with connected(world, plane) as box:
        await plane.until(receipts)
        # Also known assignments: they may come with a new root of the director.
        assert box.directed
        assert box.class_measurements == [
            ("acme/model@1", "v0", Prior(tokens_per_second=20, joules_per_token=0.5, devices=3)),
            ("acme/model@1", "v1", Prior(tokens_per_second=30, devices=3)),
        ]


async def test_a_generation_that_nobody_reaches_hides_no_honest_one(
    world: World, plane: ControlPlane, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = world.publish("1")
    plane.assignment = wire.Assignment(generation=1 << 63, release=wanted.release)
    async with connected(world, plane):
        await eventually(lambda: "assignment_refused" in caplog.text)
        plane.assignment = wire.Assignment(
            generation=1, release=wanted.release, manifest_sha256=wanted.manifest_sha256
        )
        plane.drop_stream()
        (signed,) = await plane.until(receipts)
        receipt = wire.Receipt.FromString(signed.receipt)
        assert (receipt.generation, receipt.outcome) == (1, wire.UPDATE_STATE_COMMITTED)


async def test_a_receipt_is_sent_again_on_every_stream_until_it_is_acknowledged(
    world: World, plane: ControlPlane
) -> None:
    plane.acknowledges = False
    wanted = world.publish("1")
    plane.assignment = wire.Assignment(
        generation=1, release=wanted.release, manifest_sha256=wanted.manifest_sha256
    )
    async with connected(world, plane) as box:
        await plane.until(receipts)
        plane.drop_stream()
        await plane.until(lambda received: len(receipts(received)) == 2)
        plane.acknowledges = True
        plane.drop_stream()
        await plane.until(lambda received: len(receipts(received)) == 3)
        await eventually(lambda: not box.life.journal.receipts())
        plane.drop_stream()
        await plane.until(lambda received: len(hellos(received)) == 4)
        assert hellos(plane.received)[-1].generation == 1
        assert hellos(plane.received)[-1].current_release == wanted.release
        assert len(receipts(plane.received)) == 3


async def test_an_acknowledgement_that_the_disk_does_not_take_breaks_nothing(
    world: World, plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connected(world, plane) as box:
        refused: list[int] = []

        def full(boot_id: str, sequence: int) -> None:
            del boot_id
            refused.append(sequence)
            raise sqlite3.OperationalError("database or disk is full")

        with monkeypatch.context() as patched:
            patched.setattr(box.telemetry, "acknowledge", full)
            box.telemetry.append(WINDOW)
            box.link.wake()
            await eventually(lambda: refused)
            assert box.link.connected
            box.link.wake()
            await plane.until(lambda received: len(statuses(received)) >= 1)
            assert len(hellos(plane.received)) == 1
        plane.drop_stream()
        await eventually(lambda: not len(box.telemetry))


async def test_a_disk_that_cannot_be_read_breaks_the_stream_and_not_the_link(
    world: World, plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connected(world, plane) as box:
        asked: list[int] = []

        def unreadable(limit: int) -> None:
            asked.append(limit)
            raise sqlite3.OperationalError("disk I/O error")

        with monkeypatch.context() as patched:
            patched.setattr(box.telemetry, "pending", unreadable)
            box.link.wake()
            await eventually(lambda: len(asked) > 1)
        box.telemetry.append(WINDOW)
        box.link.wake()
        await eventually(lambda: not len(box.telemetry))


async def test_windows_stay_queued_until_they_are_acknowledged(
    world: World, plane: ControlPlane
) -> None:
    plane.acknowledges = False
    async with connected(world, plane) as box:
        for _ in range(3):
            box.telemetry.append(WINDOW)
        box.link.wake()
        await plane.until(batches)
        plane.drop_stream()
        await plane.until(lambda received: len(batches(received)) == 2)
        plane.acknowledges = True
        plane.drop_stream()
        await plane.until(lambda received: len(batches(received)) == 3)
        await eventually(lambda: not len(box.telemetry))
    sent = batches(plane.received)
    assert [[window.sequence for window in batch.windows] for batch in sent] == [[1, 2, 3]] * 3
    assert {batch.boot_id for batch in sent} == {"boot-1"}


async def test_a_damaged_window_holds_up_no_other(world: World, plane: ControlPlane) -> None:
    async with connected(world, plane) as box:
        for queued in (b"\xff", WINDOW):
            box.telemetry.append(queued)
        box.link.wake()
        await eventually(lambda: not len(box.telemetry))
        box.telemetry.append(b"\xff")
        box.link.wake()
        await eventually(lambda: not len(box.telemetry))
    assert [w.sequence for batch in batches(plane.received) for w in batch.windows] == [2]


async def test_a_server_that_was_away_is_found_again(world: World, plane: ControlPlane) -> None:
    async with connected(world, plane):
        await plane.until(hellos)
        await plane.stop()
        plane.received.clear()
        await plane.start()
        await plane.until(hellos)


async def test_a_busy_server_is_left_alone_as_long_as_it_asks(
    world: World, plane: ControlPlane
) -> None:
    plane.refusals = [(grpc.StatusCode.RESOURCE_EXHAUSTED, "400")]
    loop = asyncio.get_running_loop()
    async with connected(world, plane):
        await plane.until(lambda _: plane.streams)
        refused = loop.time()
        await plane.until(hellos)
        assert loop.time() - refused >= 0.4


async def test_backoff_grows_to_its_bound(world: World, plane: ControlPlane) -> None:
    plane.refusals = [(grpc.StatusCode.UNAVAILABLE, "")] * 5
    async with connected(world, plane) as box:
        await plane.until(hellos)
        assert box.waits == [0.01, 0.02, 0.04, 0.05, 0.05]


async def test_a_server_of_another_authority_learns_nothing(
    world: World, plane: ControlPlane
) -> None:
    impostor = ControlPlane(Authority("impostor"))
    impostor.port = plane.port
    await plane.stop()
    await impostor.start()
    async with connected(world, plane) as box:
        await eventually(lambda: len(box.waits) >= 3)
    await impostor.stop()
    assert impostor.streams == 0


async def test_a_status_is_repeated_while_it_does_not_change(
    world: World, plane: ControlPlane
) -> None:
    async with connected(world, plane, Pace(refresh_seconds=0.1)):
        await plane.until(lambda received: len(statuses(received)) >= 2)


async def test_a_server_that_asks_for_a_status_twice_a_second_gets_it_on_change(
    world: World, plane: ControlPlane
) -> None:
    """Servers of earlier versions ask so; it was 14 MB a day for an idle box."""
    async with connected(world, plane) as box:
        await plane.until(statuses)
        await eventually(lambda: box.link.settings.telemetry_window_seconds == 0.2)
        assert box.link.settings.refresh_seconds == STANDARD.refresh_seconds
        # A sentinel on the same stream: everything sent before it has arrived with it.
        for _ in range(3):
            box.telemetry.append(WINDOW)
            box.link.wake()
            await plane.until(batches)
            await eventually(lambda: len(box.telemetry) == 0)
        assert len(statuses(plane.received)) == 1


async def test_a_metered_box_collects_its_telemetry_over_longer_windows(
    world: World, plane: ControlPlane
) -> None:
    async with connected(world, plane, METERED) as box:
        await plane.until(statuses)
        await box.link.settings_changed.wait()
        assert box.link.settings.telemetry_window_seconds == METERED.window_seconds
        assert box.link.settings.refresh_seconds == METERED.refresh_seconds


async def test_chunks_come_raw_and_a_missing_one_is_told(world: World, plane: ControlPlane) -> None:
    chunks = [bytes([n]) * 1000 for n in range(3)]
    plane.chunks = {hashlib.sha256(chunk).digest(): chunk for chunk in chunks}
    async with connected(world, plane) as box:
        pieces = [piece async for piece in box.connection.fetch(list(plane.chunks))]
        assert b"".join(pieces) == b"".join(chunks)
        with pytest.raises(ChunkMissingError):
            await anext(box.connection.fetch([bytes(32)]))
        await plane.stop()
        with pytest.raises(SourceUnavailableError):
            await anext(box.connection.fetch([bytes(32)]))


async def test_metadata_that_is_not_there_is_none(world: World, plane: ControlPlane) -> None:
    plane.metadata = {"timestamp.json": b"{}"}
    async with connected(world, plane) as box:
        assert await box.connection.metadata("timestamp.json") == b"{}"
        assert await box.connection.metadata("2.root.json") is None
        await plane.stop()
        with pytest.raises(SourceUnavailableError):
            await box.connection.metadata("timestamp.json")


async def test_a_certificate_is_renewed_at_two_thirds_and_used(
    world: World, plane: ControlPlane
) -> None:
    async with connected(world, plane) as box:
        await plane.until(hellos)
        data_dir = DataDir(world.root)
        write_file(data_dir.ca, plane.authority.pem)
        old = box.identity
        due = old.renew_at()
        begin, end = old.valid_from, old.valid_until
        assert due - begin == (end - begin) * 2 / 3
        renewal = renewal_of(box, now=lambda: due + timedelta(seconds=1))
        await renewal.renew()
        assert load_identity(data_dir).certificate_pem == renewal.identity.certificate_pem
        assert renewal.identity.certificate_pem != old.certificate_pem
        plane.drop_stream()
        await plane.until(lambda received: len(hellos(received)) == 2)
        assert plane.serials[0] == old.certificate_pem
        assert plane.serials[1] == renewal.identity.certificate_pem


async def test_renewal_breaks_neither_the_stream_nor_a_download(
    world: World, plane: ControlPlane
) -> None:
    chunks = [bytes([n]) * (1 << 20) for n in range(16)]
    plane.chunks = {hashlib.sha256(chunk).digest(): chunk for chunk in chunks}
    async with connected(world, plane) as box:
        await plane.until(hellos)
        data_dir = DataDir(world.root)
        write_file(data_dir.ca, plane.authority.pem)
        download = box.connection.fetch(list(plane.chunks))
        received = [await anext(download)]
        old = box.identity
        # The new certificate is not due for renewal.
        plane.certificate_life = timedelta(hours=9)
        due = old.renew_at()
        renewal = renewal_of(box, now=lambda: due + timedelta(seconds=1))
        renewing = asyncio.create_task(renewal.run())
        await eventually(lambda: renewal.identity is not old)
        received += [piece async for piece in download]
        assert b"".join(received) == b"".join(chunks)
        box.telemetry.append(WINDOW)
        box.link.wake()
        await plane.until(batches)
        await eventually(lambda: not len(box.telemetry))
        assert len(hellos(plane.received)) == 1
        renewing.cancel()


async def test_the_stream_moves_on_when_the_old_certificates_channel_closes(
    world: World, plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "OLD_CHANNEL_SECONDS", 0.2)
    async with connected(world, plane) as box:
        await plane.until(hellos)
        data_dir = DataDir(world.root)
        write_file(data_dir.ca, plane.authority.pem)
        renewal = renewal_of(box)
        await renewal.renew()
        await plane.until(lambda received: len(hellos(received)) == 2)
        assert plane.serials[1] == renewal.identity.certificate_pem


async def test_a_download_that_outlives_the_old_channel_is_asked_for_again(
    world: World, plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "OLD_CHANNEL_SECONDS", 0.0)
    chunks = [bytes([n]) * (1 << 20) for n in range(16)]
    plane.chunks = {hashlib.sha256(chunk).digest(): chunk for chunk in chunks}
    async with connected(world, plane) as box:
        download = box.connection.fetch(list(plane.chunks))
        await anext(download)
        box.connection.replace_identity(box.identity)
        with pytest.raises(SourceUnavailableError):
            async for _ in download:
                pass


async def test_a_box_that_is_not_wanted_serves_on_says_why_and_asks_rarely(
    world: World, plane: ControlPlane
) -> None:
    wanted = world.publish("1")
    plane.assignment = wire.Assignment(
        generation=1, release=wanted.release, manifest_sha256=wanted.manifest_sha256
    )
    async with connected(world, plane) as box:
        await plane.until(receipts)
        await box.life.until(State.IDLE, 1)
        box.waits.clear()
        plane.refusals = [(grpc.StatusCode.PERMISSION_DENIED, "")] * 1000
        plane.received.clear()
        plane.drop_stream()
        await eventually(lambda: len(box.waits) >= 7)
        assert not box.link.connected
        assert "PERMISSION_DENIED: not now" in box.link.problem
        assert box.life.serves == wanted.release
        # Once admitted again, it continues as before.
        plane.refusals = []
        await plane.until(hellos)
        await eventually(lambda: box.link.connected)
        assert box.link.problem == ""
        # The first wait follows the broken stream, the others follow refusals.
        assert box.waits[1:7] == [0.02, 0.04, 0.08, 0.16, 0.2, 0.2]


async def test_a_box_whose_certificate_expired_says_what_to_do_and_takes_a_new_one_over(
    world: World,
    plane: ControlPlane,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(renewals, "LOOK_AGAIN_SECONDS", 0.01)
    async with connected(world, plane) as box:
        data_dir = DataDir(world.root)
        request = signing_request(load_key(data_dir), "box-1")
        expired = plane.authority.device(request, timedelta(seconds=-30))
        write_file(data_dir.ca, plane.authority.pem)
        write_file(data_dir.certificate, expired)
        box.identity = load_identity(data_dir).credentials
        box.connection.replace_identity(box.identity)
        plane.drop_stream()
        await eventually(lambda: "enroll --recover" in box.link.problem)
        assert "certificate expired at" in box.link.problem
        assert not box.link.connected
        renewal = renewal_of(box)
        renewing = asyncio.create_task(renewal.run())
        await eventually(lambda: "certificate_invalid" in caplog.text)
        plane.received.clear()
        write_file(data_dir.certificate, plane.authority.device(request))
        await plane.until(hellos)
        assert plane.serials[-1] == renewal.identity.certificate_pem
        renewing.cancel()


async def test_a_renewed_certificate_of_another_authority_is_not_used(
    world: World, plane: ControlPlane
) -> None:
    async with connected(world, plane) as box:
        renewal = renewal_of(box)
        plane.authority = Authority("other")
        with pytest.raises(IdentityError):
            await renewal.renew()
        assert renewal.identity is box.identity
        assert not DataDir(world.root).certificate.exists()


async def test_a_box_on_a_broken_line_goes_on_serving(world: World, plane: ControlPlane) -> None:
    wanted = world.publish("1")
    plane.assignment = wire.Assignment(
        generation=1, release=wanted.release, manifest_sha256=wanted.manifest_sha256
    )
    async with connected(world, plane) as box:
        await plane.until(receipts)
        await plane.stop()
        await box.life.until(State.IDLE, 1)
        assert box.life.serves == wanted.release


async def test_a_running_box_follows_a_recovery_to_another_server(
    world: World, plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`enroll --recover --server NEW` writes config.json; the daemon moves without a restart."""
    monkeypatch.setattr(renewals, "LOOK_AGAIN_SECONDS", 0.01)
    data_dir = DataDir(world.root)
    elsewhere = ControlPlane(plane.authority)
    await elsewhere.start()
    async with connected(world, plane) as box:
        await plane.until(hellos)
        write_file(data_dir.certificate, box.identity.certificate_pem)
        save_config(data_dir, config_of(plane.port))
        renewal = renewal_of(box, replaced=box.link.reconnect)
        renewing = asyncio.create_task(renewal.run())
        save_config(data_dir, config_of(elsewhere.port))
        await elsewhere.until(hellos)
        assert box.connection.endpoint == f"127.0.0.1:{elsewhere.port}"
        renewing.cancel()
    await elsewhere.stop()


async def test_a_wait_for_the_next_try_ends_when_the_certificate_is_replaced(
    world: World, plane: ControlPlane
) -> None:
    """A refused box waits for minutes, and its owner for the result of the recovery."""
    plane.refusals = [(grpc.StatusCode.PERMISSION_DENIED, "")]
    async with connected(world, plane) as box:
        box.link._refused_backoff = Backoff(3600, 3600, uniform=lambda _, high: high)
        await eventually(lambda: "PERMISSION_DENIED" in box.link.problem)
        box.link.reconnect()
        await plane.until(statuses)


@pytest.mark.parametrize(("generation", "release"), [(3, "2"), (5, "2"), (3, "1")])
async def test_an_assignment_older_than_the_boxs_is_warned_about_until_a_newer_one_comes(
    world: World,
    plane: ControlPlane,
    caplog: pytest.LogCaptureFixture,
    generation: int,
    release: str,
) -> None:
    """A server restored from a backup assigns what the box has passed already."""
    releases = {version: world.publish(version) for version in ("1", "2")}

    def assign(generation: int, version: str) -> None:
        wanted = releases[version]
        plane.assignment = wire.Assignment(
            generation=generation,
            release=wanted.release,
            manifest_sha256=wanted.manifest_sha256,
        )
        plane.drop_stream()

    assign(5, "1")
    async with connected(world, plane) as box:
        await plane.until(receipts)
        await box.life.until(State.IDLE, 5)
        assign(generation, release)
        (warning,) = await plane.until(lambda received: list(statuses(received)[-1].warnings))
        assert f"generation {generation}" in warning
        assert "has taken on 5" in warning
        assert "restored from a backup" in warning
        assert "device_warning name=assignment" in caplog.text
        assert hellos(plane.received)[-1].generation == 5
        assert box.life.serves == releases["1"].release
        # The server continues above the generation in Hello.
        assign(6, "2")
        await box.life.until(State.IDLE, 6)
        await plane.until(lambda received: not statuses(received)[-1].warnings)
        assert box.life.serves == releases["2"].release


async def test_the_same_assignment_again_is_no_reason_to_warn(
    world: World, plane: ControlPlane
) -> None:
    wanted = world.publish("1")
    plane.assignment = wire.Assignment(
        generation=1, release=wanted.release, manifest_sha256=wanted.manifest_sha256
    )
    async with connected(world, plane) as box:
        await box.life.until(State.IDLE, 1)
        plane.received.clear()
        plane.drop_stream()
        await plane.until(statuses)
        await eventually(lambda: box.directed.count(1) == 2)
        assert not any(status.warnings for status in statuses(plane.received))


async def test_hello_has_the_metadata_versions_that_the_box_will_not_go_below(
    world: World, plane: ControlPlane
) -> None:
    async with connected(world, plane) as box:
        await plane.until(hellos)
        floors = {"image/root": 3, "image/timestamp@ab": 7, "image/acme@cd": 2}
        others = {"image/min_release/acme/chat": 2, "image/signed_at@ab": 99, "director/root": 1}
        box.life.journal.raise_floors(floors | others)
        plane.received.clear()
        plane.drop_stream()
        await plane.until(hellos)
        assert dict(plane.received[0].hello.metadata_versions) == {
            "root": 3,
            "timestamp@ab": 7,
            "acme@cd": 2,
        }


def config_of(port: int) -> AgentConfig:
    return AgentConfig(
        device_id="device-1",
        name="box-1",
        labels={},
        server=f"127.0.0.1:{port}",
        device_endpoint=f"127.0.0.1:{port}",
    )
