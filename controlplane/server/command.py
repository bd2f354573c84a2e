"""`flotilla serve`: the control plane as a process."""

import asyncio
import logging
import os
import signal
import sys
from pathlib import Path

import click

from controlplane.config import DEFAULT_TELEMETRY_WINDOW_SECONDS, Config, parse_address, parse_rate
from controlplane.server.running import downgrade_schema, running
from controlplane.server.systemd import feed_watchdog, notify


@click.command()
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    metavar="DIR",
    help="Folder of the database, chunks and keys; made on the first start.",
)
@click.option(
    "--public",
    default="0.0.0.0:8443",
    show_default=True,
    metavar="HOST:PORT",
    help="Operators and enrolling boxes, over TLS.",
)
@click.option(
    "--device",
    default="0.0.0.0:8444",
    show_default=True,
    metavar="HOST:PORT",
    help="Enrolled boxes, over mutual TLS.",
)
@click.option(
    "--http",
    default="127.0.0.1:8080",
    show_default=True,
    metavar="HOST:PORT",
    help="Health and metrics, plain HTTP.",
)
@click.option(
    "--hostname",
    "hostnames",
    multiple=True,
    metavar="NAME",
    help="A name or address of this server as boxes use it; repeatable.",
)
@click.option(
    "--database",
    "database_url",
    metavar="URL",
    help="postgresql+asyncpg://...; default: SQLite in the data directory.",
)
@click.option(
    "--device-bandwidth",
    metavar="RATE",
    help="Download limit per device and second, for instance 10MiB; default: no limit.",
)
@click.option(
    "--site-bandwidth",
    metavar="RATE",
    help="Download limit per second for all devices with the same label `site` together.",
)
@click.option(
    "--telemetry-window",
    type=click.FloatRange(min=1, max=3600),
    default=DEFAULT_TELEMETRY_WINDOW_SECONDS,
    show_default=True,
    metavar="SECONDS",
    help="The time over which devices aggregate telemetry before they send it.",
)
@click.option(
    "--downgrade-schema",
    "schema",
    metavar="REVISION",
    help="Take the database back for an older version, whose schema this is, and exit.",
)
@click.option(
    "--device-certificate-days",
    type=click.FloatRange(1, 365),
    default=14,
    show_default=True,
    metavar="DAYS",
    help="Lifetime of a box's certificate, which it renews after two thirds.",
)
@click.option(
    "--new-admin",
    is_flag=True,
    help="Write DIR/admin.json with a new admin token, for when every other is lost; then serve.",
)
def serve(
    data_dir: Path,
    *,
    public: str,
    device: str,
    http: str,
    hostnames: tuple[str, ...],
    database_url: str | None,
    device_bandwidth: str | None,
    site_bandwidth: str | None,
    telemetry_window: float,
    schema: str | None,
    device_certificate_days: float,
    new_admin: bool,
) -> None:
    """Run the control plane until SIGTERM or Ctrl-C.

    The first start makes keys, certificates and DIR/admin.json, the first operator's context. Port
    0 takes a free one, which DIR/endpoints.json names.
    """
    config = Config(
        data_dir=data_dir,
        public=parse_address(public),
        device=parse_address(device),
        http=parse_address(http),
        hostnames=hostnames,
        database_url=database_url,
        device_bytes_per_second=parse_rate(device_bandwidth),
        site_bytes_per_second=parse_rate(site_bandwidth),
        device_certificate_days=device_certificate_days,
        new_admin=new_admin,
        telemetry_window_seconds=telemetry_window,
    )
    # Whatever the folder's mode: database, chunks and keys are for this user alone.
    os.umask(0o077)
    _log_to_stderr()
    asyncio.run(run(config) if schema is None else downgrade_schema(config, schema))


async def run(config: Config) -> None:
    """Serve until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with running(config):
        watchdog = asyncio.create_task(feed_watchdog())
        notify("READY=1")
        await stop.wait()
        notify("STOPPING=1")
        watchdog.cancel()


def _log_to_stderr() -> None:
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO,
        format="time=%(asctime)s level=%(levelname)s logger=%(name)s event=%(message)s",
        datefmt="%Y-%m-%dT%H:%M:%S%z",
    )
    # At INFO these repeat our own log lines or log every second.
    for noisy in ("apscheduler", "alembic", "uvicorn"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
