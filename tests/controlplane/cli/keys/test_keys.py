"""`flotilla keys`: the server is founded once, with keys that it never sees."""

import hashlib
from pathlib import Path

import pytest
from model_service import FakeModelService, serving
from operator_cli import Operator, document

from controlplane.cli.exit_codes import ExitCode


def test_init_founds_the_servers_repository(
    service: FakeModelService, operator: Operator, folder: Path
) -> None:
    answer = document(operator.init("--publisher", "beta", as_json=True))

    root = service.metadata["1.root.json"]
    assert answer == {
        "dir": str(folder),
        "root_sha256": hashlib.sha256(root).hexdigest(),
        "publishers": ["acme", "beta"],
        "founded": True,
    }
    keys = sorted(path.name for path in folder.glob("*.pem"))
    assert keys == ["publisher-acme.pem", "publisher-beta.pem", "root-1.pem", "targets.pem"]
    assert folder.stat().st_mode & 0o777 == 0o700
    for name in keys:
        assert (folder / name).stat().st_mode & 0o777 == 0o600
        assert b"ENCRYPTED" in (folder / name).read_bytes()
    sent = b"".join(service.metadata.values())
    assert b"PRIVATE" not in sent


def test_init_again_says_so_and_changes_nothing(
    service: FakeModelService, operator: Operator, folder: Path
) -> None:
    operator.init()
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}

    again = operator.init()

    assert again.exit_code == 0
    assert "Already done" in again.stdout
    assert document(operator.init(as_json=True))["founded"] is False
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()} == before


def test_init_goes_on_where_it_stopped(
    service: FakeModelService, operator: Operator, folder: Path
) -> None:
    operator.init()
    root_key = (folder / "root-1.pem").read_bytes()
    service.roles.clear()
    service.metadata.clear()
    # Signed but not sent:
    assert document(operator.init(as_json=True))["founded"] is True
    assert service.metadata["1.root.json"] == (folder / "1.root.json").read_bytes()
    # Keys made, but the root not yet signed:
    service.roles.clear()
    service.metadata.clear()
    (folder / "1.root.json").unlink()
    assert document(operator.init(as_json=True))["founded"] is True
    assert (folder / "root-1.pem").read_bytes() == root_key


def test_a_server_of_other_keys_is_left_alone(
    service: FakeModelService, operator: Operator, tmp_path: Path
) -> None:
    operator.init()
    before = dict(service.metadata)
    operator.folder = tmp_path / "others"
    result = operator.init()
    assert result.exit_code == ExitCode.REFUSED
    assert "trusts another root" in result.stderr
    assert service.metadata == before


def test_a_publisher_unknown_at_the_founding_is_refused(
    service: FakeModelService, operator: Operator
) -> None:
    operator.init()
    result = operator.init("--publisher", "gamma")
    assert result.exit_code == ExitCode.REFUSED
    assert "without the publisher 'gamma'" in result.stderr
    assert "It knows acme" in result.stderr


def test_keys_of_one_server_do_not_found_another(
    service: FakeModelService, operator: Operator, tmp_path: Path
) -> None:
    operator.init()
    operator.context = tmp_path / "second.json"
    with serving(FakeModelService(), operator.context):
        result = operator.init()
    assert result.exit_code == ExitCode.REFUSED
    assert "does not name this server's key" in result.stderr
    assert "new folder" in result.stderr


def test_several_root_keys_with_a_threshold(
    service: FakeModelService, operator: Operator, folder: Path
) -> None:
    document(operator.init("--root-keys", "3", "--root-threshold", "2", as_json=True))
    shown = document(operator.run("keys", "show", "--dir", str(folder), as_json=True))
    roles = {role["role"]: role for role in shown["roles"]}
    assert len(roles["root"]["keys"]) == 3
    assert roles["root"]["threshold"] == 2
    assert roles["acme"]["threshold"] == 1
    assert roles["timestamp"]["expires"] is None


def test_show_prints_a_table(service: FakeModelService, operator: Operator, folder: Path) -> None:
    operator.init()
    shown = operator.run("keys", "show", "--keys", str(folder))
    assert shown.exit_code == 0
    for word in ("root", "targets", "acme", "snapshot", "kept by the server"):
        assert word in shown.stdout


@pytest.mark.parametrize("name", ["Acme", "a/b", "", "root", "a" * 40])
def test_a_bad_publisher_name_is_misuse(operator: Operator, name: str) -> None:
    result = operator.run("keys", "init", "--publisher", name)
    assert result.exit_code == 2


def test_a_threshold_above_the_number_of_keys_is_misuse(operator: Operator) -> None:
    assert operator.init("--root-threshold", "2").exit_code == 2


def test_without_a_passphrase_and_a_terminal_nothing_is_made(
    service: FakeModelService, operator: Operator, folder: Path
) -> None:
    operator.env = {"FLOTILLA_KEY_PASSPHRASE": ""}
    result = operator.init()
    assert result.exit_code == ExitCode.REFUSED
    assert "FLOTILLA_KEY_PASSPHRASE" in result.stderr
    assert not folder.exists()


def test_the_passphrase_may_come_from_a_file(
    service: FakeModelService, operator: Operator, tmp_path: Path
) -> None:
    operator.env = {"FLOTILLA_KEY_PASSPHRASE": ""}
    secret = tmp_path / "passphrase"
    secret.write_text("another horse\nsecond line\n")
    document(operator.init("--passphrase-file", str(secret), as_json=True))
    operator.env = {"FLOTILLA_KEY_PASSPHRASE": "another horse"}
    (operator.folder / "1.root.json").unlink()
    service.roles.clear()
    document(operator.init(as_json=True))


def test_a_wrong_passphrase_is_refused(
    service: FakeModelService, operator: Operator, folder: Path
) -> None:
    operator.init()
    (folder / "1.root.json").unlink()
    service.roles.clear()
    operator.env = {"FLOTILLA_KEY_PASSPHRASE": "wrong horse"}
    result = operator.init()
    assert result.exit_code == ExitCode.REFUSED
    assert "cannot be unlocked" in result.stderr


def test_show_without_keys_says_how_to_make_them(operator: Operator, folder: Path) -> None:
    result = operator.run("keys", "show", "--dir", str(folder))
    assert result.exit_code == ExitCode.REFUSED
    assert "keys init" in result.stderr
