"""Large tensor requests that bypass h11, byte by byte over real sockets."""

import array
import asyncio
import mmap
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio
from gateway_box import Box, running

from agent.gateway.application import TENSOR_BODY_BYTES
from agent.gateway.http import endpoint, exchange
from agent.gateway.http.direct_body import LONG_BYTES, plain_head
from agent.worker.region import REGION_BYTES, Region
from artifact.manifest import Route, Share, Task
from runtimes.fake import FakeModel

pytestmark = pytest.mark.asyncio(loop_scope="module")

PATH = "/v2/models/digits/infer"
ROWS = LONG_BYTES // 8 + 1
VALUES = array.array("f", range(2 * ROWS))
DATA = VALUES.tobytes()
DOUBLED = array.array("f", (2 * value for value in VALUES)).tobytes()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def box(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Box]:
    directory: Path = tmp_path_factory.mktemp("box")
    async with running(directory) as box:
        await box.deploy(
            digits=FakeModel(task=Task.TENSOR, width=2), chat=FakeModel(reply="abcdefgh")
        )
        yield box


def region(box: Box) -> Region:
    assert box.serving.deployment is not None
    found = box.serving.deployment.workers["digits"].region()
    assert found is not None
    return found


def infer_json(size: int = len(DATA), rows: int = ROWS) -> bytes:
    tensor = {
        "name": "input",
        "datatype": "FP32",
        "shape": [rows, 2],
        "parameters": {"binary_data_size": size},
    }
    return msgspec.json.encode(
        {"inputs": [tensor], "parameters": {"binary_data_output": True}, "id": "1"}
    )


def head(length: int, json_length: int, *fields: str, path: str = PATH) -> bytes:
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: localhost",
        f"Content-Length: {length}",
        f"Inference-Header-Content-Length: {json_length}",
        *fields,
    ]
    return "\r\n".join([*lines, "", ""]).encode()


def request(json: bytes | None = None, data: bytes = DATA, path: str = PATH) -> bytes:
    json = infer_json() if json is None else json
    return head(len(json) + len(data), len(json), path=path) + json + data


class Caller:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    async def send(self, data: bytes, *cuts: int) -> None:
        """Send pieces that the server reads one by one."""
        for start, end in zip((0, *cuts), (*cuts, len(data)), strict=True):
            self.writer.write(data[start:end])
            await self.writer.drain()
            if end < len(data):
                await asyncio.sleep(0.02)

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        async with asyncio.timeout(20):
            status, *lines = (await self._reader.readuntil(b"\r\n\r\n")).decode().splitlines()
            pairs = (line.partition(":") for line in lines if line)
            fields = {name.lower(): value.strip() for name, _, value in pairs}
            length = int(fields.get("content-length", "-1"))
            body = await (self._reader.readexactly(length) if length >= 0 else self._reader.read())
        return int(status.split()[1]), fields, body

    async def doubled(self) -> bytes:
        """Return the tensor of the answer."""
        status, fields, body = await self.answer()
        assert status == 200, body
        return body[int(fields["inference-header-content-length"]) :]

    async def works(self) -> None:
        """Assert that the next request on the same connection is answered."""
        await self.send(request())
        assert await self.doubled() == DOUBLED


@asynccontextmanager
async def calling(box: Box) -> AsyncIterator[Caller]:
    url = box.client.base_url
    reader, writer = await asyncio.open_connection(url.host, url.port)
    try:
        yield Caller(reader, writer)
    finally:
        writer.close()
        await writer.wait_closed()


def is_free(box: Box) -> bool:
    """Return True if the shared region is free."""
    span = region(box).take(REGION_BYTES)
    if span is not None:
        span.release()
    return span is not None


async def comes(holds: Callable[[], bool]) -> bool:
    """Return True if the condition holds within five seconds."""
    for _ in range(500):
        if holds():
            return True
        await asyncio.sleep(0.01)
    return False


async def comes_to(box: Box, *, free: bool) -> bool:
    """Return True if the region becomes free (or not free) within five seconds."""
    return await comes(lambda: is_free(box) == free)


async def have_come(box: Box, count: int) -> bool:
    """Return True if the counted bytes of bodies reach this value within five seconds."""
    return await comes(lambda: box.gateway._admission.body_bytes == count)


async def test_a_long_tensor_lies_in_shared_memory_and_so_does_the_answer(box: Box) -> None:
    written = []
    shared = region(box)
    take = shared.take

    def seen(length: int) -> object:
        written.append(length)
        return take(length)

    shared.take = seen  # type: ignore[assignment,method-assign]
    try:
        async with calling(box) as caller:
            for _ in range(2):
                await caller.works()
    finally:
        del shared.take
    # The first answer released its part of the region.
    assert written[:2] == [len(DATA), len(DATA)]
    assert written[2] >= len(DOUBLED)
    assert await comes_to(box, free=True)


HEAD, JSON = len(head(len(infer_json()) + len(DATA), len(infer_json()))), len(infer_json())


@pytest.mark.parametrize(
    "cuts",
    [
        (10,),
        (HEAD,),
        (HEAD - 2,),
        (HEAD + 10,),
        (HEAD + JSON,),
        (HEAD + JSON + 1,),
        (HEAD, HEAD + JSON, HEAD + JSON + 4099),
        (HEAD + 1, HEAD + 2, HEAD + JSON + len(DATA) - 1),
    ],
)
async def test_it_may_come_in_any_pieces(box: Box, cuts: tuple[int, ...]) -> None:
    async with calling(box) as caller:
        await caller.send(request(), *cuts)
        assert await caller.doubled() == DOUBLED
        await caller.works()


async def test_without_room_in_shared_memory_it_goes_as_before(box: Box) -> None:
    span = region(box).take(REGION_BYTES)
    assert span is not None
    try:
        async with calling(box) as caller:
            await caller.works()
    finally:
        span.release()


@pytest.mark.parametrize("cut", [0, 1, 100])
async def test_requests_may_follow_before_the_answer(box: Box, cut: int) -> None:
    small = b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n"
    first = request()
    async with calling(box) as caller:
        await caller.send(first + request() + small + request(), len(first) + cut)
        assert await caller.doubled() == DOUBLED
        assert await caller.doubled() == DOUBLED
        assert (await caller.answer())[0] == 200
        assert await caller.doubled() == DOUBLED


@pytest.mark.parametrize(
    ("sent", "status", "words"),
    [
        (request(path="/v2/models/none/infer"), 404, "is not served here"),
        (request(path="/v2/nothing"), 404, "no path"),
        (request(infer_json(size=len(DATA) - 1)), 400, "bytes"),
        (request(infer_json(rows=ROWS - 1)), 400, "bytes"),
        (request(data=DATA + b"x"), 400, "belong to no input"),
        (request(infer_json(size=1 << 30)), 400, "bytes left after the JSON"),
        (request(b"{nonsense"), 400, "malformed"),
        (request(b""), 400, "truncated"),
    ],
)
async def test_what_does_not_fit_is_told_and_the_connection_goes_on(
    box: Box, sent: bytes, status: int, words: str
) -> None:
    async with calling(box) as caller:
        await caller.send(sent)
        answer = await caller.answer()
        assert (answer[0], words in answer[2].decode()) == (status, True), answer
        await caller.works()
    assert await comes_to(box, free=True)


async def test_a_body_too_long_is_refused_before_it_comes(box: Box) -> None:
    json = infer_json()
    length = TENSOR_BODY_BYTES + 1
    async with calling(box) as caller:
        await caller.send(head(length, len(json)))
        assert (await caller.answer())[0] == 413
        await caller.send(bytes(length))
        await caller.works()


async def test_a_browser_has_to_name_the_type(box: Box) -> None:
    json = infer_json()
    async with calling(box) as caller:
        await caller.send(head(len(json) + len(DATA), len(json), "Origin: x") + json + DATA)
        assert (await caller.answer())[0] == 415
        await caller.works()


async def test_another_hosts_name_is_refused(box: Box) -> None:
    async with calling(box) as caller:
        await caller.send(request().replace(b"Host: localhost", b"Host: evil.test"))
        assert (await caller.answer())[0] == 403


async def test_who_hangs_up_midway_leaves_nothing(box: Box) -> None:
    async with calling(box) as caller:
        await caller.send(request()[:-10])
        assert await comes_to(box, free=False)
    assert await comes_to(box, free=True)


async def test_a_slow_body_is_told_and_leaves_nothing(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "BODY_SECONDS", 0.05)
    async with calling(box) as caller:
        await caller.send(request()[:-10])
        assert (await caller.answer())[0] == 408
        assert await comes_to(box, free=True)
        monkeypatch.undo()
        await caller.send(b"0123456789")
        await caller.works()


async def test_a_body_counts_as_it_comes_against_all_bodies(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "BODIES_BYTES", len(DATA))
    async with calling(box) as caller:
        await caller.send(request())
        assert (await caller.answer())[0] == 429
        monkeypatch.undo()
        assert await comes_to(box, free=True)
        await caller.works()


def stream_request() -> bytes:
    body = msgspec.json.encode({"model": "chat", "prompt": "hi", "stream": True, "max_tokens": 3})
    body += b" " * LONG_BYTES
    said = head(len(body), len(body), "Content-Type: application/json", path="/v1/completions")
    return said + body


async def test_an_answer_without_a_length_ends_with_the_connection(box: Box) -> None:
    async with calling(box) as caller:
        await caller.send(stream_request())
        status, fields, answer = await caller.answer()
    assert (status, fields["connection"]) == (200, "close")
    assert answer.rstrip().endswith(b"data: [DONE]")


async def test_what_follows_a_request_that_ends_the_connection_is_not_begun(box: Box) -> None:
    async with calling(box) as caller:
        await caller.send(stream_request() + request()[:-10])
        await caller.answer()
        assert await comes_to(box, free=True)
        assert box.gateway._admission.body_bytes == 0


async def test_a_model_that_was_swapped_meanwhile_gets_it_too(box: Box) -> None:
    sent = request()
    async with calling(box) as caller:
        await caller.send(sent[:-10])
        await box.deploy("2", digits=FakeModel(task=Task.TENSOR, width=2), chat=FakeModel())
        await caller.send(sent[-10:])
        assert await caller.doubled() == DOUBLED


async def test_what_may_be_for_another_model_lies_in_no_models_memory(box: Box) -> None:
    tensor = FakeModel(task=Task.TENSOR, width=2)
    both = Route(name="both", split=(Share(slot="digits", weight=1), Share(slot="twin", weight=1)))
    await box.deploy("3", digits=tensor, twin=tensor, chat=FakeModel(), routes=(both,))
    sent = request(path="/v2/models/both/infer")
    async with calling(box) as caller:
        await caller.send(sent[:-10])
        assert await have_come(box, JSON + len(DATA) - 10)
        assert is_free(box)
        await caller.send(sent[-10:])
        assert await caller.doubled() == DOUBLED


PLAIN = head(1 << 20, 100, "X-Thing: some\tthing: else", "Connection: Keep-Alive", "Empty:")


async def test_a_plain_head_is_read() -> None:
    found = plain_head(memoryview(PLAIN + b"body"))
    assert found is not None
    assert (found.path, found.body_length, found.size) == (PATH, 1 << 20, len(PLAIN))
    assert dict(found.headers) == {
        b"host": b"localhost",
        b"content-length": b"1048576",
        b"inference-header-content-length": b"100",
        b"x-thing": b"some\tthing: else",
        b"connection": b"Keep-Alive",
        b"empty": b"",
    }


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"POST", b"PUT"),
        (b"HTTP/1.1", b"HTTP/1.0"),
        (b"/v2/", b"/v%32/"),
        (b"/infer", b"/infer?x=1"),
        (b"/v2/", b"http://localhost/v2/"),
        (b"Host: localhost\r\n", b""),
        (b"Host:", b"Host :"),
        (b"Host: localhost", b"Host: localhost\r\nHost: localhost"),
        (b"Content-Length: 1048576", b"Content-Length: 1048576\r\nContent-Length: 1048576"),
        (b"Content-Length: 1048576", b"Content-Length: +1048576"),
        (b"Content-Length: 1048576", b"Content-Length: 1048576, 1048576"),
        (b"Content-Length: 1048576", b"Content-Length: " + b"1" * 13),
        (b"Content-Length: 1048576", b"Content-Length: %d" % (LONG_BYTES - 1)),
        (b"Inference-Header-Content-Length", b"X-Other"),
        (b"Empty:", b"Transfer-Encoding: chunked"),
        (b"Empty:", b"Expect: 100-continue"),
        (b"Empty:", b"Connection: close"),
        (b"Empty:", b"Connection: keep-alive, close"),
        (b"Empty:", b"Connection: keep-alive\r\nConnection: close"),
        (b"Empty:", b"Upgrade: websocket"),
        (b"Empty:", b" folded"),
        (b"Empty:", b"Empty:\x00"),
        (b"Empty:\r\n", b"Empty:\n"),
        (b"\r\n\r\n", b"\r\n"),
    ],
)
async def test_what_is_not_plain_is_left_to_h11(old: bytes, new: bytes) -> None:
    assert old in PLAIN
    changed = (
        PLAIN.replace(old, new)
        if old != b"Content-Length: 1048576"
        else PLAIN.replace(b"\r\n" + old, b"\r\n" + new, 1)
    )
    assert plain_head(memoryview(changed)) is None


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


@pytest.mark.parametrize("words", [str(TENSOR_BODY_BYTES - 1), "nonsense"])
async def test_a_body_that_is_only_announced_takes_no_memory(box: Box, words: str) -> None:
    said = head(TENSOR_BODY_BYTES, 0).replace(b"Length: 0", b"Length: " + words.encode())
    before = resident_bytes()
    async with AsyncExitStack() as stack:
        callers = [await stack.enter_async_context(calling(box)) for _ in range(8)]
        for caller in callers:
            await caller.send(said + b"{")
        assert await have_come(box, len(callers))
        assert resident_bytes() - before < TENSOR_BODY_BYTES
