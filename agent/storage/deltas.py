"""Deltas: restoration of a file from a similar one, in a process with limits."""

import asyncio
import contextlib
import logging
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agent.errors import DeltaRefusedError
from agent.host.oom import with_raised_oom_score
from artifact.manifest import File

log = logging.getLogger(__name__)

MAX_BASES: Final = 8
# Files whose sizes differ more than this are unlikely to be versions of one another.
MAX_SIZE_RATIO: Final = 2
# Restoring is given up if it writes fewer bytes per second than this.
LEAST_BYTES_PER_SECOND: Final = 1 << 20
LEAST_SECONDS: Final = 60.0
MAX_STDERR_BYTES: Final = 300


@dataclass(frozen=True, slots=True)
class Offer:
    """A delta that the server has: a file, and the SHA-256 (hex) of its base."""

    base: str
    delta: File


@dataclass(frozen=True, slots=True)
class BeingMade:
    """The server is still computing the delta."""

    retry_after_seconds: float


def likely_bases(held: Iterable[File], target: File) -> list[File]:
    """Select files that ``target`` may be a version of, nearest in size first.

    Two versions with the same quantization differ in size only by their metadata.
    """
    near = [
        file
        for file in held
        if file.size <= target.size * MAX_SIZE_RATIO and target.size <= file.size * MAX_SIZE_RATIO
    ]
    return sorted(near, key=lambda file: abs(file.size - target.size))[:MAX_BASES]


async def restore(base: Path, delta: Path, destination: Path, size: int) -> None:
    """Write ``destination`` from ``base`` and ``delta`` in a child process; DeltaRefusedError.

    Cancelling kills the process. The file is complete only once this returns; the caller verifies
    its digest.
    """
    process = await asyncio.create_subprocess_exec(
        *with_raised_oom_score(sys.executable, "-P", "-m", "agent.worker.restore"),
        *(str(os.getpid()), str(base), str(delta), str(destination)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        # The child needs no BLAS threads; each would take memory for its stack and buffers.
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(LEAST_SECONDS + size / LEAST_BYTES_PER_SECOND):
            _, stderr = await process.communicate()
    except TimeoutError:
        raise DeltaRefusedError(
            f"restoring {size} bytes from a delta took longer than its limit"
        ) from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode != 0:
        reason = stderr[-MAX_STDERR_BYTES:].decode(errors="replace").strip()
        raise DeltaRefusedError(f"restoring from a delta ended with {process.returncode}: {reason}")
