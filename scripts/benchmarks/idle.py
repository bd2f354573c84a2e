"""Resident memory and CPU share of an idle daemon, beside a bare Python interpreter."""

import subprocess
import sys
import time

import psutil

from benchmarks.deployment import Deployment
from benchmarks.result import Result

MEMORY_BAR_MIB = 64.0
CPU_BAR_PERCENT = 0.5
WATCH_SECONDS = 20.0
MIB = 1 << 20


def run(deployment: Deployment) -> list[Result]:
    """Sample the daemon while its worker serves a model without requests."""
    assert deployment.box.process.popen is not None
    daemon = psutil.Process(deployment.box.process.popen.pid)
    before = sum(daemon.cpu_times()[:2])
    time.sleep(WATCH_SECONDS)
    share = (sum(daemon.cpu_times()[:2]) - before) / WATCH_SECONDS * 100
    resident = daemon.memory_info().rss / MIB
    with subprocess.Popen(
        [sys.executable, "-c", "import asyncio; print(flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as bare:
        assert bare.stdout is not None
        bare.stdout.readline()
        peer = psutil.Process(bare.pid).memory_info().rss / MIB
        bare.communicate(b"\n")
    return [
        Result(
            "agent daemon, idle, resident",
            f"{resident:.1f} MiB = {resident / peer:.1f} x",
            f"{peer:.1f} MiB, python with asyncio",
            f"<= {MEMORY_BAR_MIB:.0f} MiB",
            resident <= MEMORY_BAR_MIB,
        ),
        Result(
            "agent daemon, idle, share of a core",
            f"{share:.2f} %",
            f"over {WATCH_SECONDS:.0f} s",
            f"< {CPU_BAR_PERCENT} %",
            share < CPU_BAR_PERCENT,
        ),
    ]
