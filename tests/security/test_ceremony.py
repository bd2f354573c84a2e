"""Every command of the key ceremony in docs/security.md works as written."""

import asyncio
import os
import re
import sys
from pathlib import Path

import pytest
from built_models import build_model, write_release

from artifact.trust.keys import load_key
from controlplane.config import Address, Config
from controlplane.server.running import running

DOCUMENT = Path(__file__).parents[2] / "docs" / "security.md"
PASSPHRASE = "correct horse"
ANY_PORT = Address("127.0.0.1", 0)


def commands() -> list[str]:
    """Return every command of every console block, in order."""
    blocks = re.findall(r"```console\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


async def run(command: str, directory: Path, environment: dict[str, str]) -> str:
    # A terminal, on which commands that cannot be undone ask for confirmation.
    terminal, stdin = os.openpty()
    try:
        os.write(terminal, b"y\n")
        process = await asyncio.create_subprocess_exec(
            *("bash", "-euc", command),
            cwd=directory,
            env=environment,
            stdin=stdin,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
    finally:
        os.close(stdin)
        os.close(terminal)
    assert process.returncode == 0, f"{command}\n{output.decode()}"
    return output.decode()


def write_releases(directory: Path) -> None:
    build_model(directory / "tiny")
    for version in ("1", "2"):
        made = write_release(directory, version=version)
        made.rename(directory / f"release-{version}.yaml")


@pytest.mark.e2e
async def test_every_command_of_the_ceremony_works_as_written(tmp_path: Path) -> None:
    write_releases(tmp_path)
    config = Config(data_dir=tmp_path / "server", public=ANY_PORT, device=ANY_PORT, http=ANY_PORT)
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "FLOTILLA_CONTEXT": str(config.data_dir / "admin.json"),
        "FLOTILLA_KEY_PASSPHRASE": PASSPHRASE,
    }
    wanted = commands()
    assert len(wanted) > 25
    said: dict[str, str] = {}
    async with running(config):
        for command in wanted:
            if "$KEYID" in command:
                third = load_key(tmp_path / "third" / "root-3.pem", PASSPHRASE)
                environment["KEYID"] = third.public_key.keyid
            said[command] = await run(command, tmp_path, environment)
    assert "withdrawn" in said["flotilla release list"]
    (holders,) = re.findall(r"^root .*$", said["flotilla keys show --dir keys"], re.MULTILINE)
    assert holders.count(",") == 2
