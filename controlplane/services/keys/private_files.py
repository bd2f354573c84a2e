"""Files of mode 0600, replaced atomically."""

import os
import secrets
from collections.abc import Callable
from pathlib import Path


def write_private(path: Path, data: bytes) -> None:
    """Replace a file of mode 0600; after a crash it has the old or the new content."""
    incoming = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    # The mode applies from the creation on: a later chmod would leave a moment to read it.
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
    """Rename a file and flush the folder, so that a power cut does not undo the rename."""
    source.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_or_make(path: Path, make: Callable[[], bytes]) -> bytes:
    """Return the file's content; if there is none, make and store it first."""
    if not path.exists():
        write_private(path, make())
    return path.read_bytes()
