"""Read large tensor requests without h11: parse the head by a regular expression, place the body.

h11 copies a body three times, and its parsing of the two heads costs as much as all other work of
the gateway on a 1 MB tensor. Only plain requests take this path: a head that arrives in one read,
HTTP/1.1, POST and Content-Length. h11 handles all others.
"""

import asyncio
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.h11_impl import RequestResponseCycle

from agent.gateway.http.asgi import Message

# Shorter bodies gain little from bypassing h11.
LONG_BYTES: Final = 64 << 10
_MAX_DIGITS: Final = 12
_PATH: Final = rb"(/[A-Za-z0-9._~/:-]*)"
_FIELD: Final = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t -~\x80-\xff]*\r\n"
_HEAD: Final = re.compile(rb"POST " + _PATH + rb" HTTP/1\.1\r\n((?:" + _FIELD + rb")+)\r\n")
# Length of the JSON part of the body; only requests with binary tensors send this field.
JSON_LENGTH: Final = b"inference-header-content-length"
# Fields that change the framing of the body or the permitted answers.
_NOT_PLAIN: Final = frozenset({b"transfer-encoding", b"expect", b"upgrade", b"te", b"trailer"})
# The default of HTTP/1.1, which httpx and requests send explicitly.
_KEEP: Final = b"keep-alive"
_CLOSE: Final = (b"connection", b"close")

OnReceived = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Head:
    """A request head of ``size`` bytes. Field names are in lower case."""

    path: str
    headers: list[tuple[bytes, bytes]]
    body_length: int
    size: int


def plain_head(data: memoryview) -> Head | None:
    """Parse the head at the start of ``data``; None if it is not plain or its body is short."""
    match = _HEAD.match(data)
    if match is None:
        return None
    headers = []
    for line in match[2].split(b"\r\n")[:-1]:
        name, _, value = line.partition(b":")
        headers.append((name.lower(), value.strip(b" \t")))
    fields = dict(headers)
    length = fields.get(b"content-length", b"")
    if (
        # A repeated field may be an attempt at request smuggling: leave the judgement to h11.
        len(fields) != len(headers)
        or not _NOT_PLAIN.isdisjoint(fields)
        or fields.get(b"connection", _KEEP).lower() != _KEEP
        or not fields.keys() >= {b"host", JSON_LENGTH}
        or not (length.isdigit() and len(length) <= _MAX_DIGITS)
        or int(length) < LONG_BYTES
    ):
        return None
    return Head(match[1].decode("ascii"), headers, int(length), match.end())


class Body:
    """A body that is still arriving.

    Bytes that arrive before ``receive_into`` are buffered; bytes after ``discard`` are dropped.
    """

    def __init__(self, length: int, scratch: memoryview, flow: FlowControl) -> None:
        self.missing_bytes = length
        self._scratch = scratch
        self._flow = flow
        self._early = bytearray()
        self._views: list[memoryview] = []
        self._on_received: OnReceived = lambda _: None
        self._discarding = False
        self._done: asyncio.Future[bool] | None = None

    def buffer(self) -> memoryview:
        """Return the memory that the next bytes are read into."""
        return self._views[0] if self._views else self._scratch[: self.missing_bytes]

    def received(self, data: memoryview) -> None:
        """Account for bytes that arrived; ``data`` lies in ``buffer()`` once there is a reader."""
        self.missing_bytes -= len(data)
        if not self._views:
            if not self._discarding:
                self._early += data
                if len(self._early) > len(self._scratch):
                    # No reader yet: bound the buffer; receive_into resumes.
                    self._flow.pause_reading()
            return
        self._views[0] = self._views[0][len(data) :]
        if not self._views[0]:
            del self._views[0]
        self._report(len(data))

    async def receive_into(self, views: Sequence[memoryview], on_received: OnReceived) -> bool:
        """Store the whole body in ``views``, which have its length; False if the caller hangs up.

        ``on_received`` is called with each number of bytes received. An exception that it raises
        is raised here.
        """
        self._done = asyncio.get_running_loop().create_future()
        self._on_received = on_received
        early, self._early = self._early, bytearray()
        self._views = _fill(views, early)
        self._report(len(early))
        self._flow.resume_reading()
        try:
            return await self._done
        finally:
            self.discard()

    def discard(self) -> None:
        """Drop the bytes that have yet to arrive."""
        self._views, self._early, self._discarding = [], bytearray(), True

    def connection_lost(self) -> None:
        """End ``receive_into`` with False: the connection is closed."""
        if self._done is not None and not self._done.done():
            self._done.set_result(False)

    def _report(self, count: int) -> None:
        if self._done is None or self._done.done():
            return
        try:
            self._on_received(count)
        except Exception as error:  # noqa: BLE001 - raised again by receive_into
            self._done.set_exception(error)
            self.discard()
            return
        if self.missing_bytes == 0:
            self._done.set_result(True)


class DirectCycle(RequestResponseCycle):
    """Uvicorn's record of one request and its answer, for a request that bypasses h11."""

    more_body = False
    _head = b""
    _close = False

    async def send(self, message: Any) -> None:
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        if message["type"] == "http.response.start":
            self.response_started = True
            self._head = self._response_head(message)
            return
        # Head and body in one write: each write wakes the caller once.
        self.transport.write(b"".join((self._head, message.get("body", b""))))
        self._head = b""
        if not message.get("more_body", False):
            self.response_complete = True
            self.message_event.set()
            if self._close:
                self.transport.close()
            self.on_response()

    def _response_head(self, message: Message) -> bytes:
        status, headers = message["status"], message["headers"]
        # An answer without a length (events) ends where the connection ends.
        until_close = all(name != b"content-length" for name, _ in headers)
        self._close = until_close or not self.keep_alive or _CLOSE in headers
        if self._close and _CLOSE not in headers:
            headers = [*headers, _CLOSE]
        fields = b"".join(b"%s: %s\r\n" % field for field in headers)
        return b"HTTP/1.1 %d %s\r\n%s\r\n" % (status, HTTPStatus(status).phrase.encode(), fields)


def _fill(views: Sequence[memoryview], data: bytearray) -> list[memoryview]:
    """Copy data into views, in order, and return the parts of them that are still empty."""
    empty = []
    rest = memoryview(data)
    for view in views:
        part = rest[: len(view)]
        view[: len(part)] = part
        rest = rest[len(part) :]
        if len(part) < len(view):
            empty.append(view[len(part) :])
    return empty
