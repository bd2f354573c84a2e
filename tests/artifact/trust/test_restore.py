"""A restored server takes back exactly the metadata that its key holders have signed before."""

import copy
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest
from image_world import FIRST_VERSION, World, manifest
from tuf.api.metadata import Root, Targets

from artifact.errors import UntrustedError
from artifact.trust.image import sign
from artifact.trust.keys import generate_key
from artifact.trust.metadata import parse, version_of
from artifact.trust.restore import LostMetadata, Restored, accept_lost, listings
from artifact.trust.update import Update


@pytest.fixture
def lost(world: World) -> LostMetadata:
    """The folder's metadata after two roots, new targets and two releases; the world forgets it."""
    before = copy.deepcopy((world.roles, world.store, world.online))
    roots = []
    for _ in range(2):
        world.update(Update(root=world.next_root(lambda _: None)))
        roots.append(world.roles["root"])
    targets = parse(Targets, world.roles["targets"], "targets").signed
    targets.version += 1
    world.update(Update(targets=sign(targets, [world.targets])))
    for counter in (1, 2):
        world.publish(manifest(version=str(counter), counter=counter))
    found = LostMetadata(roots, world.roles["targets"], {"acme": world.roles["acme"]})
    world.roles, world.store, world.online = before
    return found


def accept(world: World, lost: LostMetadata) -> Restored:
    return accept_lost(world.roles, lost, lambda _: world.online, now=world.now)


def test_everything_newer_comes_back_and_is_signed_online_above_it(
    world: World, lost: LostMetadata
) -> None:
    world.pass_time(timedelta(hours=1))
    restored = accept(world, lost)
    assert restored.restored == ["root", "acme", "targets"]
    assert list(restored.roots) == list(lost.roots)
    assert version_of("snapshot", restored.changed["snapshot"]) == FIRST_VERSION + 3600
    world.keep({"root": restored.roots[0]})
    world.keep({"root": restored.roots[1], **restored.changed})
    assert [release.path for release in listings(world.roles)] == [
        "acme/chat/1.json",
        "acme/chat/2.json",
    ]
    assert accept(world, lost) == Restored((), {})


def test_expired_metadata_comes_back_too(world: World, lost: LostMetadata) -> None:
    world.pass_time(timedelta(days=400))
    assert accept(world, lost).restored == ["root", "acme", "targets"]


def forged(world: World, lost: LostMetadata) -> LostMetadata:
    listing = parse(Targets, lost.delegated["acme"], "acme").signed
    return replace(lost, delegated={"acme": sign(listing, [generate_key()])})


def changed(world: World, lost: LostMetadata) -> LostMetadata:
    world.publish(manifest(description="another"))
    return lost


def gap(world: World, lost: LostMetadata) -> LostMetadata:
    return replace(lost, roots=lost.roots[1:])


def foreign_root(world: World, lost: LostMetadata) -> LostMetadata:
    root = parse(Root, lost.roots[0], "root").signed
    return replace(lost, roots=[sign(root, [generate_key()])])


def foreign_targets(world: World, lost: LostMetadata) -> LostMetadata:
    targets = parse(Targets, lost.targets or b"", "targets").signed
    return replace(lost, targets=sign(targets, [generate_key()]))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (forged, "acme metadata is not signed"),
        (changed, "acme changes acme/chat/1.json, which is published already"),
        (gap, "root version 2 is missing before 3"),
        (foreign_root, "root metadata is not signed"),
        (foreign_targets, "targets metadata is not signed"),
    ],
)
def test_metadata_that_breaks_a_rule_is_refused(
    world: World,
    lost: LostMetadata,
    spoil: Callable[[World, LostMetadata], LostMetadata],
    words: str,
) -> None:
    with pytest.raises(UntrustedError, match=words):
        accept(world, spoil(world, lost))


def test_a_publisher_that_was_removed_stays_removed(world: World, lost: LostMetadata) -> None:
    unnamed = replace(lost, delegated={**lost.delegated, "gone": b"{}"})
    assert "gone" not in accept(world, unnamed).changed
