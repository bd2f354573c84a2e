"""Bytes that a device writes to its storage per update, beside the model's files, and per day.

Linux counts the pages that a process dirties (/proc/PID/io, write_bytes), so that a byte of log
costs a page of 4 KiB here as it does on flash. Helper processes are sampled while they live.
"""

import threading
import time
from types import TracebackType
from typing import Self

import psutil
from demo_fleet.traffic import Traffic

from benchmarks.deployment import Deployment
from benchmarks.result import Result

IDLE_SECONDS = 120.0
SERVING_SECONDS = 60.0
DAY_SECONDS = 86400
SAMPLE_SECONDS = 0.05
KIB, MIB = 1 << 10, 1 << 20
BAR_UPDATE_BYTES = 2 * MIB
BAR_IDLE_BYTES = 1 * MIB
BAR_SERVING_BYTES = 100 * MIB
NEXT = "4.0.0"


class FlashWatch:
    """Sums the bytes written by a process and its descendants within a ``with`` block."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._first: dict[tuple[int, float], int] = {}
        self._last: dict[tuple[int, float], int] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample_until_stopped)

    @property
    def written(self) -> int:
        return sum(last - self._first[process] for process, last in self._last.items())

    def __enter__(self) -> Self:
        self._sample(known_before=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._sample(known_before=False)

    def _sample_until_stopped(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            self._sample(known_before=False)

    def _sample(self, *, known_before: bool) -> None:
        for process in (self._process, *self._process.children(recursive=True)):
            try:
                written = process.io_counters().write_bytes
                # A process id may be used again, by a later helper.
                identity = process.pid, process.create_time()
            except psutil.Error:
                continue
            self._first.setdefault(identity, written if known_before else 0)
            self._last[identity] = written


def run(deployment: Deployment) -> list[Result]:
    """Watch an idle device, one that serves a request a second, and an update of held files."""
    assert deployment.box.process.popen is not None
    pid = deployment.box.process.popen.pid
    log = deployment.box.process.log
    logged = log.stat().st_size
    with FlashWatch(pid) as idle:
        time.sleep(IDLE_SECONDS)
    logged = log.stat().st_size - logged
    with FlashWatch(pid) as serving:
        traffic = Traffic(pause_seconds=1)
        body = {"model": "bench", "prompt": "The import statement", "max_tokens": 4}
        traffic.add("caller", deployment.box.gateway, "/v1/completions", body)
        time.sleep(SERVING_SECONDS)
        traffic.stop()
    with FlashWatch(pid) as update:
        deployment.roll_out(NEXT)
    per_idle_day = idle.written * DAY_SECONDS / IDLE_SECONDS
    per_serving_day = serving.written * DAY_SECONDS / SERVING_SECONDS
    return [
        Result(
            "agent, idle, written to flash",
            f"{per_idle_day / MIB:.2f} MiB/day",
            f"{logged * DAY_SECONDS / IDLE_SECONDS / KIB:.0f} KiB/day of log",
            f"<= {BAR_IDLE_BYTES / MIB:.0f} MiB/day",
            per_idle_day <= BAR_IDLE_BYTES,
            f"over {IDLE_SECONDS:.0f} s",
        ),
        Result(
            "agent, a request a second, written to flash",
            f"{per_serving_day / MIB:.0f} MiB/day",
            f"over {SERVING_SECONDS:.0f} s",
            f"<= {BAR_SERVING_BYTES / MIB:.0f} MiB/day",
            per_serving_day <= BAR_SERVING_BYTES,
        ),
        Result(
            "update of files that the device holds, written to flash",
            f"{update.written / KIB:.0f} KiB",
            f"{deployment.model_file.stat().st_size / KIB:,.0f} KiB, the model's file",
            f"<= {BAR_UPDATE_BYTES / MIB:.0f} MiB",
            update.written <= BAR_UPDATE_BYTES,
            "journal, its copy, metadata, log",
        ),
    ]
