"""The gateway's listener on loopback or a unix socket, and its uvicorn server."""

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
from agent.gateway.http.connection import DeadlineProtocol
from agent.gateway.http.endpoint import Admission
from agent.host import allocator
from agent.serving import Serving
from agent.telemetry import Collector

log = logging.getLogger(__name__)

MAX_CONCURRENCY = 64
BACKLOG = 512
UNIX_PREFIX = "unix:"


class Gateway:
    """The local HTTP endpoint. ``status`` returns the document of /status."""

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
        """Listen on ``host:port`` or ``unix:PATH`` and return the bound address.

        Raises GatewayAddressError if the address cannot be bound, or is not loopback and
        ``allow_remote`` is off.
        """
        if host.startswith(UNIX_PREFIX):
            self._unix_path = Path(host.removeprefix(UNIX_PREFIX))
            listener, address = _listen_unix(self._unix_path), host
        else:
            if not self._allow_remote and not is_loopback(host):
                raise GatewayAddressError(
                    f"the gateway would be reachable from other machines on {host[:200]!a}",
                    advice="Use 127.0.0.1, ::1 or unix:PATH; callers are not authenticated.",
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
                http=DeadlineProtocol,
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
        allocator.keep_freed_memory()
        self._task = asyncio.create_task(self._server.serve([listener]))
        # Connections before this would wait in the backlog without an answer.
        await self._server.up.wait()
        log.info("gateway_started address=%s", address)
        return address

    async def stop(self, drain_seconds: float = 5.0) -> None:
        """Close the listener, wait ``drain_seconds`` for open requests, then abort the rest."""
        if self._server is None or self._task is None:
            return
        self._server.config.timeout_graceful_shutdown = max(1, round(drain_seconds))
        self._server.ending.set()
        await self._task
        self._server = self._task = None
        if self._unix_path is not None:
            self._unix_path.unlink(missing_ok=True)


class _Server(uvicorn.Server):
    """Uvicorn with an event for readiness, without signal handlers and without a polling loop.

    Uvicorn's own main_loop wakes ten times a second, to update the Date header and to look at
    ``should_exit``; the idle budget of the daemon does not allow that.
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
        # A restarted daemon must not wait until the old connections leave TIME_WAIT.
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
        # Left by a killed daemon: a live one holds the lock of the data directory.
        if path.exists() and stat.S_ISSOCK(path.stat().st_mode):
            path.unlink()
        # The mode must hold from bind on: chmod afterwards would leave a window.
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
        advice="Choose another address with --gateway, or stop the program that uses it.",
    )
