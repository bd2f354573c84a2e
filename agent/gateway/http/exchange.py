"""One HTTP request and its answer: a bounded body in, a JSON document or server-sent events out."""

import asyncio
import mmap
import os
import re
import time
from collections.abc import Callable, Sequence
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import Final

import msgspec

from agent.gateway.http.asgi import ClientGoneError, Receive, Scope, Send
from agent.gateway.http.connection import BODY
from agent.gateway.http.direct_body import JSON_LENGTH, LONG_BYTES, Body
from agent.gateway.refusals import RequestRefusedError
from agent.worker.region import Span

BODY_SECONDS: Final = 30.0
_REQUEST_ID: Final = re.compile(r"^[A-Za-z0-9._-]{1,128}\Z")
JSON: Final = (b"content-type", b"application/json")
_MAX_DIGITS: Final = 12

Take = Callable[[int], None]


class Exchange:
    """Reads one body and sends one answer.

    ``name`` and ``version`` are the model's, taken from the path; empty if the path has none.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.name: str = scope.get("name", "")
        self.version: str = scope.get("version", "")
        self._headers = scope["headers"]
        self._long_body: Body | None = scope.get("state", {}).get(BODY)
        # Bytes after the JSON that were placed in shared memory; the endpoint drops the span.
        self.rest: Span | None = None
        self._receive = receive
        self._send = send
        self.started = False
        asked = self.header(b"x-request-id")
        self.request_id = asked if _REQUEST_ID.match(asked) else os.urandom(16).hex()

    def header(self, name: bytes) -> str:
        """Return the first value of a field, empty if absent; ``name`` is in lower case."""
        return next((value.decode("latin-1") for key, value in self._headers if key == name), "")

    async def body(self, limit: int, take: Take, reserve: "ReserveSpan") -> bytes:
        """Read the whole body.

        ``take`` is called with the length of each part before the part is stored. If ``reserve``
        returns a span for the bytes after the JSON, these go there (``rest``) and are not part of
        the returned bytes. Raises RequestRefusedError if the body is not JSON, exceeds ``limit``
        bytes or arrives too slowly.
        """
        kind = self.header(b"content-type").partition(";")[0].strip().lower()
        if kind != "application/json" and not self._is_triton_client(kind):
            # Also stops cross-site requests of web pages: a browser sends this content type to
            # another origin only after a CORS preflight, which the gateway does not grant.
            raise RequestRefusedError(
                415,
                "unsupported_media_type",
                f"the Content-Type is {kind[:100]!a}; expected application/json",
                advice="Send the header Content-Type: application/json.",
            )
        try:
            async with asyncio.timeout(BODY_SECONDS):
                if self._long_body is None:
                    return await self._whole_body(limit, take)
                return await self._read_long(self._long_body, limit, take, reserve)
        except TimeoutError:
            raise RequestRefusedError(
                408, "timeout", f"the body did not arrive within {BODY_SECONDS:g} s"
            ) from None

    def _is_triton_client(self, kind: str) -> bool:
        """Recognise requests of Triton's client, which send JSON without application/json.

        Browsers are excluded by the fields that they always send.
        """
        browser = self.header(b"origin") or self.header(b"sec-fetch-site")
        return not browser and (kind == "" or self.header(JSON_LENGTH) != "")

    async def _whole_body(self, limit: int, take: Take) -> bytes:
        parts: list[bytes] = []
        length, more = 0, True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            part = message.get("body", b"")
            length += len(part)
            _check_length(length, limit)
            take(len(part))
            parts.append(part)
            more = message.get("more_body", False)
        return b"".join(parts)

    async def _read_long(self, body: Body, limit: int, take: Take, reserve: "ReserveSpan") -> bytes:
        length = int(self.header(b"content-length"))
        _check_length(length, limit)
        text = self.header(JSON_LENGTH)
        json_length = int(text) if text.isdecimal() and len(text) <= _MAX_DIGITS else length
        if json_length < length:
            self.rest = reserve(self, length - json_length)
        head = _allocate(length if self.rest is None else json_length)
        views = [memoryview(head)]
        if self.rest is not None:
            views.append(self.rest.view)
        if not await body.receive_into(views, take):
            raise ClientGoneError
        return bytes(head)

    async def client_gone(self) -> None:
        """Wait until the caller disconnects. Call it only after the body was read."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def json(
        self, status: int, payload: object, retry_seconds: int = 0, allow: str = ""
    ) -> None:
        """Answer with one JSON document."""
        headers = [JSON]
        if retry_seconds:
            headers.append((b"retry-after", str(retry_seconds).encode()))
        if allow:
            headers.append((b"allow", allow.encode()))
        if status == HTTPStatus.INTERNAL_SERVER_ERROR:
            # OpenAI's and Anthropic's clients repeat a 500 twice by themselves unless this is set:
            # a request that ends the model's process must not end it three times.
            headers.append((b"x-should-retry", b"false"))
        await self.whole(status, msgspec.json.encode(payload), headers)

    async def whole(self, status: int, body: bytes, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """Answer with one body."""
        length = (b"content-length", str(len(body)).encode())
        await self._start(status, [*headers, length])
        await self._send({"type": "http.response.body", "body": body})

    async def open_events(self) -> None:
        """Start an answer of server-sent events."""
        await self._start(
            200,
            [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store")],
        )

    async def events(self, data: bytes) -> None:
        """Send encoded events."""
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def close_events(self) -> None:
        """End the answer."""
        await self._send({"type": "http.response.body", "body": b""})

    async def _start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.started = True
        headers.append((b"x-request-id", self.request_id.encode()))
        headers.append((b"date", _date(int(time.time()))))
        await self._send({"type": "http.response.start", "status": status, "headers": headers})


# Reserves shared memory for the bytes after a body's JSON; None leaves them in the body.
ReserveSpan = Callable[[Exchange, int], Span | None]


def reserve_none(_exchange: Exchange, _length: int) -> Span | None:
    """Leave the whole body in one piece."""
    return None


def _allocate(length: int) -> bytearray | mmap.mmap:
    """Allocate ``length`` bytes, which a caller may announce and never send.

    An anonymous mapping takes memory only for the pages that are written.
    """
    return mmap.mmap(-1, length) if length >= LONG_BYTES else bytearray(length)


@lru_cache(maxsize=1)
def _date(second: int) -> bytes:
    return formatdate(second, usegmt=True).encode()


def _check_length(length: int, limit: int) -> None:
    if length > limit:
        raise RequestRefusedError(
            413, "body_too_large", f"the body is longer than the maximum of {limit:,} bytes"
        )
