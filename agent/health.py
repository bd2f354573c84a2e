"""Health of the daemon for systemd's watchdog: event loop, gateway and supervisor respond.

Workers that crash or hang are restarted by the supervisor; the watchdog covers the daemon itself.
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

# Returns the fault as text; empty if there is no fault.
Check = Callable[[], Awaitable[str]]


async def daemon_fault(address: str, supervisor: Supervisor) -> str:
    """Check the daemon; return its fault, empty without one. ``address``: the gateway's."""
    if unsupervised := supervisor.unsupervised():
        return f"the supervisor does not restart the workers of {', '.join(unsupervised)}"
    return await _gateway_fault(address)


async def feed_watchdog(check: Check, interval_seconds: float | None = None) -> None:
    """Notify systemd's watchdog while ``check`` finds no fault; return at once without a watchdog.

    The interval is a quarter of systemd's timeout, so that two checks may fail before a restart.
    """
    timeout_seconds = watchdog_seconds()
    if timeout_seconds is None:
        return
    interval = timeout_seconds / 4 if interval_seconds is None else interval_seconds
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
            # The status line is enough; the rest of the answer is not read.
            answer = await reader.read(MAX_ANSWER_BYTES)
    except OSError as error:
        return f"the gateway does not answer at {address}: {error}"
    status = answer.partition(b"\r\n")[0]
    return "" if status.startswith(b"HTTP/1.1 200 ") else f"the gateway answers {status[:100]!r}"
