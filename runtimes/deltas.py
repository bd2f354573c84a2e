"""``python -m runtimes.deltas BASE TARGET DESTINATION``: make a delta in a separate process.

Both files come from publishers, so the caller can limit and kill this process. It prints the
delta's size in bytes. Files that no runtime can read are compared as bytes.
"""

import contextlib
import hashlib
import os
import resource
import sys
from pathlib import Path
from typing import Final

from artifact.deltas.encode import Side, Tensor, make_delta
from artifact.splitting import Span
from runtimes import registry
from runtimes.errors import UnsafeFileError

# Two segments, their tables, and the headers of two files.
MAX_DATA_BYTES: Final = 1 << 30
NICENESS: Final = 10
# A bound in case the process outlives its caller.
MAX_CPU_SECONDS: Final = 3600


def side(path: Path) -> Side:
    """Return a file with its digest and the tensors that it contains."""
    with path.open("rb") as source:
        digest = hashlib.file_digest(source, "sha256").digest()
    return Side(path, digest, _tensors(path))


def _tensors(path: Path) -> list[Tensor]:
    """Return the tensors of a file as found by the first runtime that can read it."""
    for name in registry.names():
        try:
            inspection = registry.find(name).inspector().inspect(path)
        except UnsafeFileError:
            # Not a file of this runtime, or a malformed one: bytes can always be compared.
            continue
        return [
            Tensor(tensor.name, tensor.type, tensor.shape, Span(tensor.offset, tensor.size))
            for tensor in inspection.tensors
            # External weights are another file of the variant, with a delta of its own.
            if not tensor.file
        ]
    return []


def main() -> int:
    base, target, destination = map(Path, sys.argv[1:])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (MAX_DATA_BYTES, MAX_DATA_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (MAX_CPU_SECONDS, MAX_CPU_SECONDS))
    with contextlib.suppress(OSError):
        os.nice(NICENESS)
    size = make_delta(side(base), side(target), destination)
    sys.stdout.write(f"{size}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
