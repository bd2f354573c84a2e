"""``python -m runtimes.inspection MODULE:RUNTIME FILE SECONDS BYTES``: the inspecting process.

Prints one answer. Imports little at the start, since every inspection waits for it.
"""

import importlib
import math
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Final

from runtimes.base import Runtime
from runtimes.confinement import confine_reader
from runtimes.errors import UnsafeFileError
from runtimes.inspection.answer import MAX_WORDS, Answer, Found, Refused, encode

MAX_OPEN_FILES: Final = 32


def main() -> int:
    location, file, seconds, memory_bytes = sys.argv[1:]
    path = Path(file)
    _limit(math.ceil(float(seconds)), int(memory_bytes))
    module, _, attribute = location.partition(":")
    runtime: Runtime = getattr(importlib.import_module(module), attribute)
    sys.stdout.buffer.write(encode(_answer(runtime, path)))
    return 0


def _limit(seconds: int, memory_bytes: int) -> None:
    """Set kernel limits that end this process even if its parent has died."""
    signal.alarm(seconds + 1)
    for what, most in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, MAX_OPEN_FILES),
        (resource.RLIMIT_NPROC, 0),
    ):
        resource.setrlimit(what, (most, most))
    # SIGXCPU first, which names the reason; SIGKILL one second later.
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))


def _answer(runtime: Runtime, path: Path) -> Answer:
    inspector = runtime.inspector()
    beside = [path.with_name(name) for name in runtime.side_files]
    # Python's library stays readable, since parts of it import others when they are used.
    library = Path(os.__file__).parent
    confinement = confine_reader([library, path, *(file for file in beside if file.is_file())])
    try:
        return Found(inspector.inspect(path), confinement)
    except UnsafeFileError as error:
        return Refused(str(error)[:MAX_WORDS], error.advice[:MAX_WORDS])
    except MemoryError:
        return Refused(f"reading {path.name} takes more memory than is allowed", "")


if __name__ == "__main__":
    sys.exit(main())
