"""What surrounds every call of a model: admission, the caller hanging up, errors in shape."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Final

from agent.errors import AgentError, SlotBusyError
from agent.gateway.http.asgi import ClientGoneError, Receive, Scope, Send
from agent.gateway.http.exchange import Exchange, Room, no_room
from agent.gateway.refusals import Refusal, RequestRefusedError, refusal_of

log = logging.getLogger(__name__)

Handler = Callable[[Exchange, bytes], Awaitable[None]]

# What the bodies of all requests under way may take.
BODIES_BYTES: Final = 256 << 20


@dataclass(slots=True)
class Admission:
    """Counts the requests inside, waiting ones too, and turns away those beyond the limit.

    A request is inside once its body is here: who sends slowly takes nobody's room but that of its
    bytes.
    """

    limit: int
    inside: int = 0
    refused: int = 0
    body_bytes: int = 0

    @contextlib.contextmanager
    def slot(self) -> Iterator[None]:
        """Room for one request; RequestRefusedError (429) when there is none."""
        if self.inside >= self.limit:
            self.refused += 1
            raise RequestRefusedError(
                429,
                "too_many_requests",
                f"{self.limit} requests are being answered already",
                advice="Send it again after the time in Retry-After.",
            )
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1

    @contextlib.contextmanager
    def body(self) -> Iterator[Callable[[int], None]]:
        """Room for one body, asked for as it comes; RequestRefusedError (429) beyond the limit."""
        held = 0

        def take(count: int) -> None:
            nonlocal held
            if self.body_bytes + count > BODIES_BYTES:
                self.refused += 1
                raise RequestRefusedError(
                    429,
                    "too_many_requests",
                    f"requests of {BODIES_BYTES >> 20} MiB are being read or answered already",
                    advice="Send it again after the time in Retry-After.",
                )
            held += count
            self.body_bytes += count

        try:
            yield take
        finally:
            self.body_bytes -= held


class Endpoint:
    """An ASGI application for one path that calls a model."""

    def __init__(
        self,
        handler: Handler,
        admission: Admission,
        *,
        body_limit: int,
        shape: Callable[[Refusal], object],
        room: Room = no_room,
    ) -> None:
        self._handler = handler
        self._admission = admission
        self._body_limit = body_limit
        self._shape = shape
        self._room = room

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, send)
        try:
            with self._admission.body() as take:
                body = await exchange.body(self._body_limit, take, self._room)
                with self._admission.slot():
                    await self._unless_gone(exchange, body)
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
                exchange, Refusal(500, "internal_error", "the gateway failed; see its log")
            )
        finally:
            if exchange.rest is not None:
                exchange.rest.release()

    async def _unless_gone(self, exchange: Exchange, body: bytes) -> None:
        """Answers, and stops as soon as nobody waits for it."""
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
            # Whoever else cancelled it meanwhile is to be heard.
            if hung_up and task.uncancel() == 0:
                raise ClientGoneError from None
            raise
        finally:
            waiting = False
            gone.cancel()

    async def _refuse(self, exchange: Exchange, refusal: Refusal) -> None:
        if not exchange.started:
            await exchange.json(refusal.status, self._shape(refusal), refusal.retry_seconds)
