"""The written key ceremony, command by command: docs/security.md shows these and no others."""

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest
from built_models import build_model, write_release
from model_service import FakeModelService
from operator_cli import Operator, document, refusal
from tuf.api.metadata import Root, Targets

from artifact.errors import UntrustedError
from artifact.trust.metadata import parse
from artifact.trust.verify import ImageVerifier
from controlplane.cli.exit_codes import ExitCode

RELEASE = "acme/assistant@1"


class Ceremony:
    """A holder of keys at a command line, beside the server that the keys founded."""

    def __init__(self, operator: Operator, service: FakeModelService, tmp_path: Path) -> None:
        self.operator = operator
        self.service = service
        self.tmp_path = tmp_path
        self.keys = ("--dir", str(operator.folder))

    def run(self, *arguments: str) -> dict[str, object]:
        return document(self.operator.run(*arguments, *self.keys, as_json=True))

    def refused(self, *arguments: str) -> str:
        return refusal(self.operator.run(*arguments, *self.keys))

    def publish(self, version: str = "1", name: str = "acme/assistant") -> dict[str, object]:
        folder = self.tmp_path / "release"
        if not folder.exists():
            build_model(folder / "tiny")
        release_file = write_release(folder, name=name, version=version)
        return document(self.operator.publish(release_file, as_json=True))

    def root(self) -> Root:
        return parse(Root, self.service.roles["root"], "root").signed

    def accepts(self, reference: str = RELEASE) -> bool:
        """Whether a device that knows only the first root would install this."""
        verifier = ImageVerifier(
            self.tmp_path / f"device-{len(list(self.tmp_path.iterdir()))}",
            self.service.metadata["1.root.json"],
            self.service.metadata.get,
            clock=lambda: datetime.now(UTC),
        )
        try:
            verifier.resolve(reference)
        except UntrustedError:
            return False
        return True


@pytest.fixture
def ceremony(founded: FakeModelService, operator: Operator, tmp_path: Path) -> Ceremony:
    return Ceremony(operator, founded, tmp_path)


def test_a_publisher_is_added_publishes_and_is_revoked(ceremony: Ceremony) -> None:
    assert ceremony.run("keys", "add-publisher", "gamma")["changed"] == ["targets", "gamma"]
    assert "is a publisher already" in ceremony.refused("keys", "add-publisher", "gamma")
    ceremony.publish(name="gamma/assistant")
    assert ceremony.accepts("gamma/assistant@1")

    ceremony.run("keys", "revoke", "gamma", "--yes")
    assert not ceremony.accepts("gamma/assistant@1")
    # It may come back, but not what it had listed: its key may have been stolen.
    ceremony.run("keys", "add-publisher", "gamma")
    assert not ceremony.accepts("gamma/assistant@1")
    ceremony.publish("2", name="gamma/assistant")
    assert ceremony.accepts("gamma/assistant@2")


@pytest.mark.parametrize("name", ["Acme", "root", "a/b"])
def test_an_impossible_publisher_is_a_misuse(ceremony: Ceremony, name: str) -> None:
    assert ceremony.operator.run("keys", "add-publisher", name, *ceremony.keys).exit_code == 2


@pytest.mark.parametrize(
    ("role", "changed", "file"),
    [
        ("root", ["root"], "root-1.pem"),
        ("targets", ["root", "targets"], "targets.pem"),
        ("acme", ["targets", "acme"], "publisher-acme.pem"),
    ],
)
def test_an_offline_key_is_rotated_and_the_old_one_set_aside(
    ceremony: Ceremony, role: str, changed: list[str], file: str
) -> None:
    ceremony.publish()
    folder = ceremony.operator.folder
    old = (folder / file).read_bytes()

    assert ceremony.run("keys", "rotate", role)["changed"] == changed

    assert (folder / file).read_bytes() != old
    (retired,) = (folder / "retired").iterdir()
    assert retired.read_bytes() == old
    assert not list(folder.glob("*-next.pem"))
    assert ceremony.accepts()
    # The new key is the one that counts.
    ceremony.run("keys", "renew")
    ceremony.publish("2")
    assert ceremony.accepts("acme/assistant@2")


@pytest.mark.parametrize("role", ["snapshot", "timestamp"])
def test_the_servers_own_keys_are_rotated_by_root(ceremony: Ceremony, role: str) -> None:
    ceremony.publish()
    old = ceremony.root().roles[role].keyids
    assert ceremony.run("keys", "rotate", role)["root_version"] == 2
    assert ceremony.root().roles[role].keyids != old
    assert ceremony.accepts()


def test_a_stolen_publisher_key_is_worthless_after_its_rotation(ceremony: Ceremony) -> None:
    stolen = ceremony.tmp_path / "stolen"
    shutil.copytree(ceremony.operator.folder, stolen)
    ceremony.run("keys", "rotate", "acme")
    thief = Ceremony(Operator(ceremony.operator.context, stolen), ceremony.service, stolen)
    folder = thief.tmp_path / "release"
    build_model(folder / "tiny")
    assert "not signed by enough" in refusal(thief.operator.publish(write_release(folder)))


def test_a_rotation_whose_answer_was_lost_is_finished_by_the_next_command(
    ceremony: Ceremony,
) -> None:
    folder = ceremony.operator.folder
    old = (folder / "publisher-acme.pem").read_bytes()
    ceremony.run("keys", "rotate", "acme")
    new = (folder / "publisher-acme.pem").read_bytes()
    (folder / "publisher-acme-next.pem").write_bytes(new)
    (folder / "publisher-acme-next.pem").chmod(0o600)
    (folder / "publisher-acme.pem").write_bytes(old)
    shutil.rmtree(folder / "retired")

    ceremony.run("keys", "renew")
    assert (folder / "publisher-acme.pem").read_bytes() == new
    ceremony.publish()
    assert ceremony.accepts()


def test_renewal_reaches_everything_whose_key_is_at_hand(ceremony: Ceremony) -> None:
    assert ceremony.run("keys", "renew")["changed"] == ["root", "targets", "acme"]
    (ceremony.operator.folder / "root-1.pem").unlink()
    (ceremony.operator.folder / "targets.pem").unlink()
    assert ceremony.run("keys", "renew")["changed"] == ["acme"]
    (ceremony.operator.folder / "publisher-acme.pem").unlink()
    assert "there is no key in" in ceremony.refused("keys", "renew")


def test_what_has_expired_can_still_be_renewed(
    ceremony: Ceremony, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command takes no notice of expiry; the server judges by its own clock."""
    ceremony.publish()
    later = datetime(2099, 1, 1, tzinfo=UTC)
    with pytest.raises(UntrustedError, match="expired"):
        ImageVerifier(
            ceremony.tmp_path / "late",
            ceremony.service.metadata["1.root.json"],
            ceremony.service.metadata.get,
            clock=lambda: later,
        ).resolve(RELEASE)
    before = parse(Targets, ceremony.service.roles["acme"], "acme").signed.expires
    ceremony.run("keys", "renew")
    assert parse(Targets, ceremony.service.roles["acme"], "acme").signed.expires >= before


def test_a_release_is_delisted(ceremony: Ceremony) -> None:
    ceremony.publish("1")
    ceremony.publish("2")
    assert ceremony.run("release", "delist", RELEASE, "--yes")["changed"] == ["acme"]
    assert not ceremony.accepts()
    assert ceremony.accepts("acme/assistant@2")
    assert "does not list" in ceremony.refused("release", "delist", RELEASE)


def test_the_floor_is_raised(ceremony: Ceremony) -> None:
    ceremony.publish("1")
    ceremony.publish("2")
    ceremony.run("release", "floor", "acme/assistant@2", "--yes")
    assert not ceremony.accepts()
    assert ceremony.accepts("acme/assistant@2")
    assert "is below the floor" in ceremony.refused("release", "floor", RELEASE, "--yes")


def test_a_floor_withdraws_lower_versions_whenever_they_were_published(ceremony: Ceremony) -> None:
    for version in ("1.0.0", "2.0.0", "1.0.1", "4.0.0", "1.1.0", "1.1.0-rc.1"):
        ceremony.publish(version)
    ceremony.service.running = {"box-1": "acme/assistant@1.0.1", "box-2": "acme/assistant@2.0.0"}
    floor = ("release", "floor", "acme/assistant@1.1.0")
    before = ceremony.service.roles["acme"]
    assert ceremony.run(*floor, "--dry-run")["withdraws"] == [
        {"release": "acme/assistant@1.0.0", "devices": []},
        {"release": "acme/assistant@1.0.1", "devices": ["box-1"]},
        {"release": "acme/assistant@1.1.0-rc.1", "devices": []},
    ]
    asked = ceremony.operator.run(*floor, *ceremony.keys)
    assert asked.exit_code != 0
    assert "withdraws acme/assistant@1.0.1: run by box-1" in asked.stderr
    assert ceremony.service.roles["acme"] == before

    ceremony.run(*floor, "--yes")
    accepted = [
        version
        for version in ("1.0.0", "2.0.0", "1.0.1", "4.0.0", "1.1.0", "1.1.0-rc.1")
        if ceremony.accepts(f"acme/assistant@{version}")
    ]
    assert accepted == ["2.0.0", "4.0.0", "1.1.0"]


def test_a_version_without_an_order_is_not_published(ceremony: Ceremony) -> None:
    folder = ceremony.tmp_path / "release"
    build_model(folder / "tiny")
    release = write_release(folder, version="latest")
    assert "is not a semantic version" in refusal(ceremony.operator.publish(release))


@pytest.mark.parametrize(
    ("arguments", "withdrawn"),
    [
        (("release", "floor", "acme/assistant@3"), ("acme/assistant@1", "acme/assistant@2")),
        (("release", "delist", "acme/assistant@2"), ("acme/assistant@2",)),
        (("keys", "revoke", "gamma"), ("gamma/assistant@1",)),
    ],
)
def test_a_withdrawal_is_previewed_and_confirmed(
    ceremony: Ceremony, arguments: tuple[str, ...], withdrawn: tuple[str, ...]
) -> None:
    for version in ("1", "2", "3"):
        ceremony.publish(version)
    ceremony.run("keys", "add-publisher", "gamma")
    ceremony.publish(name="gamma/assistant")
    ceremony.service.running = {"box": withdrawn[-1], "other": "acme/other@1"}
    before = dict(ceremony.service.roles)
    unattended = ceremony.operator.run(*arguments, *ceremony.keys)
    assert unattended.exit_code == ExitCode.USAGE
    assert f"withdraws {withdrawn[-1]}: run by box\n" in unattended.stderr
    assert unattended.stderr.count("withdraws ") == len(withdrawn)
    assert "repeat it with --yes" in unattended.stderr
    for more in ((), ("--yes",)):
        tried = ceremony.operator.run(*arguments, "--dry-run", *more, *ceremony.keys)
        assert tried.exit_code == 0
        assert tried.stderr.count("withdraws ") == len(withdrawn)
        assert "Nothing was changed" in tried.stderr
    assert ceremony.service.roles == before
    ceremony.run(*arguments, "--yes")
    assert ceremony.service.roles != before


def test_releases_of_two_publishers_are_not_delisted_at_once(ceremony: Ceremony) -> None:
    result = ceremony.operator.run("release", "delist", RELEASE, "beta/x@1", *ceremony.keys)
    assert result.exit_code == 2


def test_what_is_unknown_is_refused(ceremony: Ceremony) -> None:
    assert "neither a role nor a publisher" in ceremony.refused("keys", "rotate", "nobody")
    assert "neither a publisher nor a root key" in ceremony.refused(
        "keys", "revoke", "nobody", "--yes"
    )
    assert "its threshold is" in ceremony.refused(
        "keys", "revoke", ceremony.root().roles["root"].keyids[0], "--yes"
    )
    assert "does not list" in ceremony.refused("release", "delist", "acme/none@1")
    assert ceremony.service.calls.count("UpdateTrust") == 0


# -- several holders


@pytest.fixture
def shared(
    service: FakeModelService, operator: Operator, tmp_path: Path
) -> tuple[Ceremony, Operator]:
    """Three root keys of which two must sign: one here, the others with another holder."""
    document(operator.init("--root-keys", "3", "--root-threshold", "2", as_json=True))
    other = Operator(tmp_path / "no-context.json", tmp_path / "other")
    other.folder.mkdir()
    for number in (2, 3):
        shutil.move(operator.folder / f"root-{number}.pem", other.folder)
    return Ceremony(operator, service, tmp_path), other


def test_a_change_of_root_is_carried_from_holder_to_holder(
    shared: tuple[Ceremony, Operator],
) -> None:
    ceremony, other = shared
    ceremony.publish()
    answer = ceremony.run("keys", "rotate", "targets")
    assert (answer["sent"], answer["missing"]) == (False, 1)
    pending = str(answer["pending"])
    assert ceremony.root().version == 1
    assert "still needs 1 signature" in refusal(ceremony.operator.run("keys", "send", pending))

    # The other holder's machine has no connection to the server.
    signing = other.run("keys", "sign", pending, "--dir", str(other.folder), "--yes", as_json=True)
    assert json.loads(signing.stdout)["missing"] == 0
    assert "root version 1 -> 2" in signing.stderr
    assert signing.stderr.count("\n  + ") == signing.stderr.count("\n  - ") == 1

    sent = document(ceremony.operator.run("keys", "send", pending, as_json=True))
    assert (sent["sent"], sent["root_version"]) == (True, 2)
    assert not Path(pending).exists()
    # The next command notices that the new targets key counts now.
    ceremony.run("keys", "add-publisher", "gamma")
    assert ceremony.accepts()


def test_a_root_key_of_a_holder_who_left_is_revoked_by_the_others(
    shared: tuple[Ceremony, Operator],
) -> None:
    ceremony, other = shared
    gone = ceremony.root().roles["root"].keyids[2]
    answer = ceremony.run("keys", "revoke", gone[:12], "--yes")
    other.run("keys", "sign", str(answer["pending"]), "--dir", str(other.folder), "--yes")
    document(ceremony.operator.run("keys", "send", str(answer["pending"]), as_json=True))
    assert gone not in ceremony.root().roles["root"].keyids


def test_signing_needs_consent_and_a_key_that_counts(shared: tuple[Ceremony, Operator]) -> None:
    ceremony, other = shared
    pending = str(ceremony.run("keys", "rotate", "timestamp")["pending"])
    before = Path(pending).read_bytes()
    unattended = other.run("keys", "sign", pending, "--dir", str(other.folder))
    assert unattended.exit_code == ExitCode.USAGE
    assert "--yes" in unattended.stderr
    stranger = ("keys", "sign", pending, "--dir", str(ceremony.operator.folder), "--yes")
    assert "can add a signature" in refusal(ceremony.operator.run(*stranger))
    assert Path(pending).read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff", b'{"root": "x"}'])
def test_what_is_no_pending_change_is_refused(
    ceremony: Ceremony, tmp_path: Path, content: bytes
) -> None:
    file = tmp_path / "change.json"
    file.write_bytes(content)
    assert "is no pending change" in refusal(ceremony.operator.run("keys", "send", str(file)))
