"""Swaps under load: failed requests, and the longest time a request waited."""

import re

from demo_fleet.traffic import Traffic

from benchmarks.deployment import Deployment
from benchmarks.result import Result

WAIT_BAR_MS = 100.0
SWAPS = 3
CALLERS = 4
HELD = re.compile(r"deployment_swapped .*longest_wait_seconds=(?P<seconds>[0-9.]+)")


def run(deployment: Deployment) -> list[Result]:
    """Roll out one release after another while callers send requests."""
    log = deployment.box.process.log
    before = len(HELD.findall(log.read_text()))
    traffic = Traffic(pause_seconds=0.01)
    body = {"model": "bench", "prompt": "The import statement", "max_tokens": 4, "temperature": 0}
    for caller in range(CALLERS):
        traffic.add(f"caller-{caller}", deployment.box.gateway, "/v1/completions", body)
    for swap in range(SWAPS):
        deployment.roll_out(f"2.{swap}.0")
    traffic.stop()
    waits = [float(seconds) * 1000 for seconds in HELD.findall(log.read_text())[before:]]
    if len(waits) != SWAPS:
        raise ValueError(f"the box logged {len(waits)} swaps, not {SWAPS}")
    failed = len(traffic.failures)
    return [
        Result(
            f"failed requests in {SWAPS} swaps under load",
            f"{failed} of {traffic.requests}",
            "none",
            "0",
            failed == 0,
            "; ".join(traffic.failures[:1]),
        ),
        Result(
            "longest time a swap held a request",
            f"{max(waits):.1f} ms",
            "no swap",
            f"<= {WAIT_BAR_MS:.0f} ms",
            max(waits) <= WAIT_BAR_MS,
        ),
    ]
