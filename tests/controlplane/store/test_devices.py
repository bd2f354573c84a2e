"""Devices with their assignments, receipts, windows and join tokens."""

from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from artifact.sketch import Sketch
from artifact.window import Energy, Provenance, Window
from controlplane.errors import NameTakenError, NotFoundError, StaleError
from controlplane.fleet import UpdateState
from controlplane.store import devices, join_tokens, receipts, sessions, telemetry
from controlplane.store.database import Database
from controlplane.store.devices import DeviceState
from controlplane.store.join_tokens import JoinToken
from controlplane.store.paging import PageRequest
from controlplane.store.receipts import CandidateRecord, DecisionRecord, ProbationCheck, Receipt
from controlplane.store.sessions import Progress

from .conftest import device


def receipt(now: datetime, generation: int = 1, **changes: object) -> Receipt:
    fields = {
        "generation": generation,
        "release": "acme/chat@1",
        "outcome": UpdateState.COMMITTED,
        "reason": "",
        "detail": "",
        "bytes_downloaded": 1 << 40,
        "switch_seconds": 0.25,
        "decisions": (
            DecisionRecord(
                slot="chat",
                model="acme/tiny@1",
                chosen_variant="q8",
                objective="tokens_per_second",
                reason="fastest",
                memory_budget_bytes=1,
                candidates=(
                    CandidateRecord(
                        variant="q8", runtime="x", quantization="q8", bucket="chosen", reason="r"
                    ),
                ),
            ),
        ),
        "checks": (ProbationCheck("chat", "perplexity", "passed", "7.3"),),
        "finished_at": now,
        "current_release": "acme/chat@1",
        "last_good_release": "",
        **changes,
    }
    return Receipt(**fields)  # type: ignore[arg-type]


async def test_a_certificate_that_was_replaced_meanwhile_forgets_nothing(
    one: Database, now: datetime
) -> None:
    expires = now + timedelta(days=1)
    for shown, kept in (("2", "1"), ("3", None)):
        async with one.write() as tx:
            await devices.set_certificate(
                tx, "id-box-1", serial="3", previous="1", authority="a" * 64, expires_at=expires
            )
            await devices.forget_previous_serial(tx, "id-box-1", shown=shown, now=now)
            found = await devices.get(tx, "box-1")
        assert (found.certificate_serial, found.previous_serial) == ("3", kept)
        assert found.certificate_seen_at == (None if kept else now)


async def test_a_retired_device_frees_its_name_and_its_key_however_long_the_name(
    database: Database, now: datetime
) -> None:
    name = "n" * 63
    async with database.write() as tx:
        await devices.add(tx, replace(device(name, now), id="0" * 20))
        old = await devices.get(tx, name)
        assert await devices.find_by_key(tx, b"key") == old
        await devices.set_state(tx, old, DeviceState.RETIRED, "old")
        assert await devices.find_by_key(tx, b"key") is None
        found = await devices.get(tx, old.id)
        assert (found.state, found.state_reason) == (DeviceState.RETIRED, "old")
        assert len(found.name) <= 63
        await devices.add(tx, replace(device("new", now), name=name))


async def test_a_device_comes_back_as_it_went_in(one: Database, now: datetime) -> None:
    async with one.read() as tx:
        assert await devices.get(tx, "box-1") == device("box-1", now)
        assert await devices.get(tx, "id-box-1") == device("box-1", now)
        with pytest.raises(NotFoundError):
            await devices.get(tx, "box-2")


async def test_a_name_is_given_once(one: Database, now: datetime) -> None:
    async with one.write() as tx:
        with pytest.raises(NameTakenError):
            await devices.add(tx, device("box-1", now))


async def test_a_receipt_is_stored_once_and_whole(one: Database, now: datetime) -> None:
    first, second = receipt(now), receipt(now, reason="another")
    async with one.write() as tx:
        args = {"signed": b"s", "signature": b"g", "now": now}
        assert await receipts.add(tx, "id-box-1", first, **args)  # type: ignore[arg-type]
        assert not await receipts.add(tx, "id-box-1", second, **args)  # type: ignore[arg-type]
        assert await receipts.newest(tx, "id-box-1", 10) == [first]


async def test_the_serving_variants_are_those_of_the_current_release(
    one: Database, now: datetime
) -> None:
    async with one.write() as tx:
        rejected = receipt(now, 2, outcome=UpdateState.REJECTED, release="acme/chat@2")
        for made in (receipt(now), rejected):
            await receipts.add(tx, "id-box-1", made, signed=b"", signature=b"", now=now)
        assert await receipts.serving_variants(tx, ["id-box-1"]) == {}
        done = Progress(
            generation=2,
            state=UpdateState.REJECTED,
            detail="",
            bytes_done=0,
            bytes_total=0,
            current_release="acme/chat@1",
            last_good_release="",
        )
        await sessions.report_progress(tx, "id-box-1", done, now)
        assert await receipts.serving_variants(tx, ["id-box-1"]) == {"id-box-1": {"chat": "q8"}}


async def test_windows_come_back_once_with_their_energy(one: Database, now: datetime) -> None:
    metered = Window(
        sequence=1,
        started_at=now,
        duration_seconds=2.0,
        release="acme/chat@1",
        slot="chat",
        model_version="acme/tiny@1",
        variant="q8",
        runtime="llama_cpp",
        requests=3,
        generated_tokens=1 << 40,
        ttft_seconds=Sketch.of((0.1, 0.2, 0.0)),
        route="assistant",
        escalations=1,
        energy=Energy(12.5, Provenance("rapl", "package", "counter")),
    )
    plain = Window(
        sequence=2,
        started_at=now + timedelta(seconds=2),
        duration_seconds=2.0,
        release="acme/chat@2",
        slot="chat",
        model_version="",
        variant="",
        runtime="",
    )
    async with one.write() as tx:
        await telemetry.add(tx, "id-box-1", "boot", [metered])
        await telemetry.add(tx, "id-box-1", "boot", [metered, plain])

        async def found(since: datetime | None, release: str) -> list[Window]:
            return [entry.window async for _, entry in telemetry.since(tx, since, release)]

        assert sorted(await found(None, ""), key=lambda w: w.sequence) == [metered, plain]
        assert await found(now + timedelta(seconds=1), "") == [plain]
        assert await found(None, "acme/chat@1") == [metered]
        assert await telemetry.forget(tx, now + timedelta(seconds=1)) == 1
        assert await found(None, "") == [plain]


async def test_a_thousand_and_more_windows_go_in_one_call(one: Database, now: datetime) -> None:
    windows = [
        Window(
            sequence=number,
            started_at=now,
            duration_seconds=1.0,
            release="",
            slot="",
            model_version="",
            variant="",
            runtime="",
        )
        for number in range(2500)
    ]
    async with one.write() as tx:
        await telemetry.add(tx, "id-box-1", "boot", windows)
    async with one.read() as tx:
        assert len([entry async for entry in telemetry.since(tx, None, "")]) == 2500


async def test_a_join_token_is_spent_to_the_last_use(one: Database, now: datetime) -> None:
    token = JoinToken(
        id="t",
        secret_sha256="s",
        uses_left=1,
        created_at=now,
        expires_at=now,
        revoked=False,
        labels={},
    )
    async with one.write() as tx:
        await join_tokens.add(tx, token)
        await join_tokens.use(tx, "t", "key", "id-box-1")
        assert await join_tokens.device_of_use(tx, "t", "key") == "id-box-1"
        assert await join_tokens.device_of_use(tx, "t", "other") is None
        with pytest.raises(StaleError):
            await join_tokens.use(tx, "t", "other", "id-box-1")


async def test_pages_follow_on_one_another(database: Database, now: datetime) -> None:
    async with database.write() as tx:
        for number in range(5):
            await devices.add(tx, device(f"box-{number}", now))
        first = await devices.page(tx, PageRequest(3))
        assert [one.name for one in first.items] == ["box-0", "box-1", "box-2"]
        assert first.next_token
        rest = await devices.page(tx, PageRequest(3, first.items[-1].name))
        assert [one.name for one in rest.items] == ["box-3", "box-4"]
        assert rest.next_token == ""
