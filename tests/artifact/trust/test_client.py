"""Floors hold after a power cut, a replay and a change of the clock."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from image_world import FIRST_VERSION, START, Numbers, World, manifest
from tuf.api.metadata import Targets, Timestamp

from artifact.errors import ClockSetBackError, ExpiredMetadataError, UntrustedError
from artifact.trust.ceremony import next_version, set_publisher
from artifact.trust.client import CLOCK_TOLERANCE, MAX_VERSION
from artifact.trust.image import sign
from artifact.trust.keys import generate_key
from artifact.trust.metadata import parse
from artifact.trust.repository import make_snapshot_timestamp
from artifact.trust.update import Update
from artifact.trust.verify import ImageVerifier

CHAT = "acme/chat@1"


@pytest.fixture
def floors() -> Numbers:
    return Numbers()


@pytest.fixture
def fresh(world: World, floors: Numbers, tmp_path: Path) -> Callable[[], ImageVerifier]:
    """Return a verifier with an empty cache, which a power cut may leave."""
    caches = iter(range(100))
    return lambda: world.verifier(tmp_path / f"cache-{next(caches)}", floors)


def names(floors: Numbers) -> dict[str, int]:
    """Return the names of the floors without the digests of the keys."""
    return {name.partition("@")[0]: number for name, number in floors.kept.items()}


def test_every_role_leaves_its_version_the_time_and_the_lowest_release(
    world: World, floors: Numbers, fresh: Callable[[], ImageVerifier]
) -> None:
    world.publish(manifest(), lowest=1)
    fresh().resolve(CHAT)
    assert names(floors) == {
        "image/root": 1,
        "image/timestamp": FIRST_VERSION + 1,
        "image/snapshot": FIRST_VERSION + 1,
        "image/targets": 1,
        "image/acme": 2,
        "image/min_release/acme/chat": 1,
        "image/signed_at": int(START.timestamp()),
    }


def test_a_replay_is_refused_even_when_the_cache_is_lost(
    world: World, fresh: Callable[[], ImageVerifier]
) -> None:
    old = world.store["timestamp.json"]
    world.publish(manifest())
    fresh().resolve(CHAT)
    world.store["timestamp.json"] = old
    with pytest.raises(
        UntrustedError, match=f"fell back from version {FIRST_VERSION + 1} to {FIRST_VERSION}"
    ):
        fresh().resolve(CHAT)


def test_what_a_refusal_showed_is_a_floor_too(
    world: World, fresh: Callable[[], ImageVerifier]
) -> None:
    world.publish(manifest())
    listed = dict(world.store)
    world.delist(CHAT)
    with pytest.raises(UntrustedError, match="does not list"):
        fresh().resolve(CHAT)
    world.store = listed
    with pytest.raises(UntrustedError, match="fell back"):
        fresh().resolve(CHAT)


def test_what_a_failed_walk_verified_is_a_floor_too(
    world: World, fresh: Callable[[], ImageVerifier]
) -> None:
    world.publish(manifest())
    before = dict(world.store)
    world.publish(manifest(version="2", counter=2))
    world.store[f"{FIRST_VERSION + 2}.snapshot.json"] = b"{}"
    with pytest.raises(UntrustedError, match="cannot be verified"):
        fresh().resolve(CHAT)
    world.store = before
    with pytest.raises(UntrustedError, match="timestamp metadata fell back from version"):
        fresh().resolve(CHAT)


def test_new_keys_start_a_new_floor(
    world: World, floors: Numbers, fresh: Callable[[], ImageVerifier]
) -> None:
    """Otherwise a thief of the old keys could stop all updates by signing a huge version."""
    world.publish(manifest())
    signed = parse(Timestamp, world.roles["timestamp"], "timestamp").signed
    signed.version = FIRST_VERSION + 10**6
    honest = world.store["timestamp.json"]
    world.store["timestamp.json"] = sign(signed, [world.online.timestamp])
    fresh().resolve(CHAT)
    world.store["timestamp.json"] = honest
    with pytest.raises(UntrustedError, match="fell back"):
        fresh().resolve(CHAT)

    world.replace_timestamp_key()
    assert fresh().resolve(CHAT).counter == 1


def test_a_version_beyond_all_use_is_refused_and_does_no_harm(
    world: World, floors: Numbers, fresh: Callable[[], ImageVerifier]
) -> None:
    world.publish(manifest())
    signed = parse(Timestamp, world.roles["timestamp"], "timestamp").signed
    signed.version = MAX_VERSION + 1
    world.store["timestamp.json"] = sign(signed, [world.online.timestamp])
    with pytest.raises(UntrustedError, match="maximum is 9007199254740992"):
        fresh().resolve(CHAT)
    assert max(floors.kept.values(), default=0) <= MAX_VERSION


def test_a_clock_set_back_is_refused_and_a_corrected_one_is_not(
    world: World, fresh: Callable[[], ImageVerifier]
) -> None:
    world.publish(manifest())
    fresh().resolve(CHAT)
    world.pass_time(-CLOCK_TOLERANCE)
    assert fresh().resolve(CHAT).counter == 1
    world.pass_time(timedelta(seconds=-1))
    with pytest.raises(ClockSetBackError, match="3601 s before") as raised:
        fresh().resolve(CHAT)
    assert "NTP" in raised.value.advice


def test_expired_metadata_does_not_come_back_with_an_old_clock(
    world: World, fresh: Callable[[], ImageVerifier]
) -> None:
    world.publish(manifest())
    old = dict(world.store)
    world.pass_time(timedelta(days=3))
    world.refresh()
    fresh().resolve(CHAT)
    world.store = old
    world.pass_time(timedelta(days=-3))
    with pytest.raises(ClockSetBackError):
        fresh().resolve(CHAT)


@pytest.mark.parametrize("ahead", [timedelta(hours=2), timedelta(hours=20)])
def test_a_clock_that_was_ahead_once_is_no_obstacle_after_it_is_corrected(
    world: World, fresh: Callable[[], ImageVerifier], ahead: timedelta
) -> None:
    """Its own clock said so; no server has signed that this time was reached."""
    world.publish(manifest())
    world.pass_time(ahead)
    assert fresh().resolve(CHAT).counter == 1
    world.now = START
    assert fresh().resolve(CHAT).counter == 1


def test_a_clock_behind_the_first_signature_is_refused_with_the_right_advice(
    world: World, fresh: Callable[[], ImageVerifier]
) -> None:
    """A box without a battery starts in the past, before it has seen any metadata."""
    world.publish(manifest())
    world.pass_time(timedelta(days=-2))
    with pytest.raises(ClockSetBackError, match="172800 s before") as raised:
        fresh().resolve(CHAT)
    assert "Set this machine's clock" in raised.value.advice


def test_expired_metadata_names_the_time_of_this_machine(
    world: World, fresh: Callable[[], ImageVerifier]
) -> None:
    world.publish(manifest())
    world.pass_time(timedelta(days=3))
    with pytest.raises(ExpiredMetadataError, match="clock says 2026-11-27T12:00:00") as raised:
        fresh().resolve(CHAT)
    assert "If this machine's clock is wrong" in raised.value.advice


def test_a_signature_from_the_future_is_bounded_by_its_expiry_and_ends_with_its_key(
    world: World, floors: Numbers, fresh: Callable[[], ImageVerifier]
) -> None:
    world.publish(manifest())
    honest = world.store["timestamp.json"]
    signed = parse(Timestamp, honest, "timestamp").signed
    signed.unrecognized_fields["signed_at"] = 1 << 60
    world.store["timestamp.json"] = sign(signed, [world.online.timestamp])
    with pytest.raises(ClockSetBackError):
        fresh().resolve(CHAT)
    assert names(floors).get("image/signed_at", 0) <= signed.expires.timestamp()
    world.replace_timestamp_key()
    assert fresh().resolve(CHAT).counter == 1


@pytest.mark.parametrize("stated", [None, "soon", -5])
def test_a_timestamp_without_a_usable_time_sets_no_floor(
    world: World, floors: Numbers, fresh: Callable[[], ImageVerifier], stated: object
) -> None:
    """Servers of earlier versions state none."""
    world.publish(manifest())
    signed = parse(Timestamp, world.roles["timestamp"], "timestamp").signed
    signed.unrecognized_fields["signed_at"] = stated
    if stated is None:
        del signed.unrecognized_fields["signed_at"]
    world.store["timestamp.json"] = sign(signed, [world.online.timestamp])
    world.pass_time(timedelta(days=-5))
    assert fresh().resolve(CHAT).counter == 1
    assert names(floors).get("image/signed_at", 0) == 0


def test_a_clock_that_was_far_ahead_leaves_no_floor(
    world: World, floors: Numbers, fresh: Callable[[], ImageVerifier]
) -> None:
    world.publish(manifest())
    world.pass_time(timedelta(days=4000))
    with pytest.raises(ExpiredMetadataError):
        fresh().resolve(CHAT)
    assert "image/signed_at" not in names(floors)
    world.now = START
    assert fresh().resolve(CHAT).counter == 1


def test_a_lowest_release_holds_when_the_name_starts_over(
    world: World, fresh: Callable[[], ImageVerifier]
) -> None:
    world.publish(manifest())
    world.publish(manifest(version="2", counter=2), lowest=2)
    fresh().resolve("acme/chat@2")
    world.delist("acme/chat@1", "acme/chat@2")
    world.publish(manifest(version="0", counter=1))
    with pytest.raises(UntrustedError, match="below the publisher's min_release 2"):
        fresh().resolve("acme/chat@0")


def test_targets_itself_may_list_nothing(world: World, fresh: Callable[[], ImageVerifier]) -> None:
    world.publish(manifest())
    target = parse(Targets, world.roles["acme"], "acme").signed.targets["acme/chat/1.json"]
    world.delist(CHAT)
    targets = parse(Targets, world.roles["targets"], "targets").signed
    targets.targets[target.path] = target
    targets.version += 1
    world.keep({"targets": sign(targets, [world.targets])})
    world.keep(make_snapshot_timestamp(world.roles, world.online, now=world.now))
    with pytest.raises(UntrustedError, match="acme does not list"):
        fresh().resolve(CHAT)


def test_a_new_key_of_a_publisher_starts_its_floor_anew(
    world: World, floors: Numbers, fresh: Callable[[], ImageVerifier]
) -> None:
    world.publish(manifest())
    fresh().resolve(CHAT)
    before = {name for name in floors.kept if name.startswith("image/acme@")}
    new = generate_key()
    targets = next_version(
        Targets,
        world.roles["targets"],
        "targets",
        [world.targets],
        now=world.now,
        edit=set_publisher("acme", new.public_key),
    )
    world.publishers["acme"] = new
    listing = next_version(Targets, world.roles["acme"], "acme", [new], now=world.now)
    world.update(Update(targets=targets, delegated={"acme": listing}))
    fresh().resolve(CHAT)
    after = {name for name in floors.kept if name.startswith("image/acme@")}
    assert len(before) == 1
    assert len(after) == 2


def test_what_was_verified_before_an_expiry_raises_the_floors(
    world: World, floors: Numbers, fresh: Callable[[], ImageVerifier]
) -> None:
    world.publish(manifest())
    world.pass_time(timedelta(days=200))
    with pytest.raises(ExpiredMetadataError):
        fresh().resolve(CHAT)
    assert names(floors)["image/root"] == 1
