"""Size of fine-tunes as tensor deltas, beside zstd and xdelta3, and the cost of restoring them.

Making runs as the control plane does it and restoring as a box does it, each in its own process.
"""

import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.fine_tunes import SCHEMES, make
from benchmarks.result import Result

BARS = {"q4_k_m": 0.15, "q8_0": 0.30}
MEMORY_BAR_MIB = 64.0
MIB = 1 << 20
MEGABYTE = 1e6
# Runs the device's command, then prints its peak: ru_maxrss would include this process's memory.
RESTORE = (
    "from agent.worker import restore; code = restore.main();"
    "print(*(line for line in open('/proc/self/status') if line.startswith('VmHWM')));"
    "raise SystemExit(code)"
)


@dataclass(frozen=True)
class Restored:
    """Cost of restoring; ``exact`` is true if every byte matches."""

    exact: bool
    seconds: float
    peak_mib: float


def run(directory: Path, parameters: str) -> list[Result]:
    tunes = make(directory, parameters)
    rows, peaks = [], []
    for scheme in SCHEMES:
        base = tunes.base(scheme)
        for what, target, bar in (
            ("every weight moved by 1 %", tunes.dense(scheme), BARS[scheme]),
            ("last 20 % of layers tuned", tunes.last_layers(scheme), None),
        ):
            row, peak = _row(f"{what}, {scheme}, by delta", base, target, bar)
            rows.append(row)
            peaks.append(peak)
    peak = max(peaks)
    memory = Result(
        "peak memory while restoring, whole process",
        f"{peak:.1f} MiB",
        f"{_bare_mib():.1f} MiB, python with numpy",
        f"<= {MEMORY_BAR_MIB:.0f} MiB",
        peak <= MEMORY_BAR_MIB,
        "beside the idle daemon",
    )
    return [*rows, memory]


def _row(what: str, base: Path, target: Path, bar: float | None) -> tuple[Result, float]:
    delta, out = target.with_suffix(".delta"), target.with_suffix(".restored")
    delta.unlink(missing_ok=True)
    began = time.perf_counter()
    command = [sys.executable, "-m", "runtimes.deltas", str(base), str(target), str(delta)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - began
    restored = _restore(base, delta, out, target)
    size = target.stat().st_size
    share = delta.stat().st_size / size
    others = {"zstd": _zstd(base, target, out), "xdelta3": _xdelta3(base, target, out)}
    peer = ", ".join(
        f"{name} {100 * count / size:.1f} %" if count is not None else f"{name} not installed"
        for name, count in others.items()
    )
    note = (
        f"{size / MEGABYTE:.0f} MB file; made in {seconds:.1f} s, restored in "
        f"{restored.seconds:.1f} s, {'exactly' if restored.exact else 'WRONGLY'}"
    )
    known = [count / size for count in others.values() if count is not None]
    limit = bar if bar is not None else min(known, default=1.0)
    row = Result(
        what,
        f"{100 * share:.2f} %",
        peer,
        f"<= {100 * bar:.0f} %" if bar is not None else "less than the peers",
        restored.exact and (share <= limit if bar is not None else share < limit),
        note,
    )
    delta.unlink()
    return row, restored.peak_mib


def _restore(base: Path, delta: Path, out: Path, target: Path) -> Restored:
    out.unlink(missing_ok=True)
    began = time.perf_counter()
    result = subprocess.run(
        [sys.executable, "-c", RESTORE, str(os.getpid()), str(base), str(delta), str(out)],
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    seconds = time.perf_counter() - began
    exact = subprocess.run(["cmp", "--silent", out, target], check=False).returncode == 0
    out.unlink()
    return Restored(exact, seconds, int(result.stdout.split()[1]) / 1024)


def _bare_mib() -> float:
    program = (
        "import numpy; print(*(l for l in open('/proc/self/status') if l.startswith('VmHWM')))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(result.stdout.split()[1]) / 1024


def _zstd(base: Path, target: Path, out: Path) -> int | None:
    return _peer(["zstd", "-q", "-f", "--long=31", f"--patch-from={base}", target, "-o", out], out)


def _xdelta3(base: Path, target: Path, out: Path) -> int | None:
    window = str(max(path.stat().st_size for path in (base, target)) + MIB)
    return _peer(["xdelta3", "-e", "-f", "-B", window, "-s", base, target, out], out)


def _peer(command: list[str | Path], out: Path) -> int | None:
    """Return the size of a tool's delta in bytes; None if this machine lacks the tool."""
    if shutil.which(str(command[0])) is None:
        return None
    subprocess.run(command, check=True, capture_output=True)
    size = out.stat().st_size
    out.unlink()
    return size
