"""A device accepts only the releases that their publisher lists now."""

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from image_world import FIRST_VERSION, START, World, manifest
from tuf.api.metadata import Root, TargetFile, Targets

from artifact.errors import ExpiredMetadataError, InvalidManifestError, UntrustedError
from artifact.manifest import target_path
from artifact.trust.image import sign
from artifact.trust.keys import generate_key
from artifact.trust.metadata import MAX_METADATA_BYTES, parse
from artifact.trust.repository import make_snapshot_timestamp, refresh
from artifact.trust.statements import Authorities, VerifiedRelease, check_manifest
from artifact.trust.verify import ImageVerifier

CHAT = "acme/chat@1"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "image"


def force(world: World, role: str, edit: Callable[[Targets], None], *signers: object) -> None:
    """Publish metadata signed by ``signers`` without the server's checks."""
    targets = parse(Targets, world.roles[role], role).signed
    edit(targets)
    targets.version += 1
    world.keep({role: sign(targets, signers)})
    world.keep(make_snapshot_timestamp(world.roles, world.online, now=world.now))


def test_a_listed_release_is_verified_from_the_first_root_on(world: World, cache: Path) -> None:
    data = manifest()
    world.publish(data)

    verified = world.verifier(cache).resolve(CHAT)

    assert check_manifest(verified, data).reference == CHAT
    assert (verified.counter, verified.min_release) == (1, 0)
    online = {"timestamp": FIRST_VERSION + 1, "snapshot": FIRST_VERSION + 1}
    assert verified.versions == {"root": 1, "targets": 1, "acme": 2} | online


def test_a_release_published_later_is_found_by_the_same_verifier(world: World, cache: Path) -> None:
    verifier = world.verifier(cache)
    with pytest.raises(UntrustedError, match="does not list acme/chat@1"):
        verifier.resolve(CHAT)
    world.publish(manifest())
    assert verifier.resolve(CHAT).counter == 1


def test_an_older_release_may_be_chosen_while_it_is_listed(world: World, cache: Path) -> None:
    world.publish(manifest())
    world.publish(manifest(version="2", counter=2))
    verifier = world.verifier(cache)
    assert verifier.resolve("acme/chat@2").counter == 2
    assert verifier.resolve(CHAT).counter == 1


def test_a_delisted_release_is_refused(world: World, cache: Path) -> None:
    world.publish(manifest())
    verifier = world.verifier(cache)
    verifier.resolve(CHAT)
    force(world, "acme", lambda new: new.targets.clear(), world.publishers["acme"])
    with pytest.raises(UntrustedError, match="does not list"):
        verifier.resolve(CHAT)


def test_a_release_below_the_signed_min_release_is_refused(world: World, cache: Path) -> None:
    world.publish(manifest())
    world.publish(manifest(version="2", counter=2), lowest=2)
    verifier = world.verifier(cache)
    assert verifier.resolve("acme/chat@2").min_release == 2
    with pytest.raises(UntrustedError, match="below the publisher's min_release 2"):
        verifier.resolve(CHAT)


def test_an_altered_manifest_is_refused(world: World, cache: Path) -> None:
    data = manifest()
    world.publish(data)
    verified = world.verifier(cache).resolve(CHAT)
    for wrong in (data[:-1], data + b" ", data.replace(b"ab" * 32, b"ac" * 32), manifest("acme/x")):
        with pytest.raises(UntrustedError, match="signed are"):
            check_manifest(verified, wrong)


def test_a_manifest_signed_under_another_name_or_counter_is_refused(
    world: World, cache: Path
) -> None:
    data = manifest("acme/other", counter=3)

    def list_as_chat(targets: Targets) -> None:
        target = TargetFile.from_data(target_path(CHAT), data, ["sha256"])
        target.unrecognized_fields["custom"] = {"counter": 3, "min_release": 0}
        targets.targets[target.path] = target

    force(world, "acme", list_as_chat, world.publishers["acme"])
    with pytest.raises(UntrustedError, match="contains acme/other@1 with 3"):
        check_manifest(world.verifier(cache).resolve(CHAT), data)


@pytest.mark.parametrize(
    "custom",
    [
        None,
        {},
        {"counter": 1},
        {"counter": 0, "min_release": 0},
        {"counter": "1", "min_release": 0},
    ],
)
def test_a_target_that_is_not_described_as_a_release_is_refused(
    world: World, cache: Path, custom: object
) -> None:
    def list_it(targets: Targets) -> None:
        target = TargetFile.from_data(target_path(CHAT), manifest(), ["sha256"])
        if custom is not None:
            target.unrecognized_fields["custom"] = custom
        targets.targets[target.path] = target

    force(world, "acme", list_it, world.publishers["acme"])
    with pytest.raises(UntrustedError, match="not described as a release"):
        world.verifier(cache).resolve(CHAT)


def test_one_publisher_cannot_list_under_anothers_name(world: World, cache: Path) -> None:
    beta = manifest("beta/chat")

    def list_beta(targets: Targets) -> None:
        target = TargetFile.from_data("beta/chat/1.json", beta, ["sha256"])
        target.unrecognized_fields["custom"] = {"counter": 1, "min_release": 0}
        targets.targets[target.path] = target

    force(world, "acme", list_beta, world.publishers["acme"])
    with pytest.raises(UntrustedError, match="beta does not list beta/chat@1"):
        world.verifier(cache).resolve("beta/chat@1")


@pytest.mark.parametrize("role", ["root", "targets", "acme", "snapshot", "timestamp"])
def test_metadata_signed_by_a_stranger_is_refused(world: World, cache: Path, role: str) -> None:
    world.publish(manifest())
    snapshot = f"{FIRST_VERSION + 1}.snapshot.json"
    names = {"timestamp": "timestamp.json", "snapshot": snapshot, "acme": "2.acme.json"}
    name = names.get(role, f"1.{role}.json")
    document = json.loads(world.store[name])
    signed = parse(Targets, world.roles["acme"], "acme").signed
    forged = json.loads(sign(signed, [generate_key()]))["signatures"][0]["sig"]
    document["signatures"][0]["sig"] = forged
    world.store[name] = json.dumps(document).encode()
    with pytest.raises(UntrustedError):
        world.verifier(cache).resolve(CHAT)


def test_a_replayed_older_timestamp_is_refused(world: World, cache: Path) -> None:
    old = world.store["timestamp.json"]
    world.publish(manifest())
    verifier = world.verifier(cache)
    verifier.resolve(CHAT)
    world.store["timestamp.json"] = old
    with pytest.raises(
        UntrustedError, match=f"version {FIRST_VERSION} must be >= {FIRST_VERSION + 1}"
    ):
        verifier.resolve(CHAT)


def test_an_older_snapshot_under_a_new_timestamp_is_refused(world: World, cache: Path) -> None:
    world.publish(manifest())
    newer, older = (f"{FIRST_VERSION + step}.snapshot.json" for step in (1, 0))
    world.store[newer] = world.store[older]
    with pytest.raises(UntrustedError, match="cannot be verified"):
        world.verifier(cache).resolve(CHAT)


def test_an_older_publisher_role_under_a_new_snapshot_is_refused(world: World, cache: Path) -> None:
    world.publish(manifest())
    verifier = world.verifier(cache)
    verifier.resolve(CHAT)
    world.roles["acme"] = world.store["1.acme.json"]
    world.keep(make_snapshot_timestamp(world.roles, world.online, now=world.now))
    with pytest.raises(UntrustedError, match=r"Expected acme\.json version"):
        verifier.resolve(CHAT)


def test_a_cache_zeroed_by_a_power_cut_is_no_obstacle(world: World, cache: Path) -> None:
    world.publish(manifest())
    world.verifier(cache).resolve(CHAT)
    files = [path for path in cache.rglob("*.json") if not path.is_symlink()]
    assert len(files) == 5
    for path in files:
        path.write_bytes(bytes(path.stat().st_size))
    assert world.verifier(cache).resolve(CHAT).counter == 1


@pytest.mark.parametrize(
    ("age", "role"),
    [(timedelta(days=1), "timestamp"), (timedelta(days=365), "root")],
)
def test_expired_metadata_blocks_new_installs(
    world: World, cache: Path, age: timedelta, role: str
) -> None:
    world.publish(manifest())
    verifier = world.verifier(cache)
    world.pass_time(age - timedelta(seconds=1))
    world.keep(refresh(world.roles, world.online, now=world.now) if role == "root" else {})
    verifier.resolve(CHAT)
    world.pass_time(timedelta(seconds=1))
    with pytest.raises(ExpiredMetadataError, match=role) as raised:
        verifier.resolve(CHAT)
    assert "clock" in raised.value.advice


def test_refreshed_metadata_is_accepted_again(world: World, cache: Path) -> None:
    world.publish(manifest())
    verifier = world.verifier(cache)
    world.pass_time(timedelta(days=8))
    with pytest.raises(ExpiredMetadataError):
        verifier.resolve(CHAT)
    world.keep(refresh(world.roles, world.online, now=world.now))
    assert verifier.resolve(CHAT).counter == 1


def test_a_broken_network_is_not_taken_for_an_attack(world: World, cache: Path) -> None:
    def fail(name: str) -> bytes | None:
        raise ConnectionResetError(name)

    verifier = ImageVerifier(cache, world.store["1.root.json"], fail, clock=lambda: START)
    with pytest.raises(ConnectionResetError):
        verifier.resolve(CHAT)


def test_a_server_without_metadata_is_refused(world: World, cache: Path) -> None:
    verifier = ImageVerifier(cache, world.store["1.root.json"], lambda _: None, clock=lambda: START)
    with pytest.raises(UntrustedError, match=r"there is no metadata timestamp\.json"):
        verifier.resolve(CHAT)


def test_endless_metadata_is_refused(world: World, cache: Path) -> None:
    world.publish(manifest())
    world.store["timestamp.json"] = b" " * (1 << 20)
    with pytest.raises(UntrustedError, match="maximum is 16384"):
        world.verifier(cache).resolve(CHAT)


def test_a_publishers_verified_listing_is_what_the_next_version_builds_on(
    world: World, cache: Path
) -> None:
    world.publish(manifest())
    verifier = world.verifier(cache)
    assert verifier.listing("acme") == world.roles["acme"]
    world.publish(manifest(version="2", counter=2))
    assert verifier.listing("acme") == world.roles["acme"]
    assert verifier.listing("beta") == world.roles["beta"]
    for nobody in ("nobody", "root", "targets", "../acme"):
        with pytest.raises(UntrustedError, match="is not a publisher of this repository"):
            verifier.listing(nobody)


def test_what_is_no_reference_is_refused_before_anything_is_fetched(
    world: World, cache: Path
) -> None:
    with pytest.raises(InvalidManifestError):
        world.verifier(cache).resolve("../../etc/passwd")
    assert not cache.exists()


WORLD = World()
WORLD.publish(manifest())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.sampled_from(sorted(WORLD.store)), st.data())
def test_a_flipped_bit_in_metadata_changes_nothing_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    """Signed content cannot change; a flipped bit outside of it may pass."""
    honest = WORLD.verifier(tmp_path_factory.mktemp("honest")).resolve(CHAT)
    altered = bytearray(WORLD.store[name])
    altered[data.draw(st.integers(0, len(altered) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    store = {**WORLD.store, name: bytes(altered)}
    verifier = ImageVerifier(
        tmp_path_factory.mktemp("device"),
        WORLD.store["1.root.json"],
        store.get,
        clock=lambda: START,
    )
    seen: VerifiedRelease | None = None
    try:
        seen = verifier.resolve(CHAT)
    except UntrustedError:
        return
    assert seen == honest


def test_the_verified_roles_are_those_of_the_store(world: World, cache: Path) -> None:
    world.publish(manifest())
    roles = world.verifier(cache).roles()
    assert roles == {
        role: world.roles[role] for role in ("root", "snapshot", "targets", "acme", "beta")
    }


def test_metadata_of_another_type_is_refused(world: World) -> None:
    with pytest.raises(UntrustedError, match="the root metadata is of type targets, not root"):
        parse(Root, world.roles["targets"], "root")


def test_metadata_beyond_its_bound_is_refused_before_it_is_parsed(world: World) -> None:
    padded = world.roles["targets"] + b" " * MAX_METADATA_BYTES
    with pytest.raises(UntrustedError, match="bytes; the maximum is"):
        parse(Targets, padded, "targets")


def test_both_authorities_are_trusted_the_current_one_first() -> None:
    assert Authorities(current=b"new", previous=b"old").bundle == b"newold"
