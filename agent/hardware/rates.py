"""The micro-benchmark: measured in its own process, kept until the hardware changes."""

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
from msgspec import Struct

from agent.errors import BenchmarkError
from agent.storage.atomic_file import write_file
from artifact.device_facts import DeviceFacts, MicroBenchmark, fingerprint
from runtimes.environment import engine_environment

log = logging.getLogger(__name__)

TIMEOUT_SECONDS = 120.0
MAX_OUTPUT_BYTES = 1 << 16
MAX_FILE_BYTES = 1 << 16


class _Kept(Struct, frozen=True):
    """What is in the file."""

    hardware: str
    benchmark: MicroBenchmark


Measure = Callable[[Path, DeviceFacts], Awaitable[MicroBenchmark]]


async def measure_now(directory: Path, facts: DeviceFacts, *, rounds: int = 3) -> MicroBenchmark:
    """Measures in a process of its own, storage in this directory; BenchmarkError."""
    threads = str(facts.cores)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-m",
        "agent.hardware.measure",
        str(directory),
        threads,
        str(facts.memory_bytes),
        str(rounds),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=engine_environment() | _maths_environment(threads),
    )
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            output, errors = await process.communicate()
    except TimeoutError:
        raise BenchmarkError(
            f"the micro-benchmark took longer than {TIMEOUT_SECONDS:g} s",
            advice="Try again when the box is idle: `flotilla-agent bench`.",
        ) from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    tail = errors.decode(errors="replace").strip()[-300:]
    if process.returncode or tail:
        log.warning("benchmark_incomplete code=%s error=%s", process.returncode, ascii(tail))
    lines = output[:MAX_OUTPUT_BYTES].splitlines()
    try:
        return msgspec.json.decode(lines[-1] if lines else b"", type=MicroBenchmark)
    except msgspec.MsgspecError as error:
        raise BenchmarkError(
            f"the micro-benchmark ended with code {process.returncode}: {tail!a}",
            advice="Try again: `flotilla-agent bench`.",
        ) from error


def _maths_environment(threads: str) -> dict[str, str]:
    """For libraries that would take every core of the host, and keep them busy after they end."""
    return {
        "OMP_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
        "OPENBLAS_THREAD_TIMEOUT": "4",
    }


async def benchmark(
    path: Path, facts: DeviceFacts, *, force: bool = False, measure: Measure = measure_now
) -> MicroBenchmark:
    """The box's rates, from ``path`` when they were measured on this hardware, else measured now.

    ``path``'s directory is also where storage is measured. Raises BenchmarkError.
    """
    hardware = fingerprint(facts)
    kept = None if force else _load(path)
    if kept is not None and kept.hardware == hardware:
        return kept.benchmark
    measured = await measure(path.parent, facts)
    try:
        write_file(path, msgspec.json.encode(_Kept(hardware, measured)))
    except OSError as error:
        # Measured again after the next start; a full disk stops nothing.
        log.warning("benchmark_not_kept error=%s", ascii(str(error)))
    log.info(
        "benchmark_measured memory_bytes_per_second=%.3g matmul_flops_per_second=%.3g "
        "storage_bytes_per_second=%.3g",
        measured.memory_bytes_per_second,
        measured.matmul_flops_per_second,
        measured.storage_bytes_per_second,
    )
    return measured


def _load(path: Path) -> _Kept | None:
    try:
        with path.open("rb") as file:
            return msgspec.json.decode(file.read(MAX_FILE_BYTES), type=_Kept)
    except (OSError, msgspec.MsgspecError):
        # Absent or unreadable: it costs seconds to measure again.
        return None
