"""Metadata and certificates that expire within 60 days are warned about, and only those."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from agent.errors import SourceUnavailableError
from agent.identity.credentials import Credentials
from agent.identity.keys import Identity, signing_request
from agent.link.device_warnings import DeviceWarnings
from agent.link.expiry import ExpiryWatch, expiry_warnings, metadata_expiries
from tests.agent.tls import Authority
from tests.support.image_world import START, World, manifest

DAY = timedelta(days=1)
CHAT = "acme/chat@1"


@pytest.fixture
def identity() -> Credentials:
    """A device whose certificates are far from their ends at START."""
    authority = Authority()
    key = ec.generate_private_key(ec.SECP256R1())
    found = Identity(
        key, authority.device(signing_request(key, "box-1")), authority.pem
    ).credentials
    return replace(
        found,
        valid_from=START,
        valid_until=START + 14 * DAY,
        authority_valid_until=START + 3650 * DAY,
    )


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """The metadata that a device verified at START; the offline roles are valid for a year."""
    world = World()
    world.publish(manifest())
    world.verifier(tmp_path / "metadata").resolve(CHAT)
    return tmp_path / "metadata"


def texts(metadata: dict[str, datetime], identity: Credentials, now: datetime) -> list[str]:
    return [text for text in expiry_warnings(metadata, identity, now).values() if text]


def test_the_expiries_are_those_of_the_roles_with_offline_keys(cache: Path) -> None:
    (cache / "broken.json").write_bytes(b"{")
    assert metadata_expiries(cache) == dict.fromkeys(("acme", "root", "targets"), START + 365 * DAY)
    assert metadata_expiries(cache / "missing") == {}


@pytest.mark.parametrize(("days", "count"), [(304, 0), (305, 0), (306, 3), (366, 3)])
def test_metadata_is_warned_about_from_60_days_before(
    cache: Path, identity: Credentials, days: int, count: int
) -> None:
    now = START + days * DAY
    fresh = replace(identity, valid_from=now, valid_until=now + 14 * DAY)
    found = texts(metadata_expiries(cache), fresh, now)
    assert len(found) == count
    for text in found:
        assert "2027-11-24" in text
        assert ("expired on" if days > 365 else "expires on") in text
        assert "flotilla keys renew" in text


def test_an_authority_is_warned_about_from_60_days_before(identity: Credentials) -> None:
    ending = replace(identity, authority_valid_until=START + 59 * DAY)
    (text,) = texts({}, ending, START)
    assert "flotilla ca rotate" in text
    assert texts({}, replace(identity, authority_valid_until=START + 60 * DAY), START) == []


@pytest.mark.parametrize(("day", "late"), [(0, False), (11, False), (12, True), (15, True)])
def test_a_certificate_that_should_have_been_renewed_is_warned_about(
    identity: Credentials, day: int, late: bool
) -> None:
    """Renewal is due after two thirds of its 14 days, and lives shorter than 60 days are normal."""
    assert bool(texts({}, identity, START + day * DAY)) == late


class Box:
    def __init__(self, folder: Path, identity: Credentials) -> None:
        self.now = START
        self.warnings = DeviceWarnings(self._changed)
        self.changes = 0
        self.refreshed: list[datetime] = []
        self.on_refresh: Callable[[], Awaitable[None]] | None = None
        self.watch = ExpiryWatch(
            folder, lambda: identity, self.warnings, refresh=self._refresh, now=lambda: self.now
        )

    def _changed(self) -> None:
        self.changes += 1

    async def _refresh(self) -> None:
        self.refreshed.append(self.now)
        if self.on_refresh is not None:
            await self.on_refresh()


async def test_old_copies_are_refreshed_before_a_warning(
    cache: Path, identity: Credentials
) -> None:
    box = Box(cache, replace(identity, valid_until=START + 9999 * DAY))
    await box.watch.look()
    assert (box.refreshed, box.warnings.texts) == ([], [])

    def renew() -> None:
        for path in cache.glob("*.json"):
            document = msgspec.json.decode(path.read_bytes())
            document["signed"]["expires"] = "2030-01-01T00:00:00Z"
            path.unlink()
            path.write_bytes(msgspec.json.encode(document))

    async def renewed() -> None:
        await asyncio.to_thread(renew)

    box.now, box.on_refresh = START + 340 * DAY, renewed
    await box.watch.look()
    assert box.refreshed == [box.now]
    assert box.warnings.texts == []
    assert box.changes == 0


async def test_a_warning_stays_while_the_server_is_away_and_is_asked_about_once_a_day(
    cache: Path, identity: Credentials
) -> None:
    box = Box(cache, replace(identity, valid_until=START + 9999 * DAY))

    async def away() -> None:
        raise SourceUnavailableError("no route")

    box.now, box.on_refresh = START + 340 * DAY, away
    for _ in range(25):
        await box.watch.look()
        box.now += timedelta(hours=1)
    assert len(box.warnings.texts) == 3
    assert len(box.refreshed) == 2
    assert box.changes == 3
