"""The data directory: its lock, and the files that tell clients how to connect."""

import asyncio
import contextlib
import fcntl
import logging
import os
import secrets
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from controlplane.config import WILDCARDS, Address, Config
from controlplane.errors import DataDirectoryError
from controlplane.server.composition import Services
from controlplane.services.keys.private_files import write_private

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Endpoints:
    """The addresses on which the server listens, with the ports that were taken."""

    public: Address
    device: Address
    http: Address


@contextlib.contextmanager
def locked(data_dir: Path) -> Iterator[None]:
    """Lock the data directory for this process; make it if it does not exist."""
    try:
        if not data_dir.exists():
            data_dir.mkdir(mode=0o700, parents=True)
        _close_to_others(data_dir)
        # flock ends with the process, so that a killed server leaves no stale lock.
        descriptor = os.open(data_dir / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise DataDirectoryError(
            f"cannot use the data directory {data_dir}: {error.strerror}",
            advice="Choose another --data-dir, or let this user write to it.",
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise DataDirectoryError(
            f"another control plane runs on {data_dir}",
            advice="Stop it first, or choose another --data-dir.",
        ) from error
    finally:
        os.close(descriptor)


def _close_to_others(data_dir: Path) -> None:
    """Take permissions from other users.

    Earlier versions made readable files in folders that were readable, and SQLite gives its log
    and its shared memory the mode of the database.
    """
    for path in (data_dir, *data_dir.iterdir()):
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode) or not mode & 0o077:
            continue
        path.chmod(stat.S_IMODE(mode) & 0o700)
        log.warning("closed_to_others path=%s old_mode=%o", path, stat.S_IMODE(mode))


async def write_contexts(services: Services, endpoints: Endpoints) -> None:
    """Write endpoints.json, and on the first start admin.json, the first operator's context."""
    config = services.config
    listening = {
        "public": _client_address(config, endpoints.public),
        "device": _client_address(config, endpoints.device),
        "http": _client_address(config, endpoints.http),
    }
    data = msgspec.json.encode(listening)
    await asyncio.to_thread(write_private, config.data_dir / "endpoints.json", data)
    if not config.new_admin and await services.access.has_tokens():
        return
    # The file comes first: after a crash between the two writes, a stored token without its file
    # would leave no way in. An unused secret in the file is overwritten at the next start.
    secret = secrets.token_urlsafe(32)
    context = {
        "server": listening["public"],
        "token": secret,
        "ca_pem": services.keys.authorities.offered.bundle.decode(),
    }
    path = config.data_dir / "admin.json"
    await asyncio.to_thread(write_private, path, msgspec.json.encode(context))
    name = "recovered admin" if config.new_admin else "first admin"
    await services.access.add_local_admin(secret, name)
    log.warning("admin_written path=%s name=%s", path, name)


def _client_address(config: Config, address: Address) -> str:
    """Return the address by which a client of this machine or network reaches the server."""
    if address.host not in WILDCARDS:
        return str(address)
    return str(Address(config.hostnames[0] if config.hostnames else "localhost", address.port))
