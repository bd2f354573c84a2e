"""Binds the gateway to loopback or a unix socket, and runs it under uvicorn."""

import asyncio
import contextlib
import logging
import os
import socket
import stat
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import uvicorn

from agent.errors import GatewayAddressError
from agent.gateway.application import Status, build, is_loopback
from agent.gateway.http.connection import PatientProtocol
from agent.gateway.http.endpoint import Admission
from agent.host import allocator
from agent.serving import Serving
from agent.telemetry import Collector

log = logging.getLogger(__name__)

MAX_CONCURRENCY = 64
BACKLOG = 512
UNIX_PREFIX = "unix:"


class Gateway:
    """The local HTTP endpoint. ``status`` gives what /status shows, as JSON-able data."""

    def __init__(
        self,
        serving: Serving,
        collector: Collector,
        status: Status,
        *,
        max_concurrency: int = MAX_CONCURRENCY,
        allow_remote: bool = False,
    ) -> None:
        self._serving = serving
        self._collector = collector
        self._status = status
        self._admission = Admission(max_concurrency)
        self._allow_remote = allow_remote
        self._server: _Server | None = None
        self._task: asyncio.Task[None] | None = None
        self._unix_path: Path | None = None

    async def start(self, host: str, port: int = 0) -> str:
        """Binds ``host:port`` or ``unix:PATH``; the address that it is bound to.

        Raises GatewayAddressError, among others for an address that other machines could reach.
        """
        if host.startswith(UNIX_PREFIX):
            self._unix_path = Path(host.removeprefix(UNIX_PREFIX))
            listener, address = _listen_unix(self._unix_path), host
        else:
            if not self._allow_remote and not is_loopback(host):
                raise GatewayAddressError(
                    f"the gateway would be reachable from other machines on {host[:200]!a}",
                    advice="Use 127.0.0.1, ::1 or unix:PATH; it asks nobody who they are.",
                )
            listener = _listen_tcp(host, port)
            bound = listener.getsockname()
            address = f"[{bound[0]}]:{bound[1]}" if ":" in bound[0] else f"{bound[0]}:{bound[1]}"
        application = build(
            self._serving,
            self._collector,
            self._status,
            self._admission,
            version=version("flotilla"),
            only_local_names=not self._allow_remote and self._unix_path is None,
        )
        self._server = _Server(
            uvicorn.Config(
                application,
                loop="none",
                http=PatientProtocol,
                proxy_headers=False,
                ws="none",
                lifespan="off",
                interface="asgi3",
                log_config=None,
                access_log=False,
                server_header=False,
                date_header=False,
                backlog=BACKLOG,
            )
        )
        allocator.keep_some()
        self._task = asyncio.create_task(self._server.serve([listener]))
        await self._server.up.wait()
        log.info("gateway_started address=%s", address)
        return address

    async def stop(self, drain_seconds: float = 5.0) -> None:
        """Takes no new connections, lets requests finish within so long, then cuts them."""
        if self._server is None or self._task is None:
            return
        self._server.config.timeout_graceful_shutdown = max(1, round(drain_seconds))
        self._server.ending.set()
        await self._task
        self._server = self._task = None
        if self._unix_path is not None:
            self._unix_path.unlink(missing_ok=True)


class _Server(uvicorn.Server):
    """Uvicorn that tells when it is up, leaves signals to the daemon, and rests between requests.

    Its own loop turns ten times a second, to stamp the Date header and to see ``should_exit``.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = asyncio.Event()
        self.ending = asyncio.Event()

    async def main_loop(self) -> None:
        await self.ending.wait()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().startup(sockets)
        finally:
            self.up.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _listen_tcp(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, OverflowError) as error:
        raise _unusable(f"{host}:{port}", error) from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise _unusable(f"{host}:{port}", error) from error
    return listener


def _listen_unix(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # A socket that a killed daemon left; the data directory's lock keeps a live one out.
        if path.exists() and stat.S_ISSOCK(path.stat().st_mode):
            path.unlink()
        before = os.umask(0o117)
        try:
            listener.bind(str(path))
        finally:
            os.umask(before)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise _unusable(f"{UNIX_PREFIX}{path}", error) from error
    return listener


def _unusable(address: str, error: OSError | OverflowError) -> GatewayAddressError:
    return GatewayAddressError(
        f"the gateway cannot listen on {address[:300]!a}: {error}",
        advice="Choose another address with --gateway, or stop what holds it.",
    )
