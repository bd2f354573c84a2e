"""The frame around every model call: admission, cancellation on disconnect, error answers."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Final

from agent.errors import AgentError, SlotBusyError
from agent.gateway.http.asgi import ClientGoneError, Receive, Scope, Send
from agent.gateway.http.exchange import Exchange, ReserveSpan, reserve_none
from agent.gateway.refusals import Refusal, RequestRefusedError, refusal_of

log = logging.getLogger(__name__)

Handler = Callable[[Exchange, bytes], Awaitable[None]]

# Limit on the memory of all request bodies together.
BODIES_BYTES: Final = 256 << 20


@dataclass(slots=True)
class Admission:
    """Counts the requests in progress, waiting ones included, and refuses those over the limit.

    A request counts once its body has arrived, so that slow senders occupy no place, only the
    memory of the bytes that they sent.
    """

    limit: int
    inside: int = 0
    refused: int = 0
    body_bytes: int = 0

    @contextlib.contextmanager
    def slot(self) -> Iterator[None]:
        """Occupy a place for one request; raise RequestRefusedError (429) if all are taken."""
        if self.inside >= self.limit:
            self.refused += 1
            raise RequestRefusedError(
                429,
                "too_many_requests",
                f"{self.limit} requests are in progress, which is the maximum",
                advice="Send it again after the time in Retry-After.",
            )
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1

    @contextlib.contextmanager
    def body(self) -> Iterator[Callable[[int], None]]:
        """Account for one body, byte count by byte count, until the context ends.

        The yielded function raises RequestRefusedError (429) beyond BODIES_BYTES.
        """
        held = 0

        def take(count: int) -> None:
            nonlocal held
            if self.body_bytes + count > BODIES_BYTES:
                self.refused += 1
                raise RequestRefusedError(
                    429,
                    "too_many_requests",
                    f"request bodies take {BODIES_BYTES >> 20} MiB already, which is the maximum",
                    advice="Send it again after the time in Retry-After.",
                )
            held += count
            self.body_bytes += count

        try:
            yield take
        finally:
            self.body_bytes -= held


class Endpoint:
    """An ASGI application for one path that calls a model.

    ``shape`` turns a refusal into a body; ``reserve`` places the bytes after a body's JSON.
    """

    def __init__(
        self,
        handler: Handler,
        admission: Admission,
        *,
        body_limit: int,
        shape: Callable[[Refusal], object],
        reserve: ReserveSpan = reserve_none,
    ) -> None:
        self._handler = handler
        self._admission = admission
        self._body_limit = body_limit
        self._shape = shape
        self._reserve = reserve

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, send)
        try:
            with self._admission.body() as take:
                body = await exchange.body(self._body_limit, take, self._reserve)
                with self._admission.slot():
                    await self._handle_until_gone(exchange, body)
        except ClientGoneError:
            log.info("client_gone path=%s request_id=%s", scope["path"], exchange.request_id)
        except AgentError as error:
            self._admission.refused += isinstance(error, SlotBusyError)
            await self._refuse(exchange, refusal_of(error))
        except Exception:
            log.exception(
                "request_failed path=%s request_id=%s", scope["path"], exchange.request_id
            )
            await self._refuse(
                exchange,
                Refusal(500, "internal_error", "the gateway failed; the agent's log has the cause"),
            )
        finally:
            if exchange.rest is not None:
                exchange.rest.release()

    async def _handle_until_gone(self, exchange: Exchange, body: bytes) -> None:
        """Run the handler, and cancel it when the caller disconnects."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - narrows for mypy
        waiting, hung_up = True, False

        async def stop() -> None:
            nonlocal hung_up
            await exchange.client_gone()
            if waiting:
                hung_up = True
                task.cancel()

        gone = asyncio.ensure_future(stop())
        try:
            await self._handler(exchange, body)
        except asyncio.CancelledError:
            # uncancel() > 0: someone else (a shutdown) cancelled the task too, and that one must
            # see the CancelledError.
            if hung_up and task.uncancel() == 0:
                raise ClientGoneError from None
            raise
        finally:
            waiting = False
            gone.cancel()

    async def _refuse(self, exchange: Exchange, refusal: Refusal) -> None:
        if not exchange.started:
            await exchange.json(refusal.status, self._shape(refusal), refusal.retry_seconds)
