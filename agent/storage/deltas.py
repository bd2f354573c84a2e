"""Deltas: a file made out of one that is here, in a process that the daemon bounds."""

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
from agent.host.oom import first_to_go
from artifact.manifest import File

log = logging.getLogger(__name__)

MAX_BASES: Final = 8
# A file much larger or smaller than another is no version of it.
MAX_SIZE_RATIO: Final = 2
# Restoring takes at least so many bytes each second, or it is given up.
LEAST_BYTES_PER_SECOND: Final = 1 << 20
LEAST_SECONDS: Final = 60.0
MAX_COMPLAINT_BYTES: Final = 300


@dataclass(frozen=True, slots=True)
class Offer:
    """A delta that the server has, as a file, and the SHA-256 (hex) of the base it starts from."""

    base: str
    delta: File


@dataclass(frozen=True, slots=True)
class BeingMade:
    """The server is at it."""

    retry_after_seconds: float


def likely_bases(held: Iterable[File], target: File) -> list[File]:
    """Files that ``target`` may be a version of, nearest in size first.

    Quantized alike, two versions differ by their metadata's length.
    """
    near = [
        file
        for file in held
        if file.size <= target.size * MAX_SIZE_RATIO and target.size <= file.size * MAX_SIZE_RATIO
    ]
    return sorted(near, key=lambda file: abs(file.size - target.size))[:MAX_BASES]


async def restore(base: Path, delta: Path, destination: Path, size: int) -> None:
    """Write ``destination`` in a process of its own; DeltaRefusedError when nothing came of it.

    Cancelling kills the process. What was written is whole only when this returns, and whether it
    is the wanted file is the caller's to check.
    """
    process = await asyncio.create_subprocess_exec(
        *first_to_go(sys.executable, "-P", "-m", "agent.worker.restore"),
        *(str(os.getpid()), str(base), str(delta), str(destination)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        # Threads would take memory, and there is nothing here for them to do.
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(LEAST_SECONDS + size / LEAST_BYTES_PER_SECOND):
            _, complaint = await process.communicate()
    except TimeoutError:
        raise DeltaRefusedError("restoring from a delta took too long") from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode != 0:
        reason = complaint[-MAX_COMPLAINT_BYTES:].decode(errors="replace").strip()
        raise DeltaRefusedError(f"restoring from a delta ended with {process.returncode}: {reason}")
