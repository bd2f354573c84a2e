"""``python -m agent.worker.restore PARENT BASE DELTA DESTINATION``: rebuild a file from a delta.

A separate process, because it imports numpy, which the daemon does not load, and because the delta
is untrusted. Exits with 0 if the file has the digest that the delta names.
"""

import sys
from pathlib import Path
from typing import Final

from agent.worker import confinement
from artifact.errors import InvalidDeltaError

# Measured: 15 MiB above the interpreter with its imports.
MAX_DATA_BYTES: Final = 192 << 20


def main() -> int:
    parent, *paths = sys.argv[1:]
    confinement.die_with_parent(int(parent))
    confinement.limit_memory(MAX_DATA_BYTES)
    from artifact.deltas.restore import restore

    base, delta, destination = map(Path, paths)
    try:
        restore(base, delta, destination)
    except (InvalidDeltaError, OSError, MemoryError) as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
