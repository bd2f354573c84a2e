"""The binary tensor data extension, byte by byte."""

import struct
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import msgspec
import pytest
import pytest_asyncio
from gateway_box import Box, running

from artifact.manifest import Task
from runtimes.fake import FakeModel

pytestmark = pytest.mark.asyncio(loop_scope="module")

DATA = struct.pack("<4f", 1, 2.5, 3, 4)
DOUBLED = struct.pack("<4f", 2, 5, 6, 8)
INPUT = {"name": "input", "datatype": "FP32", "shape": [2, 2]}
BINARY = {**INPUT, "parameters": {"binary_data_size": len(DATA)}}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def box(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Box]:
    directory: Path = tmp_path_factory.mktemp("box")
    async with running(directory) as box:
        await box.deploy(digits=FakeModel(task=Task.TENSOR, width=2))
        yield box


async def infer(
    box: Box, request: object, data: bytes = b"", length: str | None = None
) -> httpx.Response:
    head = msgspec.json.encode(request)
    headers = {"Inference-Header-Content-Length": str(len(head)) if length is None else length}
    return await box.client.post("/v2/models/digits/infer", content=head + data, headers=headers)


def parted(answer: httpx.Response) -> tuple[dict[str, object], bytes]:
    end = int(answer.headers["inference-header-content-length"])
    return msgspec.json.decode(answer.content[:end]), answer.content[end:]


async def test_bytes_go_in_and_come_out(box: Box) -> None:
    request = {"inputs": [BINARY], "parameters": {"binary_data_output": True}}
    answer = await infer(box, request, DATA)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/octet-stream"
    head, data = parted(answer)
    assert data == DOUBLED
    assert head["outputs"] == [
        {
            "name": "output",
            "datatype": "FP32",
            "shape": [2, 2],
            "parameters": {"binary_data_size": len(DOUBLED)},
        }
    ]


async def test_each_side_may_be_bytes_or_numbers(box: Box) -> None:
    answer = await infer(box, {"inputs": [BINARY]}, DATA)
    assert answer.json()["outputs"][0]["data"] == [2, 5, 6, 8]
    asked = {"name": "output", "parameters": {"binary_data": True}}
    answer = await infer(box, {"inputs": [{**INPUT, "data": [1, 2.5, 3, 4]}], "outputs": [asked]})
    assert parted(answer)[1] == DOUBLED
    unasked = {"name": "output", "parameters": {"binary_data": False}}
    request = {
        "inputs": [BINARY],
        "outputs": [unasked],
        "parameters": {"binary_data_output": True},
    }
    answer = await infer(box, request, DATA)
    assert answer.json()["outputs"][0]["data"] == [2, 5, 6, 8]


async def test_a_large_tensor_goes_through(box: Box) -> None:
    count = 1 << 18
    data = bytes(4 * count)
    tensor = {**INPUT, "shape": [count // 2, 2], "parameters": {"binary_data_size": len(data)}}
    request = {"inputs": [tensor], "parameters": {"binary_data_output": True}}
    assert parted(await infer(box, request, data))[1] == data


async def test_the_server_says_that_it_understands_them(box: Box) -> None:
    assert (await box.client.get("/v2")).json()["extensions"] == ["binary_tensor_data"]


BAD = [
    ({"inputs": [BINARY]}, DATA[:-1], None, "at most 15"),
    ({"inputs": [BINARY]}, DATA + b"x", None, "1 bytes after the JSON belong to no input"),
    ({"inputs": [{**BINARY, "data": [1, 2, 3, 4]}]}, DATA, None, "no data in the JSON"),
    ({"inputs": [INPUT]}, b"", None, "neither data nor a binary_data_size"),
    ({"inputs": [{**BINARY, "shape": [1, 2]}]}, DATA, None, "needs 8 bytes, not 16"),
    ({"inputs": [{**BINARY, "datatype": "BYTES"}]}, DATA, None, "unknown datatype"),
    ({"inputs": [{**BINARY, "datatype": "INT32"}]}, DATA, None, "INT32"),
    ({"inputs": [BINARY]}, DATA, "99999", "the body has"),
    ({"inputs": [BINARY]}, DATA, "-1", "expected a number of bytes"),
    ({"inputs": [BINARY]}, DATA, "9" * 5000, "expected a number of bytes"),
    ({"inputs": [BINARY]}, DATA, "0", "truncated"),
    ({"inputs": [{**INPUT, "parameters": {"binary_data_size": -1}}]}, b"", None, ">= 0"),
]


@pytest.mark.parametrize(("request_", "data", "length", "words"), BAD)
async def test_what_does_not_fit_is_told(
    box: Box, request_: object, data: bytes, length: str | None, words: str
) -> None:
    answer = await infer(box, request_, data, length)
    assert answer.status_code == 400
    assert words in answer.json()["error"]


async def test_without_the_header_all_is_json(box: Box) -> None:
    content = msgspec.json.encode({"inputs": [{**INPUT, "data": [1, 2.5, 3, 4]}]})
    path = "/v2/models/digits/infer"
    assert (await box.client.post(path, content=content)).status_code == 200
    assert (await box.client.post(path, content=content + DATA)).status_code == 400


@pytest.mark.parametrize("header", ["Origin", "Sec-Fetch-Site"])
async def test_a_browser_has_to_name_the_type(box: Box, header: str) -> None:
    content = msgspec.json.encode({"inputs": [BINARY]})
    length = {"Inference-Header-Content-Length": str(len(content))}
    for headers in ({header: "x"}, {header: "x", **length}):
        answer = await box.client.post(
            "/v2/models/digits/infer", content=content + DATA, headers=headers
        )
        assert answer.status_code == 415
