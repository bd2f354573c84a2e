"""One HTTP request and its answer, bounded on the way in, on either the JSON or the event road."""

import asyncio
import mmap
import os
import re
import time
from collections.abc import Callable, Sequence
from email.utils import formatdate
from functools import lru_cache
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
    """Reads the body once, answers once. ``name`` and ``version``: a model's, from the path."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.name: str = scope.get("name", "")
        self.version: str = scope.get("version", "")
        self._headers = scope["headers"]
        self._long_body: Body | None = scope.get("state", {}).get(BODY)
        # Of the body, where it lies apart; to be dropped by who asked for it.
        self.rest: Span | None = None
        self._receive = receive
        self._send = send
        self.started = False
        asked = self.header(b"x-request-id")
        self.request_id = asked if _REQUEST_ID.match(asked) else os.urandom(16).hex()

    def header(self, name: bytes) -> str:
        """The first of this name, in lower case; empty without one."""
        return next((value.decode("latin-1") for key, value in self._headers if key == name), "")

    async def body(self, limit: int, take: Take, room: "Room") -> bytes:
        """The whole body; RequestRefusedError when it is no JSON, too long or too slow.

        ``take`` hears of every part's length before it is kept. What follows the JSON goes to
        ``rest`` where ``room`` gives some for its length, and is no part of what is returned then.
        """
        kind = self.header(b"content-type").partition(";")[0].strip().lower()
        if kind != "application/json" and not self._is_json_untold(kind):
            # Also keeps web pages out: without leave a browser may not send this type elsewhere.
            raise RequestRefusedError(
                415,
                "unsupported_media_type",
                f"the body is {kind[:100]!a}, not application/json",
                advice="Send the header Content-Type: application/json.",
            )
        try:
            async with asyncio.timeout(BODY_SECONDS):
                if self._long_body is None:
                    return await self._whole_body(limit, take)
                return await self._long(self._long_body, limit, take, room)
        except TimeoutError:
            raise RequestRefusedError(
                408, "timeout", f"the body did not come within {BODY_SECONDS:g} s"
            ) from None

    def _is_json_untold(self, kind: str) -> bool:
        """Whether this is what Triton's client sends, which names no type; no browser is."""
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

    async def _long(self, body: Body, limit: int, take: Take, room: "Room") -> bytes:
        length = int(self.header(b"content-length"))
        _check_length(length, limit)
        text = self.header(JSON_LENGTH)
        json_length = int(text) if text.isdecimal() and len(text) <= _MAX_DIGITS else length
        if json_length < length:
            self.rest = room(self, length - json_length)
        head = _memory(length if self.rest is None else json_length)
        views = [memoryview(head)]
        if self.rest is not None:
            views.append(self.rest.view)
        if not await body.into(views, take):
            raise ClientGoneError
        return bytes(head)

    async def client_gone(self) -> None:
        """Returns when the caller has hung up; only once the body has been read."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def json(
        self, status: int, payload: object, retry_seconds: int = 0, allow: str = ""
    ) -> None:
        """Answers with one JSON document."""
        headers = [JSON]
        if retry_seconds:
            headers.append((b"retry-after", str(retry_seconds).encode()))
        if allow:
            headers.append((b"allow", allow.encode()))
        await self.whole(status, msgspec.json.encode(payload), headers)

    async def whole(self, status: int, body: bytes, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """Answers with one body."""
        length = (b"content-length", str(len(body)).encode())
        await self._start(status, [*headers, length])
        await self._send({"type": "http.response.body", "body": body})

    async def open_events(self) -> None:
        """Starts an answer of server-sent events."""
        await self._start(
            200,
            [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store")],
        )

    async def events(self, data: bytes) -> None:
        """Sends some events."""
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def close_events(self) -> None:
        """Ends the answer."""
        await self._send({"type": "http.response.body", "body": b""})

    async def _start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.started = True
        headers.append((b"x-request-id", self.request_id.encode()))
        headers.append((b"date", _date(int(time.time()))))
        await self._send({"type": "http.response.start", "status": status, "headers": headers})


# Where so many bytes of a request's body may be put, if somewhere.
Room = Callable[[Exchange, int], Span | None]


def no_room(_exchange: Exchange, _length: int) -> Span | None:
    """All of the body stays together."""
    return None


def _memory(length: int) -> bytearray | mmap.mmap:
    """Room for bytes that may never come: of a mapping only what was written to is taken."""
    return mmap.mmap(-1, length) if length >= LONG_BYTES else bytearray(length)


@lru_cache(maxsize=1)
def _date(second: int) -> bytes:
    return formatdate(second, usegmt=True).encode()


def _check_length(length: int, limit: int) -> None:
    if length > limit:
        raise RequestRefusedError(413, "body_too_large", f"the body is longer than {limit} bytes")
