"""The director addresses one device at a time and cannot install a release alone."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_world import START, Numbers
from securesystemslib.signer import Key, Signer
from tuf.api.metadata import DelegatedRole, Delegations, Root, TargetFile, Targets

from artifact.errors import DisagreementError, ExpiredMetadataError, UntrustedError
from artifact.trust.ceremony import next_version, replace_key
from artifact.trust.director import (
    LIFETIME,
    RENEWED_EVERY,
    DirectorVerifier,
    direct,
    make_director_root,
    next_director_root,
)
from artifact.trust.image import sign
from artifact.trust.keys import generate_key
from artifact.trust.metadata import parse
from artifact.trust.statements import (
    DirectedRelease,
    Directive,
    DirectorMetadata,
    VerifiedRelease,
    check_agreement,
    check_directive,
)

DEVICE = "device-a"
CHAT = DirectedRelease("acme/chat@1", 100, "ab" * 32, 1)
CLASS = "0123456789ab"


@dataclass
class Director:
    root: Signer = field(default_factory=generate_key)
    online: Signer = field(default_factory=generate_key)
    now: datetime = START

    def says(
        self, release: DirectedRelease | None = CHAT, *, generation: int = 1, device: str = DEVICE
    ) -> DirectorMetadata:
        directive = Directive(device, generation, release)
        return direct(directive, self.online, assigned_at=START, now=self.now)

    def verifier(self, floors: Numbers | None = None) -> DirectorVerifier:
        root = make_director_root(self.root, self.online, now=START)
        floors = floors or Numbers()
        return DirectorVerifier(root, DEVICE, clock=lambda: self.now, floors=floors)

    def edited(self, edit: Callable[[Targets], None]) -> DirectorMetadata:
        """Sign edited metadata with the director's key."""
        honest = self.says()
        targets = parse(Targets, honest.targets, "targets").signed
        edit(targets)
        return replace(honest, targets=sign(targets, [self.online]))


@pytest.fixture
def director() -> Director:
    return Director()


@pytest.fixture
def verifier(director: Director) -> DirectorVerifier:
    return director.verifier()


def test_a_device_learns_what_to_run(director: Director, verifier: DirectorVerifier) -> None:
    assert verifier.directive(director.says()) == Directive(DEVICE, 1, CHAT)
    newer = replace(CHAT, reference="acme/chat@2", counter=2)
    assert verifier.directive(director.says(newer, generation=2)).release == newer


def test_nothing_is_a_wish_too(director: Director, verifier: DirectorVerifier) -> None:
    assert verifier.directive(director.says(None)) == Directive(DEVICE, 1, None)


def test_every_replica_signs_the_same_bytes(director: Director) -> None:
    first = director.says()
    director.now += RENEWED_EVERY - timedelta(seconds=1)
    assert director.says() == first
    director.now += timedelta(seconds=1)
    assert director.says() != first


def test_an_assignment_is_renewed_until_it_is_replaced(
    director: Director, verifier: DirectorVerifier
) -> None:
    verifier.directive(director.says())
    director.now += timedelta(days=400)
    assert verifier.directive(director.says()).generation == 1
    assert verifier.directive(director.says(generation=2)).generation == 2


def test_an_old_assignment_expires(director: Director, verifier: DirectorVerifier) -> None:
    old = director.says()
    director.now += LIFETIME
    with pytest.raises(ExpiredMetadataError):
        verifier.directive(old)


def test_another_devices_assignment_is_refused(
    director: Director, verifier: DirectorVerifier
) -> None:
    with pytest.raises(DisagreementError, match="for the device 'device-b'; this is device-a"):
        verifier.directive(director.says(device="device-b"))


def test_an_earlier_assignment_is_refused_after_a_restart(director: Director) -> None:
    floors = Numbers()
    old = director.says(generation=1)
    director.verifier(floors).directive(director.says(generation=2))
    with pytest.raises(UntrustedError, match="director/timestamp metadata fell back"):
        director.verifier(floors).directive(old)


@pytest.mark.parametrize("name", ["timestamp", "snapshot", "targets"])
def test_a_strangers_signature_is_refused(
    director: Director, verifier: DirectorVerifier, name: str
) -> None:
    stranger = Director().says()
    mixed = replace(director.says(), **{name: getattr(stranger, name)})
    with pytest.raises(UntrustedError):
        verifier.directive(mixed)


def test_old_and_new_files_do_not_mix(director: Director, verifier: DirectorVerifier) -> None:
    old, new = director.says(generation=1), director.says(generation=2)
    with pytest.raises(UntrustedError):
        verifier.directive(replace(new, targets=old.targets))
    with pytest.raises(UntrustedError):
        verifier.directive(replace(new, snapshot=old.snapshot))


def add_release(targets: Targets) -> None:
    targets.targets["acme/b/1.json"] = TargetFile(1, {"sha256": "cd" * 32}, "acme/b/1.json")


def delegate(targets: Targets) -> None:
    key = generate_key().public_key
    role = DelegatedRole("acme", [key.keyid], 1, terminating=True, paths=["acme/*/*"])
    targets.delegations = Delegations({key.keyid: key}, {"acme": role})


@pytest.mark.parametrize("edit", [add_release, delegate])
def test_a_director_that_wants_more_than_one_release_is_refused(
    director: Director, verifier: DirectorVerifier, edit: Callable[[Targets], None]
) -> None:
    with pytest.raises(UntrustedError, match="targets delegate, or list several"):
        verifier.directive(director.edited(edit))


@pytest.mark.parametrize(
    "custom", [None, {}, {"device_id": DEVICE}, {"device_id": 1, "generation": 1}, "text", []]
)
def test_a_director_that_names_no_device_is_refused(
    director: Director, verifier: DirectorVerifier, custom: object
) -> None:
    def rename(targets: Targets) -> None:
        targets.unrecognized_fields["custom"] = custom

    with pytest.raises(UntrustedError, match="targets cannot be read"):
        verifier.directive(director.edited(rename))


@pytest.mark.parametrize("damaged", [b"", b"{}", b"[]", b"null", b"\xff", b"[" * 100_000])
def test_what_is_no_metadata_is_refused(
    director: Director, verifier: DirectorVerifier, damaged: bytes
) -> None:
    for name in ("timestamp", "snapshot", "targets"):
        with pytest.raises(UntrustedError):
            verifier.directive(replace(director.says(), **{name: damaged}))


DIRECTOR = Director()
HONEST = DIRECTOR.says()


@given(st.sampled_from(["timestamp", "snapshot", "targets"]), st.data())
def test_a_flipped_bit_changes_nothing_or_is_refused(name: str, data: st.DataObject) -> None:
    altered = bytearray(getattr(HONEST, name))
    altered[data.draw(st.integers(0, len(altered) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    verifier = DIRECTOR.verifier()
    try:
        seen = verifier.directive(replace(HONEST, **{name: bytes(altered)}))
    except UntrustedError:
        return
    assert seen == Directive(DEVICE, 1, CHAT)


def verified(**changes: object) -> VerifiedRelease:
    signed = VerifiedRelease(CHAT.reference, CHAT.length, CHAT.sha256, CHAT.counter, 0, {})
    return replace(signed, **changes)  # type: ignore[arg-type]


def test_both_saying_the_same_is_agreement() -> None:
    directive = Directive(DEVICE, 1, CHAT)
    check_directive(directive, 1, CHAT.reference)
    check_agreement(directive, verified(), CLASS)
    check_agreement(directive, verified(hardware_classes=("f" * 12, CLASS)), CLASS)
    check_directive(Directive(DEVICE, 1, None), 1, "")


@pytest.mark.parametrize(
    "changes",
    [{"reference": "acme/chat@2"}, {"length": 101}, {"sha256": "ac" * 32}, {"counter": 2}],
)
def test_any_difference_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(DisagreementError, match="the publisher signed"):
        check_agreement(Directive(DEVICE, 1, CHAT), verified(**changes), CLASS)


def test_nothing_agrees_with_no_release() -> None:
    with pytest.raises(DisagreementError, match="the director assigns None"):
        check_agreement(Directive(DEVICE, 1, None), verified(), CLASS)


def test_a_release_for_other_hardware_is_refused() -> None:
    with pytest.raises(
        DisagreementError, match="for the hardware classes ffffffffffff; this is 01"
    ):
        check_agreement(Directive(DEVICE, 1, CHAT), verified(hardware_classes=("f" * 12,)), CLASS)


@pytest.mark.parametrize(
    ("generation", "reference"), [(2, CHAT.reference), (1, "acme/chat@2"), (1, "")]
)
def test_an_assignment_that_its_metadata_does_not_bear_out_is_refused(
    generation: int, reference: str
) -> None:
    with pytest.raises(DisagreementError, match="its signed metadata names 1 and 'acme/chat@1'"):
        check_directive(Directive(DEVICE, 1, CHAT), generation, reference)


class Rotated(Director):
    """A director whose keys were replaced: its roots and its present signers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = make_director_root(self.root, self.online, now=START)
        self.roots: tuple[bytes, ...] = ()

    def verifier(self, floors: Numbers | None = None) -> DirectorVerifier:
        floors = floors or Numbers()
        return DirectorVerifier(self.first, DEVICE, clock=lambda: self.now, floors=floors)

    def says(
        self, release: DirectedRelease | None = CHAT, *, generation: int = 1, device: str = DEVICE
    ) -> DirectorMetadata:
        return replace(
            super().says(release, generation=generation, device=device), roots=self.roots
        )

    def replace_online(self) -> None:
        self.online = generate_key()
        self._follow(self.root, online=self.online.public_key)

    def replace_root(self) -> None:
        old, self.root = self.root, generate_key()
        self._follow(old, successor=self.root)

    def _follow(
        self, root: Signer, *, successor: Signer | None = None, online: Key | None = None
    ) -> None:
        current = self.roots[-1] if self.roots else self.first
        following = next_director_root(current, root, now=START, successor=successor, online=online)
        self.roots = (*self.roots, following)


def test_a_device_that_missed_several_rotations_catches_up_at_once() -> None:
    director, floors = Rotated(), Numbers()
    seen = director.verifier(floors)
    seen.directive(director.says())
    for change in (director.replace_online, director.replace_root, director.replace_online):
        change()
    assert seen.directive(director.says()).generation == 1
    # After a restart the device starts from its pinned first root.
    assert director.verifier(floors).directive(director.says(generation=2)).generation == 2


def test_a_key_that_was_replaced_signs_nothing_more_for_who_has_followed() -> None:
    director, floors = Rotated(), Numbers()
    stolen = director.online
    director.replace_online()
    director.verifier(floors).directive(director.says())
    forged = direct(Directive(DEVICE, 9, CHAT), stolen, assigned_at=START, now=START)
    # The current chain is accepted; the previous one is below the floor.
    for roots in (director.roots, ()):
        with pytest.raises(UntrustedError):
            director.verifier(floors).directive(replace(forged, roots=roots))


def test_a_root_that_one_side_alone_has_signed_is_not_followed() -> None:
    director, thief = Rotated(), generate_key()
    edit = replace_key(Root.type, director.root.public_key.keyid, thief.public_key)
    for signer in (director.root, thief):
        following = next_version(Root, director.first, Root.type, [signer], now=START, edit=edit)
        forged = replace(director.says(generation=9), roots=(following,))
        with pytest.raises(UntrustedError, match="was signed by 0/1"):
            director.verifier().directive(forged)


def test_a_gap_in_the_chain_of_roots_is_refused() -> None:
    director = Rotated()
    director.replace_online()
    director.replace_online()
    for roots in (director.roots[:1], director.roots[1:], director.roots[::-1]):
        with pytest.raises(UntrustedError):
            director.verifier().directive(replace(director.says(), roots=roots))
