"""Files in the data directory are for their owner only, whatever its mode and the umask."""

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

from agent.storage.permissions import make_private


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_files_and_folders_become_private_and_all_else_stays(tmp_path: Path) -> None:
    root = tmp_path / "box"
    models = root / "store" / "files"
    models.mkdir(parents=True)
    root.chmod(0o755)
    for path, given in ((root / "telemetry.db", 0o644), (models / "ab", 0o444)):
        path.write_bytes(b"x")
        path.chmod(given)
    outside = tmp_path / "outside"
    outside.write_bytes(b"")
    outside.chmod(0o644)
    (root / "link").symlink_to(outside)
    with socket.socket(socket.AF_UNIX) as gateway:
        gateway.bind(str(root / "gateway.sock"))
    (root / "gateway.sock").chmod(0o660)
    make_private(root)
    assert mode(root / "telemetry.db") == 0o600
    assert mode(models / "ab") == 0o400
    assert mode(models) == mode(root / "store") == 0o700
    assert (mode(root), mode(root / "gateway.sock"), mode(outside)) == (0o755, 0o660, 0o644)


def test_the_command_and_its_helpers_create_private_files(tmp_path: Path) -> None:
    """A shell's usual umask of 022 does not count; children inherit the command's."""
    script = (
        "import os, runpy, subprocess, sys\n"
        "import agent.__main__ as entry\n"
        "entry.run = lambda: subprocess.run(['touch', sys.argv[1]], check=True)\n"
        "entry.main()\n"
    )
    made = tmp_path / "made"
    before = os.umask(0o022)
    try:
        subprocess.run([sys.executable, "-c", script, str(made)], check=True)
    finally:
        os.umask(before)
    assert mode(made) == 0o600
