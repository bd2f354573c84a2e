"""Every attack on what a device installs ends in its typed error, and what runs keeps running.

Each attack is made with the keys that its thief would have. It is held against the agent's own
verifying step, with its cache whole and with its cache zeroed by a power cut; and then all of them,
one after another, against a box that serves (docs/security.md has the table).
"""

import asyncio
import hashlib
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tuf.api.metadata import Metadata, Root, Snapshot, TargetFile, Targets, Timestamp

from agent.errors import SourceUnavailableError
from agent.journal import Assignment
from agent.link import metadata as link_metadata
from agent.link.metadata import StreamedVerifier
from agent.update.machine import State
from artifact.errors import ArtifactError
from artifact.manifest import MAX_MANIFEST_BYTES, target_path
from artifact.trust.ceremony import next_version, raise_floor, remove_publisher, replace_key
from artifact.trust.image import sign
from artifact.trust.keys import generate_key
from artifact.trust.metadata import parse
from artifact.trust.repository import make_snapshot_timestamp
from artifact.trust.statements import DirectedRelease, VerifiedRelease, check_manifest
from artifact.trust.update import Update
from tests.agent.box import World
from tests.security.signed_world import Box, Memory, SignedWorld, zero_cache

ONE, TWO, NINE = (f"acme/assistant@{version}" for version in (1, 2, 9))

Attack = Callable[[SignedWorld, int], Assignment]
"""What is done to the world, and the assignment of that generation that goes with it."""

ATTACKS: dict[str, tuple[Attack, str, str]] = {}
"""Name to attack, the machine-readable reason of its refusal, and words of it."""


def attack(reason: str, words: str) -> Callable[[Attack], Attack]:
    def register(make: Attack) -> Attack:
        ATTACKS[make.__name__] = (make, reason, words)
        return make

    return register


@pytest.fixture
def world(tmp_path: Path) -> SignedWorld:
    return SignedWorld(tmp_path)


def resign(world: SignedWorld) -> None:
    """What whoever has the snapshot and timestamp keys does after changing a role."""
    image = world.image
    image.keep(make_snapshot_timestamp(image.roles, image.online, now=image.now))


# -- a stolen control plane: the director's key, the snapshot and timestamp keys, the chunk store


@attack("untrusted", "acme does not list acme/assistant@9")
def stolen_director_names_a_release_that_nobody_signed(
    world: SignedWorld, generation: int
) -> Assignment:
    manifest = world.manifests[TWO].replace(b'"version":"2"', b'"version":"9"')
    digest = hashlib.sha256(manifest)
    world.server.chunks[digest.digest()] = manifest
    return world.signed(DirectedRelease(NINE, len(manifest), digest.hexdigest(), 9), generation)


@attack("manifest_mismatch", "the publisher signed")
def stolen_director_names_an_altered_release(world: SignedWorld, generation: int) -> Assignment:
    altered = world.manifests[TWO].replace(b'"benchmark_tokens":4', b'"benchmark_tokens":5')
    digest = hashlib.sha256(altered)
    world.server.chunks[digest.digest()] = altered
    return world.assign(TWO, generation, sha256=digest.hexdigest())


@attack("untrusted", "signed as|signed are")
def stolen_store_serves_another_manifest_under_the_signed_digest(
    world: SignedWorld, generation: int
) -> Assignment:
    digest = bytes.fromhex(world.digest(TWO))
    assignment = world.assign(TWO, generation)
    world.server.chunks[digest] = world.manifests[ONE]
    return assignment


@attack("untrusted", "the director assigns")
def stolen_director_claims_another_counter(world: SignedWorld, generation: int) -> Assignment:
    return world.assign(TWO, generation, counter=99)


@attack("untrusted", "the director assigns")
def stolen_director_claims_another_length(world: SignedWorld, generation: int) -> Assignment:
    return world.assign(TWO, generation, length=1)


@attack("untrusted", "for the device 'box-2'; this is box-1")
def another_devices_assignment_is_sent_here(world: SignedWorld, generation: int) -> Assignment:
    return world.assign(TWO, generation, device="box-2")


# -- a stolen stream: who can send, but not sign as the director


@attack("untrusted", "its signed metadata")
def an_assignment_says_another_release_than_its_signature(
    world: SignedWorld, generation: int
) -> Assignment:
    honest = world.assign(ONE, generation)
    return Assignment(
        generation=generation,
        release=TWO,
        manifest_sha256=world.digest(TWO),
        director=honest.director,
    )


@attack("untrusted", "its signed metadata")
def an_assignment_says_another_generation_than_its_signature(
    world: SignedWorld, generation: int
) -> Assignment:
    old = world.assign(TWO, 2)
    return Assignment(
        generation=generation,
        release=old.release,
        manifest_sha256=old.manifest_sha256,
        director=old.director,
    )


@attack("untrusted", "its signed metadata")
def serving_nothing_is_assigned_without_a_signature(
    world: SignedWorld, generation: int
) -> Assignment:
    honest = world.assign(TWO, generation)
    return Assignment(
        generation=generation, release="", manifest_sha256="", director=honest.director
    )


@attack("untrusted", "is not signed")
def an_assignment_comes_unsigned(world: SignedWorld, generation: int) -> Assignment:
    assignment = world.assign(TWO, generation)
    return Assignment(
        generation=generation, release=TWO, manifest_sha256=assignment.manifest_sha256
    )


@attack("untrusted", "signed by 0/1 keys")
def a_stranger_signs_as_the_director(world: SignedWorld, generation: int) -> Assignment:
    honest, world.director = world.director, generate_key()
    try:
        return world.assign(TWO, generation)
    finally:
        world.director = honest


@attack("untrusted", "Expected targets")
def the_directors_old_and_new_files_are_mixed(world: SignedWorld, generation: int) -> Assignment:
    older, newer = world.assign(ONE, generation - 1), world.assign(TWO, generation)
    assert older.director is not None
    assert newer.director is not None
    mixed = replace(newer.director, targets=older.director.targets)
    return Assignment(
        generation=generation,
        release=ONE,
        manifest_sha256=world.digest(ONE),
        director=mixed,
    )


# -- publishers against each other


@attack("untrusted", "acme does not list acme/assistant@9")
def one_publisher_lists_under_anothers_name(world: SignedWorld, generation: int) -> Assignment:
    """With the other publisher's key and the control plane."""
    manifest = world.manifests[TWO].replace(b'"version":"2"', b'"version":"9"')
    digest = hashlib.sha256(manifest)
    world.server.chunks[digest.digest()] = manifest
    image = world.image
    listing = parse(Targets, image.roles["beta"], "beta").signed
    target = TargetFile.from_data(target_path(NINE), manifest, ["sha256"])
    target.unrecognized_fields["custom"] = {"counter": 9, "min_release": 0}
    listing.targets[target.path] = target
    listing.version += 1
    image.keep({"beta": sign(listing, [image.publishers["beta"]])})
    resign(world)
    return world.signed(DirectedRelease(NINE, len(manifest), digest.hexdigest(), 9), generation)


# -- replay, freeze, mix-and-match


def older(world: SignedWorld, role: str) -> bytes:
    """The version of a role before its newest."""
    version = Metadata.from_bytes(world.image.roles[role]).signed.version
    return world.image.store[f"{version - 1}.{role}.json"]


@attack("untrusted", "fell back|must be >=")
def an_older_timestamp_is_replayed(world: SignedWorld, generation: int) -> Assignment:
    timestamp = parse(Timestamp, world.image.roles["timestamp"], "timestamp").signed
    timestamp.version -= 1
    timestamp.snapshot_meta.version -= 1
    timestamp.snapshot_meta.length = timestamp.snapshot_meta.hashes = None
    world.image.store["timestamp.json"] = sign(timestamp, [world.image.online.timestamp])
    return world.assign(TWO, generation)


@attack("untrusted", "fell back|must be >=")
def an_older_snapshot_is_replayed_under_a_new_timestamp(
    world: SignedWorld, generation: int
) -> Assignment:
    """With the timestamp key."""
    timestamp = parse(Timestamp, world.image.roles["timestamp"], "timestamp").signed
    timestamp.version += 1
    timestamp.snapshot_meta.version -= 1
    timestamp.snapshot_meta.length = timestamp.snapshot_meta.hashes = None
    world.image.store["timestamp.json"] = sign(timestamp, [world.image.online.timestamp])
    return world.assign(TWO, generation)


@attack("untrusted", r"fell back|Expected acme\.json version")
def an_older_listing_is_replayed_under_a_new_snapshot(
    world: SignedWorld, generation: int
) -> Assignment:
    """With the snapshot and timestamp keys, which a stolen control plane has."""
    world.image.roles["acme"] = older(world, "acme")
    resign(world)
    return world.assign(ONE, generation)


@attack("untrusted", "cannot be verified")
def an_old_listing_is_mixed_with_a_new_snapshot(world: SignedWorld, generation: int) -> Assignment:
    """Without any key: files of different times under each other's names."""
    version = Metadata.from_bytes(world.image.roles["acme"]).signed.version
    world.image.roles["acme"] = older(world, "acme")
    snapshot = parse(Snapshot, world.image.roles["snapshot"], "snapshot").signed
    snapshot.version += 1
    snapshot.meta["acme.json"].version = version + 1
    snapshot.meta["acme.json"].length = snapshot.meta["acme.json"].hashes = None
    data = sign(snapshot, [world.image.online.snapshot])
    timestamp = parse(Timestamp, world.image.roles["timestamp"], "timestamp").signed
    timestamp.version += 1
    timestamp.snapshot_meta.version += 1
    timestamp.snapshot_meta.length = timestamp.snapshot_meta.hashes = None
    world.image.store["timestamp.json"] = sign(timestamp, [world.image.online.timestamp])
    world.image.store[f"{snapshot.version}.snapshot.json"] = data
    world.image.store[f"{version + 1}.acme.json"] = world.image.roles["acme"]
    return world.assign(TWO, generation)


@attack("metadata_expired", "expired")
def everything_is_frozen_until_it_expires(world: SignedWorld, generation: int) -> Assignment:
    world.image.pass_time(timedelta(days=2))
    return world.assign(TWO, generation)


@attack("metadata_expired", "expired")
def an_assignment_is_held_back_until_it_expires(world: SignedWorld, generation: int) -> Assignment:
    assignment = world.assign(TWO, generation)
    world.image.pass_time(timedelta(days=8))
    world.image.refresh()
    return assignment


@attack("clock_set_back", "before the server's latest signature")
def the_clock_is_set_back(world: SignedWorld, generation: int) -> Assignment:
    world.image.pass_time(timedelta(hours=-2))
    return world.assign(TWO, generation)


# -- too few signatures


def serve_root(world: SignedWorld, data: bytes) -> None:
    version = Metadata[Root].from_bytes(data).signed.version
    world.image.store[f"{version}.root.json"] = data


@attack("untrusted", "root was signed by 0/1|signed by 0/1 keys")
def a_root_is_signed_by_its_new_keys_only(world: SignedWorld, generation: int) -> Assignment:
    thief = generate_key()
    old = world.image.root.public_key.keyid
    edit = replace_key("root", old, thief.public_key)
    serve_root(
        world,
        next_version(
            Root, world.image.roles["root"], "root", [thief], now=world.image.now, edit=edit
        ),
    )
    return world.assign(TWO, generation)


@attack("untrusted", "root was signed by 0/1|signed by 0/1 keys")
def a_root_is_signed_by_its_old_keys_only(world: SignedWorld, generation: int) -> Assignment:
    other = generate_key()
    old = world.image.root.public_key.keyid
    serve_root(world, world.image.next_root(replace_key("root", old, other.public_key)))
    return world.assign(TWO, generation)


@attack("untrusted", "signed by 1/2 keys")
def a_root_is_signed_by_fewer_than_its_threshold(world: SignedWorld, generation: int) -> Assignment:
    def widen(root: Root) -> None:
        root.add_key(generate_key().public_key, "root")
        root.roles["root"].threshold = 2

    serve_root(world, world.image.next_root(widen))
    return world.assign(TWO, generation)


@attack("untrusted", "signed by 0/1 keys")
def a_listing_is_signed_by_a_key_that_was_replaced(
    world: SignedWorld, generation: int
) -> Assignment:
    """As after the rotation of a stolen publisher key."""
    image = world.image
    listing = parse(Targets, image.roles["acme"], "acme").signed
    listing.version += 1
    image.keep({"acme": sign(listing, [generate_key()])})
    resign(world)
    return world.assign(TWO, generation)


# -- too much, too little, too old


@attack("untrusted", "maximum is 16384")
def metadata_never_ends(world: SignedWorld, generation: int) -> Assignment:
    world.image.store["timestamp.json"] = b" " * (1 << 20)
    return world.assign(TWO, generation)


@attack("untrusted", "has more than")
def a_manifest_never_ends(world: SignedWorld, generation: int) -> Assignment:
    assignment = world.assign(TWO, generation)
    world.server.chunks[bytes.fromhex(assignment.manifest_sha256)] = bytes(3 * MAX_MANIFEST_BYTES)
    return assignment


@attack("manifest_missing", "no chunk")
def a_manifest_is_withheld(world: SignedWorld, generation: int) -> Assignment:
    assignment = world.assign(TWO, generation)
    del world.server.chunks[bytes.fromhex(assignment.manifest_sha256)]
    return assignment


@attack("untrusted", "below the publisher's min_release 2")
def a_release_below_the_floor_is_assigned(world: SignedWorld, generation: int) -> Assignment:
    image = world.image
    edit = raise_floor("acme", target_path(TWO))
    listing = next_version(
        Targets,
        image.roles["acme"],
        "acme",
        [image.publishers["acme"]],
        now=image.now,
        edit=edit,
    )
    image.update(Update(delegated={"acme": listing}))
    return world.assign(ONE, generation)


@attack("untrusted", "acme does not list")
def a_delisted_release_is_assigned(world: SignedWorld, generation: int) -> Assignment:
    world.image.delist(ONE)
    return world.assign(ONE, generation)


@attack("untrusted", "for the hardware classes")
def a_release_for_other_hardware_is_assigned(world: SignedWorld, generation: int) -> Assignment:
    image = world.image
    listing = parse(Targets, image.roles["acme"], "acme").signed
    target = listing.targets[target_path(TWO)]
    target.unrecognized_fields["custom"] = {**target.custom, "hardware_classes": ["f" * 12]}
    listing.version += 1
    image.keep({"acme": sign(listing, [image.publishers["acme"]])})
    resign(world)
    return world.assign(TWO, generation)


# -- the tests


@pytest.mark.parametrize("cache", ["whole", "zeroed"])
@pytest.mark.parametrize("name", ATTACKS)
async def test_an_attack_is_refused_whatever_is_left_of_the_cache(
    world: SignedWorld, name: str, cache: str
) -> None:
    make, reason, words = ATTACKS[name]
    box = Box(world)
    try:
        for version in ("1", "2"):
            assert await box.verify(world.publish(version)) == ("", "")
        assignment = make(world, 3)
        if cache == "zeroed":
            zero_cache(world.data_dir)
        got, said = await box.verify(assignment)
        assert got == reason, said
        assert re.search(words, said), said
    finally:
        box.journal.close()


@pytest.mark.parametrize("cache", ["whole", "zeroed"])
async def test_a_revoked_publisher_does_not_come_back_with_older_targets(
    world: SignedWorld, cache: str
) -> None:
    """Replayed with the snapshot and timestamp keys, which a stolen control plane has."""
    box = Box(world)
    image = world.image
    assert await box.verify(world.publish("1")) == ("", "")
    before = dict(image.roles)
    targets = next_version(
        Targets,
        image.roles["targets"],
        "targets",
        [image.targets],
        now=image.now,
        edit=remove_publisher("acme"),
    )
    image.update(Update(targets=targets))
    assert (await box.verify(world.assign(ONE, 2)))[0] == "untrusted"
    if cache == "zeroed":
        zero_cache(world.data_dir)
    image.roles["targets"], image.roles["acme"] = before["targets"], before["acme"]
    resign(world)
    got, said = await box.verify(world.assign(ONE, 3))
    assert got == "untrusted"
    assert re.search(r"fell back|Expected targets", said), said
    box.journal.close()


async def test_an_older_assignment_that_is_replayed_whole_is_not_even_taken_on(
    world: SignedWorld,
) -> None:
    first = world.publish("1")
    async with Box(world) as box:
        assert (await box.do(first)).outcome == State.COMMITTED
        assert (await box.do(world.publish("2"))).outcome == State.COMMITTED
        box.engine.assign(first)
        # Nor would it be believed under a later number, its signature being of the older one.
        assert (await box.verify(first))[0] == "untrusted"
        later = msgspec.structs.replace(first, generation=9)
        assert (await box.do(later)).reason == "untrusted"
        assert box.serves == TWO


async def test_a_stolen_director_key_is_worth_nothing_once_it_was_replaced(
    world: SignedWorld,
) -> None:
    async with Box(world) as box:
        await box.do(world.publish("1"))
        stolen = world.director
        world.replace_director_key()
        assert (await box.do(world.publish("2"))).outcome == State.COMMITTED
        world.director = stolen
        for generation, roots in enumerate((world.director_roots, ()), start=3):
            world.director_roots = roots
            receipt = await box.do(world.assign(ONE, generation))
            assert (receipt.outcome, receipt.reason) == (State.REJECTED, "untrusted")
            assert box.serves == TWO


async def test_a_new_director_root_is_followed_with_no_new_assignment(world: SignedWorld) -> None:
    async with Box(world) as box:
        await box.do(world.publish("1"))
        assert isinstance(box.steps.verifier, StreamedVerifier)
        stolen = world.director
        world.replace_director_key()
        again = world.assign(ONE, 1)
        for _ in range(2):
            await box.steps.verifier.follow_roots(again)
        world.director, world.director_roots = stolen, ()
        assert (await box.verify(world.assign(ONE, 2)))[0] == "untrusted"


async def test_no_attack_touches_what_runs(world: SignedWorld) -> None:
    async with Box(world) as box:
        assert (await box.do(world.publish("1"))).outcome == State.COMMITTED
        assert await box.verify(world.publish("2")) == ("", "")
        assert box.serving.deployment is not None
        worker = box.serving.deployment.workers["chat"].pid
        files = box.files()
        before = Memory.of(world, box)
        for generation, (name, (make, reason, _)) in enumerate(ATTACKS.items(), start=10):
            receipt = await box.do(make(world, generation))
            # To run what runs already is no news: it is not even looked up.
            unchanged = (receipt.release, receipt.outcome) == (ONE, State.COMMITTED)
            assert unchanged or (receipt.outcome, receipt.reason) == (State.REJECTED, reason), name
            assert box.serves == ONE, name
            assert box.serving.deployment.workers["chat"].pid == worker, name
            assert box.files() == files, name
            before.restore(world, box)
        assert (await box.do(world.assign(TWO, 100))).outcome == State.COMMITTED
        assert box.serves == TWO


async def test_a_release_of_which_a_part_is_missing_is_refused_whole(world: SignedWorld) -> None:
    async with Box(world) as box:
        await box.do(world.publish("1"))
        before = set(world.server.chunks)
        second = world.publish("2")
        for digest in set(world.server.chunks) - before - {bytes.fromhex(second.manifest_sha256)}:
            del world.server.chunks[digest]
        receipt = await box.do(second)
        assert (receipt.outcome, receipt.reason) == (State.REJECTED, "chunk_missing")
        assert box.serves == ONE
        assert box.pointers == ("", ONE, "")


async def test_what_runs_keeps_running_long_after_everything_has_expired(
    world: SignedWorld,
) -> None:
    async with Box(world) as box:
        await box.do(world.publish("1"))
    world.publish("2")
    world.image.pass_time(timedelta(days=4000))
    async with Box(world) as box:
        receipt = await box.do(world.assign(TWO, 2))
        assert (receipt.outcome, receipt.reason) == (State.REJECTED, "metadata_expired")
        assert box.serves == ONE


async def test_metadata_that_trickles_is_given_up_and_asked_for_again(
    world: SignedWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_metadata, "_FETCH_SECONDS", 0.05)
    box = Box(world)
    assignment = world.publish("1")

    async def never(name: str) -> bytes | None:
        await asyncio.Event().wait()

    monkeypatch.setattr(world, "metadata", never)
    with pytest.raises(SourceUnavailableError, match="did not arrive within"):
        await box.steps.verifier.resolve(ONE)
    monkeypatch.undo()
    assert await box.verify(assignment) == ("", "")
    box.journal.close()


MANIFEST_WORLD: list[bytes] = []


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.data())
def test_any_byte_flip_in_a_manifest_is_detected(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    if not MANIFEST_WORLD:
        world = World(tmp_path_factory.mktemp("published"))
        assignment = world.publish("1")
        MANIFEST_WORLD.append(world.server.chunks[bytes.fromhex(assignment.manifest_sha256)])
    manifest = MANIFEST_WORLD[0]
    signed = VerifiedRelease(ONE, len(manifest), hashlib.sha256(manifest).hexdigest(), 1, 0, {})
    check_manifest(signed, manifest)
    altered = bytearray(manifest)
    altered[data.draw(st.integers(0, len(manifest) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ArtifactError):
        check_manifest(signed, bytes(altered))
