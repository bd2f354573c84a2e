"""Plain HTTP for monitoring: /healthz, /readyz, /metrics."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Final

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from controlplane.errors import ControlPlaneError
from controlplane.metrics import Metrics

log = logging.getLogger(__name__)

# Further connections get 503.
MAX_CONNECTIONS: Final = 1024


def make_app(metrics: Metrics, readiness: Callable[[], Awaitable[Sequence[str]]]) -> Starlette:
    """Make the application.

    ``readiness`` returns warnings, and raises while the server cannot answer or write.
    """

    async def healthz(_: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(_: Request) -> Response:
        try:
            warnings = await readiness()
        except ControlPlaneError as error:
            # Logged where the state changed, not at every probe.
            return PlainTextResponse(f"{error}\n", status_code=503)
        except Exception:
            log.exception("not_ready")
            return PlainTextResponse("the server is not ready; see its log\n", status_code=503)
        return PlainTextResponse("\n".join(["ok", *warnings, ""]))

    async def show_metrics(_: Request) -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return Starlette(
        routes=[
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/metrics", show_metrics),
        ]
    )


class HttpServer(uvicorn.Server):
    """Uvicorn without signal handlers: the control plane stops all ports in order.

    A connection serves one request and is aborted after ``seconds``, so that a client that does
    not send its request or does not read the answer cannot hold it open.
    """

    def __init__(self, app: Starlette, seconds: float) -> None:
        class OnePage(H11Protocol):
            def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
                super().connection_made(transport)
                self._end = self.loop.call_later(seconds, transport.abort)

            def connection_lost(self, exc: Exception | None) -> None:
                self._end.cancel()
                super().connection_lost(exc)

        super().__init__(
            uvicorn.Config(
                app,
                http=OnePage,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                # One request per connection makes the time limit of a connection one of a request.
                headers=[("connection", "close")],
                timeout_graceful_shutdown=1,
                limit_concurrency=MAX_CONNECTIONS,
            )
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
