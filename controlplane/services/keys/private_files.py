"""Files that only their owner may read, replaced whole."""

import os
import secrets
from collections.abc import Callable
from pathlib import Path


def write_private(path: Path, data: bytes) -> None:
    """Replace a file that only its owner may read; old or new after a crash, never half."""
    incoming = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(incoming, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        replace_durably(incoming, path)
    except OSError:
        incoming.unlink(missing_ok=True)
        raise


def replace_durably(source: Path, path: Path) -> None:
    """Rename, so that a crash afterwards does not undo it."""
    source.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_or_make(path: Path, make: Callable[[], bytes]) -> bytes:
    """What is there, or what is made now and there from now on."""
    if not path.exists():
        write_private(path, make())
    return path.read_bytes()
