"""The server accepts only metadata and releases that devices would accept."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from image_world import FIRST_VERSION, START, World, manifest
from msgspec.structs import replace
from securesystemslib.signer import SSlibKey
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from artifact.errors import ExpiredMetadataError, InvalidManifestError, UntrustedError
from artifact.manifest import (
    CompletionCheck,
    Lineage,
    Probation,
    Relation,
    Release,
    Task,
    decode_release,
    encode_release,
    target_path,
)
from artifact.trust.image import (
    OnlineKeys,
    add_release,
    initial_publisher,
    initial_root,
    initial_targets,
    sign,
)
from artifact.trust.keys import generate_key, generate_online_key, load_online_key
from artifact.trust.metadata import file_name, parse, version_of
from artifact.trust.repository import OnlineSigners, accept_release, initialise, refresh

Edit = Callable[[Targets], object]


def accept(world: World, targets: bytes, data: bytes) -> dict[str, bytes]:
    return dict(accept_release(world.roles, targets, data, world.online, now=world.now).changed)


def edited(world: World, data: bytes, edit: Edit) -> bytes:
    """Return metadata that lists the manifest, edited and then signed by its publisher."""
    targets = parse(Targets, world.signed(data), "acme").signed
    edit(targets)
    return sign(targets, [world.publishers["acme"]])


def test_publishing_changes_the_publishers_role_snapshot_and_timestamp(world: World) -> None:
    data = manifest()
    accepted = accept_release(world.roles, world.signed(data), data, world.online, now=world.now)

    assert {file_name(role, data) for role, data in accepted.changed.items()} == {
        "2.acme.json",
        f"{FIRST_VERSION + 1}.snapshot.json",
        "timestamp.json",
    }
    assert accepted.release.reference == "acme/chat@1"
    assert accepted.listed.counter == 1


def test_publishing_the_same_again_changes_nothing(world: World) -> None:
    data = manifest()
    targets = world.signed(data)
    world.keep(accept(world, targets, data))
    assert accept(world, targets, data) == {}


def test_of_two_publications_at_once_one_is_refused(world: World) -> None:
    first, second = manifest(version="1"), manifest(version="2", counter=2)
    one, other = world.signed(first), world.signed(second)
    world.keep(accept(world, one, first))
    with pytest.raises(UntrustedError, match="version 2, the current one is 2") as raised:
        accept(world, other, second)
    assert "again" in raised.value.advice


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda t: setattr(t, "version", 3), "version 3, the current one is 1"),
        (lambda t: setattr(t, "expires", START), "expired at"),
        (lambda t: t.targets.clear(), r"does not list acme/chat/1\.json"),
        (lambda t: setattr(t, "delegations", Delegations({}, {})), "has delegations"),
        (lambda t: custom(t).update(counter=2), "signed with the counter 2; its manifest has 1"),
        (lambda t: custom(t).update(min_release=2), "min_release 2 .* outside 0 to 1"),
        (lambda t: custom(t).update(more=1), "not described as a release"),
        (lambda t: add(t, "beta/chat/1.json"), "not one of its paths"),
        (lambda t: add(t, "acme/chat.json"), "not one of its paths"),
        (lambda t: add(t, "acme/other/1.json"), "manifest was not sent"),
    ],
)
def test_metadata_that_breaks_a_rule_is_refused(world: World, edit: Edit, reason: str) -> None:
    data = manifest()
    with pytest.raises(UntrustedError, match=reason) as raised:
        accept(world, edited(world, data, edit), data)
    assert raised.value.advice


def refuse_to_publish(world: World, release: Release, reason: str) -> None:
    """Check that both the publishing side and the server refuse the release."""
    data = encode_release(release)
    with pytest.raises(InvalidManifestError, match=reason):
        world.signed(data)

    def list_it(targets: Targets) -> None:
        target = targets.targets["acme/chat/1.json"]
        listed = TargetFile.from_data(target.path, data, ["sha256"])
        listed.unrecognized_fields["custom"] = target.custom
        targets.targets[target.path] = listed

    with pytest.raises(InvalidManifestError, match=reason):
        accept(world, edited(world, manifest(), list_it), data)


def test_nothing_is_published_of_a_model_that_comes_from_itself(world: World) -> None:
    sound = decode_release(manifest())
    model = sound.components[0].model
    itself = Lineage(relation=Relation.FINETUNE, name=model.name, version=model.version)
    component = replace(sound.components[0], model=replace(model, lineage=itself))
    refuse_to_publish(world, replace(sound, components=(component,)), "comes from itself")


def test_nothing_is_published_with_a_check_of_another_task(world: World) -> None:
    sound = decode_release(manifest())
    model = replace(sound.components[0].model, task=Task.EMBEDDING)
    check = CompletionCheck(name="greets", slot="chat", prompt="hi")
    changed = replace(
        sound,
        components=(replace(sound.components[0], model=model),),
        probation=Probation(checks=(check,)),
    )
    refuse_to_publish(world, changed, "check 'greets' is for slot 'chat'")


def custom(targets: Targets) -> dict[str, Any]:
    value: dict[str, Any] = targets.targets["acme/chat/1.json"].custom
    return value


def add(targets: Targets, path: str) -> None:
    target = TargetFile.from_data(path, b"x", ["sha256"])
    target.unrecognized_fields["custom"] = {"counter": 1, "min_release": 0}
    targets.targets[path] = target


def test_another_manifest_than_the_signed_one_is_refused(world: World) -> None:
    targets = world.signed(manifest())
    other = manifest().replace(b"ab" * 32, b"ac" * 32)
    with pytest.raises(UntrustedError, match="not the one that acme signed"):
        accept(world, targets, other)
    with pytest.raises(InvalidManifestError):
        accept(world, targets, manifest()[:-1])


def test_a_published_release_never_changes(world: World) -> None:
    world.publish(manifest())
    data = manifest(version="2", counter=2)

    def swap(targets: Targets) -> None:
        targets.targets["acme/chat/1.json"].hashes = {"sha256": "00" * 32}

    with pytest.raises(UntrustedError, match=r"changes acme/chat/1\.json"):
        accept(world, edited(world, data, swap), data)


def test_a_release_may_be_delisted_while_another_is_added(world: World) -> None:
    world.publish(manifest())
    data = manifest(version="2", counter=2)
    targets = edited(world, data, lambda new: new.targets.pop("acme/chat/1.json"))
    world.keep(accept(world, targets, data))
    listed = parse(Targets, world.roles["acme"], "acme").signed.targets
    assert list(listed) == ["acme/chat/2.json"]


def test_counters_only_rise(world: World) -> None:
    world.publish(manifest(counter=5))
    for counter in (4, 5):
        data = manifest(version="2", counter=counter)
        with pytest.raises(UntrustedError, match="an earlier release of acme/chat has reached"):
            world.signed(data)
    # Counters of another name are independent.
    world.publish(manifest("acme/embed", counter=1))


def test_min_release_never_falls(world: World) -> None:
    world.publish(manifest(), lowest=1)
    data = manifest(version="2", counter=2)
    with pytest.raises(UntrustedError, match=r"min_release 0 .* outside 1 to 2"):
        world.signed(data, lowest=0)
    with pytest.raises(UntrustedError, match=r"min_release 3 .* outside 1 to 2"):
        world.signed(data, lowest=3)
    world.publish(data)
    assert parse(Targets, world.roles["acme"], "acme").signed.targets[
        target_path("acme/chat@2")
    ].custom == {"counter": 2, "min_release": 1}


def test_min_release_is_one_number_for_all_releases_of_a_name(world: World) -> None:
    world.publish(manifest(), lowest=0)
    data = manifest(version="2", counter=2)
    with pytest.raises(UntrustedError, match="has min_release 0; another release"):
        accept(world, edited(world, data, raise_only_the_new), data)


def raise_only_the_new(targets: Targets) -> None:
    targets.targets["acme/chat/2.json"].custom["min_release"] = 1


def test_one_publisher_cannot_publish_as_another(world: World) -> None:
    data = manifest("beta/chat")
    forged = add_release(world.roles["beta"], data, world.publishers["acme"], now=world.now)
    with pytest.raises(UntrustedError, match="beta metadata is not signed by enough of its keys"):
        accept(world, forged, data)


def test_an_unknown_publisher_is_refused(world: World) -> None:
    for name in ("nobody/chat", "targets/chat"):
        data = manifest(name)
        targets = add_release(
            initial_publisher(generate_key(), now=START), data, generate_key(), now=START
        )
        with pytest.raises(UntrustedError, match="is not a publisher of this repository"):
            accept(world, targets, data)


def test_nothing_is_published_under_expired_targets(world: World) -> None:
    world.pass_time(timedelta(days=366))
    data = manifest()
    with pytest.raises(ExpiredMetadataError, match="targets metadata expired"):
        accept(world, world.signed(data), data)


def test_garbage_is_refused(world: World) -> None:
    data = manifest()
    deep = b'{"signed":' + b"[" * 100_000
    for garbage in (b"", b"{}", b"null", deep, b" " * (3 << 20), world.roles["root"]):
        with pytest.raises(UntrustedError):
            accept(world, garbage, data)


def test_refresh_renews_at_half_life_and_only_then(world: World) -> None:
    assert refresh(world.roles, world.online, now=START + timedelta(hours=12)) == {}

    later = START + timedelta(hours=12, seconds=1)
    assert set(refresh(world.roles, world.online, now=later)) == {"timestamp"}

    much_later = START + timedelta(days=3, hours=13)
    changed = refresh(world.roles, world.online, now=much_later)
    assert {role: version_of(role, data) for role, data in changed.items()} == {
        "snapshot": int(much_later.timestamp()),
        "timestamp": int(much_later.timestamp()),
    }
    snapshot = parse(Snapshot, changed["snapshot"], "snapshot").signed
    timestamp = parse(Timestamp, changed["timestamp"], "timestamp").signed
    assert snapshot.expires == much_later + timedelta(days=7)
    assert timestamp.expires == much_later + timedelta(days=1)


class Founding:
    """The input of ``keys init``, each part of which a test can change."""

    def __init__(self) -> None:
        self.online = OnlineSigners(
            load_online_key(generate_online_key()), load_online_key(generate_online_key())
        )
        self.keys = OnlineKeys(self.online.snapshot.public_key, self.online.timestamp.public_key)
        self.roots = [generate_key(), generate_key()]
        self.targets_signer = generate_key()
        self.publisher = generate_key()
        self.root = self.sign_root(threshold=2)
        self.targets = self.sign_targets(("acme",))
        self.delegated = {"acme": initial_publisher(self.publisher, now=START)}

    def sign_root(self, *, threshold: int) -> bytes:
        return initial_root(
            self.roots,
            threshold=threshold,
            targets_key=self.targets_signer.public_key,
            online=self.keys,
            now=START,
        )

    def sign_targets(self, names: tuple[str, ...]) -> bytes:
        keys = dict.fromkeys(names, self.publisher.public_key)
        return initial_targets(self.targets_signer, keys, now=START)

    def found(self) -> None:
        initialise(self.root, self.targets, self.delegated, self.online, now=START)


@pytest.fixture
def founding() -> Founding:
    return Founding()


def test_a_sound_repository_is_founded(founding: Founding) -> None:
    founding.found()


def test_a_root_under_its_threshold_is_refused(founding: Founding) -> None:
    root = Metadata[Root].from_bytes(founding.root)
    root.signatures.popitem()
    founding.root = root.to_bytes()
    with pytest.raises(UntrustedError, match="root metadata is not signed by enough of its keys"):
        founding.found()


def test_a_root_for_another_servers_keys_is_refused(founding: Founding) -> None:
    founding.online = Founding().online
    with pytest.raises(UntrustedError, match=r"does not name this server's key .* for snapshot"):
        founding.found()


def test_another_key_under_the_id_of_the_servers_is_refused(founding: Founding) -> None:
    right = founding.keys.timestamp
    other = generate_key().public_key
    fake = SSlibKey(right.keyid, other.keytype, other.scheme, other.keyval)
    founding.keys = OnlineKeys(founding.keys.snapshot, fake)
    founding.root = founding.sign_root(threshold=1)
    with pytest.raises(UntrustedError, match=r"does not name this server's key .* for timestamp"):
        founding.found()


def test_a_root_without_consistent_snapshots_is_refused(founding: Founding) -> None:
    root = Metadata[Root].from_bytes(founding.root).signed
    root.consistent_snapshot = False
    founding.root = sign(root, founding.roots)
    with pytest.raises(UntrustedError, match="consistent snapshots"):
        founding.found()


def test_a_repository_starts_with_nothing_listed(founding: Founding) -> None:
    sound = founding.targets, founding.delegated
    targets = Metadata[Targets].from_bytes(founding.targets).signed
    add(targets, "acme/chat/1.json")
    founding.targets = sign(targets, [founding.targets_signer])
    with pytest.raises(UntrustedError, match="targets lists releases itself"):
        founding.found()

    founding.targets, founding.delegated = sound
    own = Metadata[Targets].from_bytes(founding.delegated["acme"]).signed
    add(own, "acme/chat/1.json")
    founding.delegated = {"acme": sign(own, [founding.publisher])}
    with pytest.raises(UntrustedError, match="acme does not start empty"):
        founding.found()


def test_an_offline_role_with_an_online_key_is_refused(founding: Founding) -> None:
    online = founding.online.snapshot
    founding.publisher = online  # type: ignore[assignment]
    founding.targets = founding.sign_targets(("acme",))
    founding.delegated = {"acme": initial_publisher(online, now=START)}
    with pytest.raises(UntrustedError, match="acme accepts a key that this server holds"):
        founding.found()


def test_an_expired_founding_is_refused(founding: Founding) -> None:
    late = START + timedelta(days=366)
    with pytest.raises(ExpiredMetadataError):
        initialise(founding.root, founding.targets, founding.delegated, founding.online, now=late)


@pytest.mark.parametrize("name", ["Acme", "a*", "a/b", "a" * 40, "-a"])
def test_a_publisher_with_an_impossible_name_is_refused(founding: Founding, name: str) -> None:
    founding.targets = founding.sign_targets((name,))
    with pytest.raises(UntrustedError, match="cannot be a publisher's name"):
        founding.found()


def test_a_delegation_wider_than_its_publisher_is_refused(founding: Founding) -> None:
    key = founding.publisher.public_key
    role = DelegatedRole("acme", [key.keyid], 1, terminating=True, paths=["*/*/*"])
    targets = Targets(
        version=1,
        expires=START + timedelta(days=1),
        delegations=Delegations({key.keyid: key}, {"acme": role}),
    )
    founding.targets = sign(targets, [founding.targets_signer])
    with pytest.raises(UntrustedError, match="expected 'acme/\\*/\\*' alone"):
        founding.found()


def test_a_founding_with_a_role_missing_or_too_many_is_refused(founding: Founding) -> None:
    whole = founding.delegated
    for wrong in ({}, {**whole, "beta": whole["acme"]}):
        founding.delegated = wrong
        with pytest.raises(UntrustedError, match="but metadata came for"):
            founding.found()


def test_a_root_threshold_that_cannot_be_met_is_a_mistake(founding: Founding) -> None:
    for threshold in (0, 3):
        with pytest.raises(ValueError, match="does not fit 2 root keys"):
            founding.sign_root(threshold=threshold)


@pytest.mark.parametrize("role", ["root", "targets", "acme"])
def test_a_repository_starts_at_the_first_version(world: World, role: str) -> None:
    kind = Root if role == "root" else Targets
    signer = {"root": world.root, "targets": world.targets, "acme": world.publishers["acme"]}[role]
    later = parse(kind, world.roles[role], role).signed
    later.version = 2
    roles = {**world.roles, role: sign(later, [signer])}
    with pytest.raises(UntrustedError, match=f"{role} starts at version 2, not 1"):
        initialise(
            roles["root"],
            roles["targets"],
            {name: roles[name] for name in world.publishers},
            world.online,
            now=world.now,
        )


def test_a_repository_does_not_start_with_an_expired_root(world: World) -> None:
    root = parse(Root, world.roles["root"], "root").signed
    root.expires = world.now - timedelta(seconds=1)
    with pytest.raises(ExpiredMetadataError):
        initialise(
            sign(root, [world.root]),
            world.roles["targets"],
            {name: world.roles[name] for name in world.publishers},
            world.online,
            now=world.now,
        )
