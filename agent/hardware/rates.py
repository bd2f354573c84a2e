"""Run the micro-benchmark in a separate process and cache its result until the hardware changes."""

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


class _CachedBenchmark(Struct, frozen=True):
    """Content of the cache file; ``hardware`` is the fingerprint that it was measured on."""

    hardware: str
    benchmark: MicroBenchmark


Measure = Callable[[Path, DeviceFacts], Awaitable[MicroBenchmark]]


async def measure_now(directory: Path, facts: DeviceFacts, *, rounds: int = 3) -> MicroBenchmark:
    """Measure in a separate process; storage is measured in ``directory``.

    Raises BenchmarkError if the process returns no result within TIMEOUT_SECONDS.
    """
    threads = str(facts.threads or facts.cores)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        # -P: the current directory must not shadow modules.
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
    # Each line is more complete than the one before; after a crash the last one still counts.
    lines = output[:MAX_OUTPUT_BYTES].splitlines()
    try:
        return msgspec.json.decode(lines[-1] if lines else b"", type=MicroBenchmark)
    except msgspec.MsgspecError as error:
        raise BenchmarkError(
            f"the micro-benchmark ended with code {process.returncode}: {tail!a}",
            advice="Try again: `flotilla-agent bench`.",
        ) from error


def _maths_environment(threads: str) -> dict[str, str]:
    """Return settings for numpy's BLAS, which otherwise uses and busy-waits on all host cores."""
    return {
        "OMP_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
        "OPENBLAS_THREAD_TIMEOUT": "4",
    }


async def benchmark(
    path: Path, facts: DeviceFacts, *, force: bool = False, measure: Measure = measure_now
) -> MicroBenchmark:
    """Return the box's rates: cached in ``path`` if measured on this hardware, else measured now.

    Storage is measured in the directory of ``path``. Raises BenchmarkError.
    """
    hardware = fingerprint(facts)
    cached = None if force else _load(path)
    if cached is not None and cached.hardware == hardware:
        return cached.benchmark
    measured = await measure(path.parent, facts)
    try:
        write_file(path, msgspec.json.encode(_CachedBenchmark(hardware, measured)))
    except OSError as error:
        # A full disk must not stop the daemon; the next start measures again.
        log.warning("benchmark_not_cached error=%s", ascii(str(error)))
    log.info(
        "benchmark_measured memory_bytes_per_second=%.3g matmul_flops_per_second=%.3g "
        "storage_bytes_per_second=%.3g",
        measured.memory_bytes_per_second,
        measured.matmul_flops_per_second,
        measured.storage_bytes_per_second,
    )
    return measured


def _load(path: Path) -> _CachedBenchmark | None:
    try:
        with path.open("rb") as file:
            return msgspec.json.decode(file.read(MAX_FILE_BYTES), type=_CachedBenchmark)
    except (OSError, msgspec.MsgspecError):
        # A missing or damaged cache costs only the seconds of another measurement.
        return None
