"""Slow, silent and malformed local callers against a real gateway with a real worker.

An honest program is served during the attack, and the connections of the attackers end.
"""

import asyncio
import gzip
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from fake_fleet import release_of, worker_spec

from agent.gateway import Gateway
from agent.gateway.http import connection, endpoint, exchange
from agent.serving import Deployment, Serving
from agent.supervisor import Supervisor
from agent.telemetry import Collector
from artifact.manifest import Route
from runtimes.fake import FakeModel
from tests.security.raw_callers import PATIENCE_SECONDS, Callers, rest

CONCURRENCY = 4
CALLERS = 100
HEAD = (
    b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\n\r\n"
)
STREAM = b'{"model": "assistant", "prompt": "hi", "max_tokens": 1000000, "stream": true}'


class Box:
    """A gateway on loopback with one model."""

    def __init__(self, port: int, callers: Callers) -> None:
        self.port, self._callers = port, callers

    async def call(self, data: bytes, receive_bytes: int = 0) -> socket.socket:
        return await self._callers.call(self.port, data, receive_bytes=receive_bytes)

    async def is_served(self) -> None:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}") as client:
            body = {"model": "assistant", "prompt": "hi", "max_tokens": 2}
            answer = await client.post("/v1/completions", json=body, timeout=PATIENCE_SECONDS)
        assert answer.status_code == 200, answer.text


@pytest.fixture
async def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Box]:
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.5)
    supervisor, callers = Supervisor(), Callers()
    serving = Serving(supervisor)
    gateway = Gateway(serving, Collector(), dict, max_concurrency=CONCURRENCY)
    try:
        _, _, port = (await gateway.start("127.0.0.1")).rpartition(":")
        spec = worker_spec(tmp_path, FakeModel(context_length=1 << 20))
        release = release_of(spec, routes=(Route(name="assistant", slot="chat"),))
        await serving.swap(Deployment(release, {"chat": await supervisor.start(spec)}))
        yield Box(int(port), callers)
    finally:
        callers.close()
        await gateway.stop()
        await supervisor.close()


@pytest.mark.parametrize("sent", [b"", b"GET /healthz HTTP/1.1\r\nhost: local", b"G"])
async def test_callers_that_send_no_whole_head_are_let_go_and_hold_up_nobody(
    box: Box, sent: bytes
) -> None:
    callers = [await box.call(sent) for _ in range(CALLERS)]
    await box.is_served()
    assert await asyncio.gather(*map(rest, callers)) == [b""] * CALLERS


async def test_callers_whose_body_dribbles_take_no_room_and_are_let_go(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "BODY_SECONDS", 1.0)
    callers = [await box.call(HEAD % 100 + b"{") for _ in range(CALLERS)]
    await box.is_served()
    answers = await asyncio.gather(*map(rest, callers))
    assert {answer.split(b"\r\n")[0] for answer in answers} == {b"HTTP/1.1 408 Request Timeout"}


async def test_callers_that_never_read_give_their_room_back(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "UNREAD_SECONDS", 0.3)
    callers = [
        await box.call(HEAD % len(STREAM) + STREAM, receive_bytes=4096) for _ in range(CONCURRENCY)
    ]
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            try:
                await box.is_served()
                break
            except AssertionError as full:
                assert "too_many_requests" in str(full)  # noqa: PT017 - any other answer is wrong
    for caller in callers:
        assert b"[DONE]" not in await rest(caller)


async def test_bodies_take_no_more_memory_than_is_meant_for_all_of_them(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "BODIES_BYTES", 1 << 20)
    first = await box.call(HEAD % 900_000 + b" " * 600_000)
    second = await box.call(HEAD % 900_000 + b" " * 600_000)
    answered, _ = await asyncio.wait(
        {asyncio.create_task(rest(first)), asyncio.create_task(rest(second))},
        return_when=asyncio.FIRST_COMPLETED,
    )
    assert b"429 Too Many Requests" in answered.pop().result()
    await box.is_served()


async def test_a_compressed_body_is_not_unpacked(box: Box) -> None:
    bomb = gzip.compress(bytes(100 << 20))
    packed = HEAD.replace(b"\r\n\r\n", b"\r\ncontent-encoding: gzip\r\nconnection: close\r\n\r\n")
    answer = await rest(await box.call(packed % len(bomb) + bomb))
    assert answer.startswith(b"HTTP/1.1 400 ")
    await box.is_served()


@pytest.mark.parametrize(
    "garbage",
    [
        bytes(range(256)),
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /../../etc/passwd HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: localhost\r\n" + b"x: " + b"y" * (1 << 20),
        b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: -1\r\n\r\n",
        HEAD.replace(b"\r\n\r\n", b"\r\ncontent-length: 4\r\n\r\n{}{}") % 3,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
async def test_what_is_no_request_is_refused_and_ends_the_connection(
    box: Box, garbage: bytes
) -> None:
    try:
        answer = await rest(await box.call(garbage))
    except ConnectionError:
        answer = b""
    assert answer == b"" or answer.startswith(b"HTTP/1.1 4"), answer[:100]
    await box.is_served()
