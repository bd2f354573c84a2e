"""The service manager's notification protocol, sd_notify(3). The agent has its own copy."""

import asyncio
import os
import socket


def notify(*lines: str) -> None:
    """Send ``READY=1``, ``WATCHDOG=1`` or ``STOPPING=1`` to systemd; no-op without systemd."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        try:
            channel.sendto("\n".join(lines).encode(), address)
        except OSError:
            return


async def feed_watchdog() -> None:
    """Feed systemd's watchdog from the event loop, which runs every port and every job.

    The database is not part of the check: a restart does not bring back a database that is away.
    """
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    while microseconds.isdecimal():
        notify("WATCHDOG=1")
        await asyncio.sleep(int(microseconds) / 4e6)
