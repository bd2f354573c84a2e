"""The command itself: how it loads, what it refuses before it asks a server."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from controlplane.cli.command import COMMANDS, cli
from controlplane.cli.exit_codes import ExitCode


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, list(arguments))


def test_help_lists_every_command_without_loading_any() -> None:
    script = (
        "import sys; from controlplane.cli.command import cli;"
        "cli(['--help'], standalone_mode=False);"
        "heavy = {'grpc', 'rich', 'tuf', 'sqlalchemy', 'onnx', 'numpy'} & set(sys.modules);"
        "print('HEAVY', sorted(heavy))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert "HEAVY []" in done.stdout
    for name, (_, text) in COMMANDS.items():
        assert name in done.stdout
        assert text in done.stdout


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_can_be_loaded_and_explains_itself(name: str) -> None:
    result = run(name, "--help")
    assert result.exit_code == 0, result.output
    assert "Usage: " in result.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fly"], "No such command 'fly'"),
        (["rollout", "start", "a/b@1"], "--all for every device"),
        (["rollout", "start", "a/b@1", "--to", ""], "--to is empty, as with an unset variable"),
        (["rollout", "start", "a/b@1", "--to", "a=b", "--all"], "either --to SELECTOR, or --all"),
        (["rollout", "start", "a/b@1", "--all", "--strategy", "/nowhere"], "does not exist"),
        (["token", "create", "--expires", "soon"], "'soon' is not a duration"),
        (["token", "create", "--expires", "0s"], "'0s' is not a duration"),
        (["telemetry", "summary", "--since", "999999999d"], "is longer than 3650d"),
        (["telemetry", "summary", "--release", "x"], "'x' is not a release reference"),
        (["token", "create", "--label", "lab"], "'lab' is not a label"),
        (["token", "create", "--label", "a b=c"], "'a b' is not a label name"),
        (["token", "create", "--uses", "0"], "0 is not in the range"),
        (["device", "label", "box"], "Give a KEY=VALUE to set"),
        (["telemetry", "summary", "--by", "colour"], "'colour' is not one of"),
        (["access", "token", "create", "me", "--role", "king"], "'king' is not one of"),
        (["audit", "list", "--limit", "0"], "0 is not in the range"),
    ],
)
def test_misuse_exits_with_2_and_says_what_is_wrong(arguments: list[str], said: str) -> None:
    result = run("--context", "/nowhere", *arguments)
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stdout == ""


def test_a_missing_context_is_refused_with_the_way_to_get_one() -> None:
    result = run("--context", "/nowhere/context.json", "device", "list")
    assert result.exit_code == ExitCode.USAGE
    assert result.stderr.startswith("Error: there is no context file /nowhere/context.json\n")
    assert "flotilla serve --data-dir" in result.stderr


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"server": "nowhere", "token": "t", "ca_pem": "c"}',
        '{"server": "a:1", "token": "t", "ca_pem": "c", "more": 1}',
        "\x00\xff",
    ],
)
def test_a_file_that_is_no_context_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "context.json"
    path.write_text(content, encoding="latin-1")
    result = run("--context", str(path), "device", "list")
    assert result.exit_code == ExitCode.USAGE
    assert "is not a context file" in result.stderr


def test_the_context_may_come_from_the_environment(tmp_path: Path) -> None:
    environment = {"FLOTILLA_CONTEXT": str(tmp_path / "here.json")}
    result = CliRunner().invoke(cli, ["device", "list"], env=environment)
    assert f"no context file {tmp_path}/here.json" in result.stderr


def test_an_absent_server_is_told_in_plain_words(tmp_path: Path, certificate: str) -> None:
    path = tmp_path / "context.json"
    path.touch(mode=0o600)
    path.write_text(json.dumps({"server": "127.0.0.1:1", "token": "t", "ca_pem": certificate}))
    for arguments in (["device", "list"], ["rollout", "watch", "r"]):
        result = run("--context", str(path), *arguments)
        assert result.exit_code == ExitCode.UNREACHABLE
        assert result.stderr.startswith("Error: cannot reach 127.0.0.1:1: connection refused\n")
        assert "flotilla serve" in result.stderr
        assert len(result.stderr.splitlines()) == 2
