"""Changes by the offline keys: which are accepted, and which are refused as incomplete."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from image_world import START, World, manifest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Root, Targets

from artifact.errors import ExpiredMetadataError, UntrustedError
from artifact.trust.ceremony import (
    add_signature,
    delist,
    may_sign,
    next_version,
    raise_floor,
    remove_key,
    remove_publisher,
    replace_key,
    set_publisher,
    signatures_missing,
)
from artifact.trust.image import initial_publisher
from artifact.trust.keys import generate_key
from artifact.trust.metadata import parse
from artifact.trust.update import Update, installable

CHAT, CHAT_PATH = "acme/chat@1", "acme/chat/1.json"


def next_targets(
    world: World, edit: Callable[[Targets], None] = lambda _: None, *signers: CryptoSigner
) -> bytes:
    return next_version(
        Targets,
        world.roles["targets"],
        "targets",
        signers or [world.targets],
        now=world.now,
        edit=edit,
    )


def next_listing(
    world: World, edit: Callable[[Targets], None] = lambda _: None, *signers: CryptoSigner
) -> bytes:
    return next_version(
        Targets,
        world.roles["acme"],
        "acme",
        signers or [world.publishers["acme"]],
        now=world.now,
        edit=edit,
    )


def resolves(world: World, tmp_path: Path, reference: str = CHAT) -> bool:
    """Resolve the release as a device that has seen only the first root."""
    cache = tmp_path / f"cache-{len(list(tmp_path.iterdir()))}"
    return world.verifier(cache).resolve(reference).reference == reference


def refuse(world: World, update: Update, match: str) -> None:
    before = dict(world.roles)
    with pytest.raises(UntrustedError, match=match):
        world.update(update)
    assert world.roles == before


def test_offline_metadata_is_renewed_for_another_year(world: World, tmp_path: Path) -> None:
    world.publish(manifest())
    world.pass_time(timedelta(days=364))
    world.update(
        Update(
            root=world.next_root(lambda _: None),
            targets=next_targets(world),
            delegated={"acme": next_listing(world)},
        )
    )
    world.pass_time(timedelta(days=364))
    world.refresh()
    assert resolves(world, tmp_path)


def test_even_what_has_expired_is_renewed(world: World, tmp_path: Path) -> None:
    world.publish(manifest())
    world.pass_time(timedelta(days=500))
    with pytest.raises(ExpiredMetadataError):
        resolves(world, tmp_path)
    world.update(
        Update(
            root=world.next_root(lambda _: None),
            targets=next_targets(world),
            delegated={"acme": next_listing(world)},
        )
    )
    assert resolves(world, tmp_path)


def test_a_root_key_is_replaced(world: World, tmp_path: Path) -> None:
    world.publish(manifest())
    successor = generate_key()
    edit = replace_key("root", world.root.public_key.keyid, successor.public_key)
    world.update(Update(root=world.next_root(edit, successor)))
    world.root = successor
    world.update(Update(root=world.next_root(lambda _: None)))
    assert resolves(world, tmp_path)


def test_a_root_signed_by_one_side_only_is_refused(world: World) -> None:
    successor = generate_key()
    edit = replace_key("root", world.root.public_key.keyid, successor.public_key)
    refuse(world, Update(root=world.next_root(edit)), "root metadata is not signed by enough")
    world.root, old = successor, world.root
    refuse(world, Update(root=world.next_root(edit)), "root metadata is not signed by enough")
    world.root = old
    world.update(Update(root=world.next_root(edit, successor)))


def test_a_root_passes_from_hand_to_hand_until_enough_have_signed(world: World) -> None:
    second, third = generate_key(), generate_key()

    def widen(root: Root) -> None:
        root.add_key(second.public_key, "root")
        root.add_key(third.public_key, "root")
        root.roles["root"].threshold = 2

    first = world.next_root(widen)
    current = world.roles["root"]
    assert signatures_missing(current, first) == 1
    refuse(world, Update(root=first), "not signed by enough of its keys")
    assert third.public_key.keyid in may_sign(current, first)
    whole = add_signature(first, third)
    assert signatures_missing(current, whole) == 0
    world.update(Update(root=whole))


def test_a_root_cannot_lose_more_keys_than_its_threshold_allows(world: World) -> None:
    with pytest.raises(UntrustedError, match="would have 0 keys; its threshold is 1"):
        world.next_root(remove_key("root", world.root.public_key.keyid))
    with pytest.raises(UntrustedError, match="does not sign root"):
        world.next_root(remove_key("root", world.targets.public_key.keyid))


@pytest.mark.parametrize("step", [0, 2])
def test_versions_rise_one_by_one(world: World, step: int) -> None:
    def jump(signed: Root | Targets) -> None:
        signed.version += step - 1

    refuse(world, Update(root=world.next_root(jump)), "expected root version")
    refuse(world, Update(targets=next_targets(world, jump)), "expected targets version")
    refuse(
        world,
        Update(delegated={"acme": next_listing(world, jump)}),
        "expected version [0-9]+ of acme",
    )


def test_a_root_for_another_servers_keys_is_refused(world: World) -> None:
    key = generate_key().public_key
    edit = replace_key("timestamp", world.online.timestamp.public_key.keyid, key)
    refuse(
        world,
        Update(root=world.next_root(edit)),
        "does not name this server's key .* for timestamp",
    )


def test_a_root_that_gives_offline_work_to_an_online_key_is_refused(world: World) -> None:
    edit = replace_key("targets", world.targets.public_key.keyid, world.online.snapshot.public_key)
    refuse(world, Update(root=world.next_root(edit)), "targets accepts a key that")


def test_the_timestamp_key_is_replaced(world: World, tmp_path: Path) -> None:
    world.publish(manifest())
    resolves(world, tmp_path)
    world.replace_timestamp_key()
    world.refresh()
    assert resolves(world, tmp_path)


def test_the_targets_key_is_replaced_with_root_and_targets_at_once(
    world: World, tmp_path: Path
) -> None:
    world.publish(manifest())
    successor = generate_key()
    root = world.next_root(
        replace_key("targets", world.targets.public_key.keyid, successor.public_key)
    )
    refuse(world, Update(root=root), "targets metadata is not signed by enough")
    refuse(world, Update(root=root, targets=next_targets(world)), "not signed by enough")
    world.update(Update(root=root, targets=next_targets(world, lambda _: None, successor)))
    assert resolves(world, tmp_path)


def test_a_publisher_is_added(world: World, tmp_path: Path) -> None:
    signer = generate_key()
    targets = next_targets(world, set_publisher("gamma", signer.public_key))
    refuse(world, Update(targets=targets), "gamma, whose metadata is missing")
    first = initial_publisher(signer, now=START)
    world.update(Update(targets=targets, delegated={"gamma": first}))
    world.publishers["gamma"] = signer
    world.publish(manifest("gamma/chat"), "gamma")
    assert resolves(world, tmp_path, "gamma/chat@1")


def test_a_publishers_key_is_replaced_with_its_listing(world: World, tmp_path: Path) -> None:
    world.publish(manifest())
    successor = generate_key()
    targets = next_targets(world, set_publisher("acme", successor.public_key))
    refuse(world, Update(targets=targets), "acme metadata is not signed by enough")
    listing = next_listing(world, lambda _: None, successor)
    world.update(Update(targets=targets, delegated={"acme": listing}))
    assert resolves(world, tmp_path)
    refuse(world, Update(delegated={"acme": next_listing(world)}), "not signed by enough")


def test_a_removed_publisher_is_believed_no_more_and_may_come_back(
    world: World, tmp_path: Path
) -> None:
    world.publish(manifest())
    assert installable(world.roles) == {CHAT_PATH}
    world.update(Update(targets=next_targets(world, remove_publisher("acme"))))
    assert installable(world.roles) == set()
    with pytest.raises(UntrustedError, match="acme does not list"):
        resolves(world, tmp_path)
    refuse(world, Update(delegated={"acme": next_listing(world)}), "'acme' is not a publisher")

    signer = world.publishers["acme"]
    targets = next_targets(world, set_publisher("acme", signer.public_key))
    world.update(Update(targets=targets, delegated={"acme": next_listing(world)}))
    assert resolves(world, tmp_path)


def test_targets_may_not_list_releases(world: World) -> None:
    def list_one(targets: Targets) -> None:
        listing = Targets.from_dict(
            {
                "_type": "targets",
                "spec_version": "1.0.31",
                "version": 1,
                "expires": "2030-01-01T00:00:00Z",
                "targets": {CHAT_PATH: {"length": 1, "hashes": {"sha256": "ab" * 32}}},
            }
        )
        targets.targets.update(listing.targets)

    refuse(world, Update(targets=next_targets(world, list_one)), "targets lists releases itself")


def test_a_release_is_delisted(world: World) -> None:
    world.publish(manifest())
    edit = delist("acme", [CHAT_PATH])
    world.update(Update(delegated={"acme": next_listing(world, edit)}))
    assert installable(world.roles) == set()
    with pytest.raises(UntrustedError, match="acme does not list"):
        next_listing(world, edit)


def test_the_floor_is_raised_and_never_lowered(world: World) -> None:
    world.publish(manifest())
    world.publish(manifest(version="2", counter=2))
    raised = next_listing(world, raise_floor("acme", "acme/chat/2.json"))
    world.update(Update(delegated={"acme": raised}))
    assert installable(world.roles) == {"acme/chat/2.json"}
    with pytest.raises(
        UntrustedError, match="is below the floor of acme/chat: counter 1, min_release 2"
    ):
        next_listing(world, raise_floor("acme", CHAT_PATH))


def test_a_release_is_not_slipped_in_without_its_manifest(world: World) -> None:
    world.publish(manifest())

    def add(targets: Targets) -> None:
        release = targets.targets[CHAT_PATH]
        twin = type(release).from_data("acme/chat/9.json", b"x", ["sha256"])
        twin.unrecognized_fields["custom"] = {"counter": 9, "min_release": 0}
        targets.targets[twin.path] = twin

    refuse(world, Update(delegated={"acme": next_listing(world, add)}), "was not sent")


def test_a_stranger_changes_nothing(world: World) -> None:
    stranger = generate_key()
    refuse(
        world,
        Update(delegated={"acme": next_listing(world, lambda _: None, stranger)}),
        "not signed by enough",
    )
    refuse(
        world, Update(targets=next_targets(world, lambda _: None, stranger)), "not signed by enough"
    )
    refuse(world, Update(delegated={"nobody": next_listing(world)}), "'nobody' is not a publisher")


def test_a_publisher_that_is_set_again_has_only_its_new_key(world: World) -> None:
    targets = parse(Targets, world.roles["targets"], "targets").signed
    new = generate_key()
    set_publisher("acme", new.public_key)(targets)
    assert targets.delegations is not None
    assert targets.delegations.roles is not None
    assert targets.delegations.roles["acme"].keyids == [new.public_key.keyid]
    assert world.publishers["acme"].public_key.keyid not in targets.delegations.keys
    targets.delegations = None
    with pytest.raises(UntrustedError):
        set_publisher("acme", new.public_key)(targets)


def test_only_a_listed_release_can_be_delisted(world: World) -> None:
    world.publish(manifest())
    listing = parse(Targets, world.roles["acme"], "acme").signed
    with pytest.raises(UntrustedError):
        delist("acme", [CHAT_PATH, "acme/other/1.json"])(listing)


def test_a_publishers_listing_may_not_delegate(world: World) -> None:
    def delegate(listing: Targets) -> None:
        listing.delegations = parse(Targets, world.roles["targets"], "targets").signed.delegations

    update = Update(delegated={"acme": next_listing(world, delegate)})
    refuse(world, update, "the metadata of acme has delegations")


def test_next_targets_may_not_widen_a_delegation(world: World) -> None:
    def widen(targets: Targets) -> None:
        assert targets.delegations is not None
        assert targets.delegations.roles is not None
        targets.delegations.roles["acme"].paths = ["*/*/*"]

    refuse(world, Update(targets=next_targets(world, widen)), "acme")
