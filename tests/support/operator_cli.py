"""An operator who types `flotilla` commands, in this process."""

import json
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from controlplane.cli.command import cli
from controlplane.cli.exit_codes import ExitCode


class Operator:
    """Has a context file, a key folder and a passphrase."""

    def __init__(self, context: Path, folder: Path) -> None:
        self.context = context
        self.folder = folder
        self.env = {"FLOTILLA_KEY_PASSPHRASE": "correct horse"}

    def run(self, *arguments: str, as_json: bool = False) -> Result:
        options = ["--context", str(self.context), *(["--json"] if as_json else [])]
        return CliRunner().invoke(cli, [*options, *arguments], env=self.env)

    def init(self, *more: str, as_json: bool = False) -> Result:
        arguments = ("keys", "init", "--dir", str(self.folder), "--publisher", "acme", *more)
        return self.run(*arguments, as_json=as_json)

    def publish(self, release_file: Path, *more: str, as_json: bool = False) -> Result:
        arguments = ("publish", str(release_file), "--keys", str(self.folder), *more)
        return self.run(*arguments, as_json=as_json)


def document(result: Result) -> dict[str, Any]:
    """The one JSON document that a successful command printed."""
    assert result.exit_code == 0, result.output
    value: dict[str, Any] = json.loads(result.stdout)
    return value


def refusal(result: Result) -> str:
    """Return the message of a refused command, which printed nothing on stdout."""
    assert result.exit_code in {ExitCode.REFUSED, ExitCode.USAGE}, result.output
    assert not result.stdout
    return str(result.stderr)
