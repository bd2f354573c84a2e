"""Configuration of a control plane. Only the data directory has no default."""

import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from artifact.sizes import parse_size
from controlplane.errors import InvalidInputError

_ADDRESS: Final = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^\s:\[\]]*):(?P<port>[0-9]{1,5})")
MAX_PORT: Final = 65535
# Agents give up on downloads slower than 1 KiB/s.
LEAST_RATE: Final = 4096


@dataclass(frozen=True, slots=True)
class Address:
    """An address to listen on. Port 0 takes any free port."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def parse_address(text: str) -> Address:
    """Parse HOST:PORT, [IPV6]:PORT, or :PORT for every interface; InvalidInputError otherwise."""
    match = _ADDRESS.fullmatch(text)
    if match is None or int(match["port"]) > MAX_PORT:
        raise InvalidInputError(
            f"{text[:80]!r} is not an address", advice="Write HOST:PORT, for instance 0.0.0.0:8443."
        )
    return Address(match["host"].strip("[]") or "0.0.0.0", int(match["port"]))  # noqa: S104 - asked for


def parse_rate(text: str | None) -> int | None:
    """Parse 500KiB, 10MiB or 1GiB to bytes per second; None means no limit.

    Raises InvalidInputError for any other form.
    """
    if text is None:
        return None
    try:
        rate = parse_size(text)
    except ValueError:
        rate = 0
    if rate < LEAST_RATE:
        raise InvalidInputError(
            f"{text[:80]!r} is not a rate of at least {LEAST_RATE} bytes per second",
            advice="Write it like 500KiB, 10MiB or 1GiB.",
        )
    return rate


LOOPBACK_NAMES: Final = ("localhost", "127.0.0.1", "::1")
DEFAULT_TELEMETRY_WINDOW_SECONDS: Final = 15.0
WILDCARDS: Final = frozenset(("0.0.0.0", "::", ""))  # noqa: S104 - to recognise them


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Options of `flotilla serve`, and figures that only tests change."""

    data_dir: Path
    public: Address = Address("0.0.0.0", 8443)  # noqa: S104 - boxes come from elsewhere
    device: Address = Address("0.0.0.0", 8444)  # noqa: S104
    http: Address = Address("127.0.0.1", 8080)
    # Names and addresses by which boxes and operators reach this server. The first is the one
    # that new boxes and admin.json get.
    hostnames: tuple[str, ...] = ()
    # None: the embedded database, in the data directory.
    database_url: str | None = None

    # Make another admin token and write its context file at the start.
    new_admin: bool = False
    device_certificate_days: float = 14
    server_certificate_days: float = 14
    # Each window costs a device a write to its flash and a message.
    telemetry_window_seconds: float = DEFAULT_TELEMETRY_WINDOW_SECONDS
    # How often an idle device repeats an unchanged status; changes are sent at once.
    status_interval_seconds: float = 300.0
    telemetry_retention_days: float = 14
    request_retention_days: float = 7
    # Streams that may be opened at once, and how many more each second.
    connect_burst: int = 500
    connects_per_second: float = 200.0
    # Time limits of a TLS handshake and of one request over plain HTTP.
    handshake_seconds: float = 20.0
    http_seconds: float = 10.0
    shutdown_grace_seconds: float = 5.0
    # Limits on the chunks that this process sends; None means no limit.
    device_bytes_per_second: int | None = None
    site_bytes_per_second: int | None = None
    # Disk space for stored deltas.
    delta_cache_bytes: int = 8 << 30

    @property
    def certificate_names(self) -> tuple[str, ...]:
        """Names of the server's certificate."""
        bound = [a.host for a in (self.public, self.device) if a.host not in WILDCARDS]
        names = (*self.hostnames, *bound, *LOOPBACK_NAMES, socket.gethostname())
        return tuple(dict.fromkeys(names))

    @property
    def advertised_host(self) -> str:
        """Host of the device port as new boxes receive it."""
        if self.hostnames:
            return self.hostnames[0]
        host = self.device.host
        return socket.gethostname() if host in WILDCARDS else host
