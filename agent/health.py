"""What the watchdog is told: the event loop turns, the gateway answers, every worker is kept.

A worker that crashes or hangs is the supervisor's to mend; the watchdog is for the daemon itself.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import closing
from typing import Final

from agent.host.systemd import notify, watchdog_seconds
from agent.supervisor import Supervisor

log = logging.getLogger(__name__)

UNIX_PREFIX: Final = "unix:"
MAX_ANSWER_BYTES: Final = 4096
_REQUEST: Final = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"

# What is wrong, in words; empty when nothing is.
Check = Callable[[], Awaitable[str]]


async def daemon_fault(address: str, supervisor: Supervisor) -> str:
    """Why this daemon cannot do its work; empty when it can. ``address`` is the gateway's."""
    if unsupervised := supervisor.unsupervised():
        return f"nothing would restart the workers of {', '.join(unsupervised)}"
    return await _gateway_fault(address)


async def feed_watchdog(check: Check, interval_seconds: float | None = None) -> None:
    """Tell systemd that all is well, as long as ``check`` finds nothing. Ends when none watches.

    Two checks may fail within systemd's patience before it restarts the daemon.
    """
    patience = watchdog_seconds()
    if patience is None:
        return
    interval = patience / 4 if interval_seconds is None else interval_seconds
    while True:
        try:
            async with asyncio.timeout(interval):
                fault = await check()
        except TimeoutError:
            fault = f"the health check did not end within {interval:g} s"
        if fault:
            log.error("unhealthy fault=%s", ascii(fault))
        else:
            notify("WATCHDOG=1")
        await asyncio.sleep(interval)


async def _gateway_fault(address: str) -> str:
    try:
        if address.startswith(UNIX_PREFIX):
            streams = await asyncio.open_unix_connection(address.removeprefix(UNIX_PREFIX))
        else:
            host, _, port = address.rpartition(":")
            streams = await asyncio.open_connection(host.strip("[]"), int(port))
        reader, writer = streams
        with closing(writer):
            writer.write(_REQUEST)
            answer = await reader.read(MAX_ANSWER_BYTES)
    except OSError as error:
        return f"the gateway does not answer at {address}: {error}"
    status = answer.partition(b"\r\n")[0]
    return "" if status.startswith(b"HTTP/1.1 200 ") else f"the gateway answers {status[:100]!r}"
