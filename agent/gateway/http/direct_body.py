"""Long tensors past h11: the head in one expression, the body to where it is wanted.

h11 copies a body three times, and takes as long for the heads of a request and of its answer as all
else that a tensor of 1 MB costs the gateway. What is not plain is left to it: a head in pieces, any
other version, method or framing than HTTP/1.1, POST and Content-Length.
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

# Shorter bodies gain little.
LONG_BYTES: Final = 64 << 10
_MAX_DIGITS: Final = 12
_PATH: Final = rb"(/[A-Za-z0-9._~/:-]*)"
_FIELD: Final = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t -~\x80-\xff]*\r\n"
_HEAD: Final = re.compile(rb"POST " + _PATH + rb" HTTP/1\.1\r\n((?:" + _FIELD + rb")+)\r\n")
# The field that only requests with tensors as bytes have: where the JSON of the body ends.
JSON_LENGTH: Final = b"inference-header-content-length"
# Fields that change how the rest is read, or what may be answered.
_NOT_PLAIN: Final = frozenset({b"transfer-encoding", b"expect", b"upgrade", b"te", b"trailer"})
# What HTTP/1.1 means without that field too; httpx and requests say it all the same.
_KEEP: Final = b"keep-alive"
_CLOSE: Final = (b"connection", b"close")

Arrived = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Head:
    """A request's head: names in lower case, and how many bytes it took of what was read."""

    path: str
    headers: list[tuple[bytes, bytes]]
    body_length: int
    size: int


def plain_head(data: memoryview) -> Head | None:
    """The head that this starts with, if it is whole, plain, and a long body follows."""
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
        # None of them twice.
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
    """The bytes of a body that have yet to come.

    Until somebody says where to, they are kept here; from when nobody wants them, nowhere.
    """

    def __init__(self, length: int, scrap: memoryview, flow: FlowControl) -> None:
        self.left = length
        self._scrap = scrap
        self._flow = flow
        self._early = bytearray()
        self._views: list[memoryview] = []
        self._arrived: Arrived = lambda _: None
        self._wanted = True
        self._done: asyncio.Future[bool] | None = None

    def room(self) -> memoryview:
        """Where the next bytes go."""
        return self._views[0] if self._views else self._scrap[: self.left]

    def came(self, data: memoryview) -> None:
        """These bytes have come, into ``room`` if that was asked for."""
        self.left -= len(data)
        if not self._views:
            if self._wanted:
                self._early += data
                if len(self._early) > len(self._scrap):
                    self._flow.pause_reading()
            return
        self._views[0] = self._views[0][len(data) :]
        if not self._views[0]:
            del self._views[0]
        self._tell(len(data))

    async def into(self, views: Sequence[memoryview], arrived: Arrived) -> bool:
        """Has all of it put into these, which are as long; False when the caller hangs up.

        ``arrived`` hears how much has come, and may raise what this raises then.
        """
        self._done = asyncio.get_running_loop().create_future()
        self._arrived = arrived
        early, self._early = self._early, bytearray()
        self._views = _fill(views, early)
        self._tell(len(early))
        self._flow.resume_reading()
        try:
            return await self._done
        finally:
            self.unwanted()

    def unwanted(self) -> None:
        """Nobody wants the rest."""
        self._views, self._early, self._wanted = [], bytearray(), False

    def hung_up(self) -> None:
        """The rest will not come."""
        if self._done is not None and not self._done.done():
            self._done.set_result(False)

    def _tell(self, count: int) -> None:
        if self._done is None or self._done.done():
            return
        try:
            self._arrived(count)
        except Exception as error:  # noqa: BLE001 - it is raised where the body is awaited
            self._done.set_exception(error)
            self.unwanted()
            return
        if self.left == 0:
            self._done.set_result(True)


class LaneCycle(RequestResponseCycle):
    """A request without h11, as uvicorn keeps one, and its answer."""

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
            self._head = self._answers_head(message)
            return
        # In one piece: each send wakes the other side.
        self.transport.write(b"".join((self._head, message.get("body", b""))))
        self._head = b""
        if not message.get("more_body", False):
            self.response_complete = True
            self.message_event.set()
            if self._close:
                self.transport.close()
            self.on_response()

    def _answers_head(self, message: Message) -> bytes:
        status, headers = message["status"], message["headers"]
        # Without a length it ends with the connection.
        endless = all(name != b"content-length" for name, _ in headers)
        self._close = endless or not self.keep_alive or _CLOSE in headers
        if self._close and _CLOSE not in headers:
            headers = [*headers, _CLOSE]
        fields = b"".join(b"%s: %s\r\n" % field for field in headers)
        return b"HTTP/1.1 %d %s\r\n%s\r\n" % (status, HTTPStatus(status).phrase.encode(), fields)


def _fill(views: Sequence[memoryview], data: bytearray) -> list[memoryview]:
    """Puts data into views; what is left of them."""
    left = []
    rest = memoryview(data)
    for view in views:
        part = rest[: len(view)]
        view[: len(part)] = part
        rest = rest[len(part) :]
        if len(part) < len(view):
            left.append(view[len(part) :])
    return left
