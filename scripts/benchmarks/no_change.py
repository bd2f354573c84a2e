"""Bytes on the wire of an update whose files the device already holds.

Every byte of the box's device connection is counted, both ways: assignment, metadata, manifest,
receipt, and the statuses and telemetry that go on meanwhile.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from demo_fleet.processes import wait_until

from benchmarks.counting import CountingProxy, counting
from benchmarks.deployment import Deployment
from benchmarks.result import Result

BAR_BYTES = 100_000
KILOBYTE = 1e3
NEXT, AFTER_THAT = "3.0.0", "3.1.0"


def run(deployment: Deployment) -> list[Result]:
    """Count the bytes of assigning held files, as a new release and as the same one."""
    with counting(deployment.server.device) as proxy, _through(deployment, proxy):
        wait_until("the box to connect", lambda: _connected(deployment))
        connected = proxy.passed_bytes
        deployment.roll_out(NEXT)
        return [
            _row("connect anew, nothing to do", deployment, connected, 0.0),
            _measured(
                "another release of files that the box holds",
                deployment,
                proxy,
                lambda: deployment.roll_out(AFTER_THAT),
            ),
            _measured(
                "the same release assigned again",
                deployment,
                proxy,
                lambda: deployment.start_rollout(AFTER_THAT),
            ),
        ]


def _measured(
    what: str, deployment: Deployment, proxy: CountingProxy, act: Callable[[], None]
) -> Result:
    before, began = proxy.passed_bytes, time.monotonic()
    act()
    return _row(what, deployment, proxy.passed_bytes - before, time.monotonic() - began)


def _row(what: str, deployment: Deployment, passed: int, seconds: float) -> Result:
    size = deployment.model_file.stat().st_size
    return Result(
        f"no-change update: {what}",
        f"{passed / KILOBYTE:.1f} kB on the wire",
        f"{size / KILOBYTE:,.0f} kB, the model's file",
        f"< {BAR_BYTES / KILOBYTE:.0f} kB",
        passed < BAR_BYTES,
        f"both ways, TLS included{f', over {seconds:.1f} s' if seconds else ''}",
    )


def _connected(deployment: Deployment) -> bool:
    shown = deployment.server.cli("device", "show", deployment.box.name)
    return bool(shown["device"]["connected"])


@contextmanager
def _through(deployment: Deployment, proxy: CountingProxy) -> Iterator[None]:
    """Restart the agent with its device connection routed through the proxy."""
    path = deployment.box.directory / "config.json"
    config = path.read_bytes()
    deployment.box.stop()
    path.write_text(json.dumps(json.loads(config) | {"device_endpoint": proxy.address}))
    deployment.box.start()
    try:
        yield
    finally:
        deployment.box.stop()
        path.write_bytes(config)
        deployment.box.start()
