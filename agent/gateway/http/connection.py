"""One HTTP connection, with deadlines for its request head and for reading its answer."""

import asyncio
from typing import Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from agent.gateway.http.direct_body import Body, DirectCycle, Head, plain_head

# Longest time that a connection may stay open without a request in progress.
HEAD_SECONDS = 10.0
# Longest time that a caller may leave sent bytes unread.
UNREAD_SECONDS = 30.0
# Pipelined bytes of the next request that are kept while the current one is answered.
AHEAD_BYTES: Final = 64 << 10
# Shared by all connections: asyncio calls buffer_updated before it reads anything else, and each
# read is consumed or copied there.
_BUFFER: Final = memoryview(bytearray(AHEAD_BYTES))
# Key in the ASGI scope's state; its value is the Body to await. Absent for requests that h11 reads.
BODY: Final = "flotilla.body"


class DeadlineProtocol(H11Protocol, asyncio.BufferedProtocol):
    """Disconnects callers that do not send a request head, or do not read an answer, in time.

    The deadline of a body belongs to its reader (agent.gateway.http.exchange). Answers have no
    deadline: a model may take long.
    """

    _no_request: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None
    # Body of a request that bypasses h11.
    _body: Body | None = None
    _ahead = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's
        return _BUFFER if self._body is None else self._body.buffer()

    def buffer_updated(self, nbytes: int) -> None:
        if self._body is None:
            self._receive_head(_BUFFER[:nbytes])
            return
        self._body.received(self._body.buffer()[:nbytes])
        if self._body.missing_bytes == 0:
            self._body = None

    def on_response_complete(self) -> None:
        if self._body is not None:
            # Answered before the whole body was read (a refusal): read the rest without storing it.
            self._body.discard()
        super().on_response_complete()
        self._watch()
        ahead, self._ahead = self._ahead, b""
        if ahead and not self.transport.is_closing():
            self._receive_head(memoryview(ahead))

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
            self._body.connection_lost()
        super().connection_lost(exc)

    def _receive_head(self, data: memoryview) -> None:
        if isinstance(self.cycle, DirectCycle) and not self.cycle.response_complete:
            # h11 must not see the next request before this answer is complete.
            self._ahead += data
            if len(self._ahead) > AHEAD_BYTES:
                self.flow.pause_reading()
            return
        head = plain_head(data) if self._h11_is_idle() else None
        # Bytes beyond the body are a pipelined request, which only h11 can split off.
        if head is None or len(data) > head.size + head.body_length:
            self.data_received(bytes(data))
        else:
            self._unset_keepalive_if_required()
            self._begin(head, data[head.size :])
        self._watch()

    def _h11_is_idle(self) -> bool:
        """Return True if h11 is between two requests and has buffered no part of the next."""
        idle = self.conn.our_state is h11.IDLE and self.conn.their_state is h11.IDLE
        return idle and not self.conn.trailing_data[0]

    def _begin(self, head: Head, start: memoryview) -> None:
        body = Body(head.body_length, _BUFFER, self.flow)
        body.received(start)
        self._body = body if body.missing_bytes else None
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
        self.cycle = DirectCycle(
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
        """Start the request-head deadline, or cancel it while a request is in progress."""
        if self.cycle is not None and not self.cycle.response_complete:
            _cancel(self._no_request)
            self._no_request = None
        elif self._no_request is None:
            self._no_request = self.loop.call_later(HEAD_SECONDS, self.transport.abort)


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
