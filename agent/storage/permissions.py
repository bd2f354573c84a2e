"""Privacy of the data directory: models, telemetry and metadata are for the agent's user only."""

import logging
import os
import stat
from pathlib import Path
from typing import Final

log = logging.getLogger(__name__)

# New files and folders are readable by their owner only.
PRIVATE_UMASK: Final = 0o077
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


def make_private(root: Path) -> None:
    """Take group and others' rights from every file and folder below ``root``.

    For files of earlier versions, or of a start with another umask. ``root`` itself keeps its mode,
    and sockets keep theirs: its owner may let other users' programs reach the gateway in it.
    """
    changed = 0
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = Path(folder, name)
            try:
                mode = path.lstat().st_mode
                if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) or not mode & _OTHERS:
                    continue
                path.chmod(stat.S_IMODE(mode) & ~_OTHERS)
                changed += 1
            except OSError as error:
                log.warning("file_not_private path=%s error=%s", path, ascii(str(error)))
    if changed:
        log.info("files_made_private count=%d root=%s", changed, root)
