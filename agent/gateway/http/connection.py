"""One HTTP connection, which no slow caller keeps for ever."""

import asyncio
from typing import Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from agent.gateway.http.direct_body import Body, Head, LaneCycle, plain_head

# How long a connection may last without a request under way.
HEAD_SECONDS = 10.0
# How long a caller may leave unread what it was sent.
UNREAD_SECONDS = 30.0
# What a caller may send of its next request while one is answered.
AHEAD_BYTES: Final = 64 << 10
# All connections read into this one: what has come is taken before anything else is read.
_BUFFER: Final = memoryview(bytearray(AHEAD_BYTES))
# In a scope's state, where it is there: the Body that is to be awaited.
BODY: Final = "flotilla.body"


class PatientProtocol(H11Protocol, asyncio.BufferedProtocol):
    """Cuts a caller off that sends no whole request head, or does not read its answer, in time.

    How long a body may take is for who reads it (agent.gateway.http.exchange); an answer may
    take as long as the model does.
    """

    _no_request: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None
    # Of a request that h11 does not see.
    _body: Body | None = None
    _ahead = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's
        return _BUFFER if self._body is None else self._body.room()

    def buffer_updated(self, nbytes: int) -> None:
        if self._body is None:
            self._came(_BUFFER[:nbytes])
            return
        self._body.came(self._body.room()[:nbytes])
        if self._body.left == 0:
            self._body = None

    def on_response_complete(self) -> None:
        if self._body is not None:
            self._body.unwanted()
        super().on_response_complete()
        self._watch()
        ahead, self._ahead = self._ahead, b""
        if ahead and not self.transport.is_closing():
            self._came(memoryview(ahead))

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(UNREAD_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        _cancel(self._unread)

    def connection_lost(self, exc: Exception | None) -> None:
        _cancel(self._no_request)
        _cancel(self._unread)
        if self._body is not None:
            self._body.hung_up()
        super().connection_lost(exc)

    def _came(self, data: memoryview) -> None:
        if isinstance(self.cycle, LaneCycle) and not self.cycle.response_complete:
            self._ahead += data
            if len(self._ahead) > AHEAD_BYTES:
                self.flow.pause_reading()
            return
        head = plain_head(data) if self._h11_rests() else None
        if head is None or len(data) > head.size + head.body_length:
            self.data_received(bytes(data))
        else:
            self._unset_keepalive_if_required()
            self._begin(head, data[head.size :])
        self._watch()

    def _h11_rests(self) -> bool:
        """Whether h11 is between two requests, and has nothing of the next."""
        idle = self.conn.our_state is h11.IDLE and self.conn.their_state is h11.IDLE
        return idle and not self.conn.trailing_data[0]

    def _begin(self, head: Head, start: memoryview) -> None:
        body = Body(head.body_length, _BUFFER, self.flow)
        body.came(start)
        self._body = body if body.left else None
        self.headers = head.headers
        self.scope = {
            "type": "http",
            "asgi": {"version": self.asgi_version, "spec_version": "2.3"},
            "http_version": "1.1",
            "server": self.server,
            "client": self.client,
            "scheme": "http",
            "method": "POST",
            "root_path": "",
            "path": head.path,
            "raw_path": head.path.encode(),
            "query_string": b"",
            "headers": head.headers,
            "state": {BODY: body},
        }
        self.cycle = LaneCycle(
            scope=self.scope,
            conn=self.conn,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=[],
            message_event=asyncio.Event(),
            on_response=self.on_response_complete,
        )
        self.cycle.more_body = False
        task = self.loop.create_task(self.cycle.run_asgi(self.app))
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)

    def _watch(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            _cancel(self._no_request)
            self._no_request = None
        elif self._no_request is None:
            self._no_request = self.loop.call_later(HEAD_SECONDS, self.transport.abort)


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
