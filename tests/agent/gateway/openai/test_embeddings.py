"""/v1/embeddings over real sockets."""

import base64
import math
import struct
import threading

import pytest
from gateway_box import Box

from agent.gateway.openai import embeddings
from agent.gateway.schemas import EmbeddingRequest
from agent.supervisor import Worker
from artifact.manifest import Task
from runtimes.base import Embeddings, Usage
from runtimes.fake import EMBEDDING_DIMENSIONS, FakeModel


async def deploy(box: Box) -> None:
    await box.deploy(embed=FakeModel(task=Task.EMBEDDING), chat=FakeModel())


async def test_vectors_come_in_order_as_numbers_or_as_base64(box: Box) -> None:
    await deploy(box)
    body = {"model": "embed", "input": ["one", "two"]}
    numbers = (await box.client.post("/v1/embeddings", json=body)).json()
    packed = (
        await box.client.post("/v1/embeddings", json={**body, "encoding_format": "base64"})
    ).json()
    assert numbers["usage"] == {"prompt_tokens": 6, "total_tokens": 6}
    assert [entry["index"] for entry in numbers["data"]] == [0, 1]
    for plain, text in zip(numbers["data"], packed["data"], strict=True):
        unpacked = struct.unpack(f"<{EMBEDDING_DIMENSIONS}f", base64.b64decode(text["embedding"]))
        assert plain["embedding"] == pytest.approx(unpacked)


async def test_a_large_answer_is_written_while_others_are_answered(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    await deploy(box)
    encode, threads = embeddings._encode, []

    def recorded(request: EmbeddingRequest, found: Embeddings) -> bytes:
        threads.append(threading.current_thread())
        return encode(request, found)

    monkeypatch.setattr(embeddings, "_encode", recorded)
    for count in (1, 2048):
        body = {"model": "embed", "input": ["text"] * count}
        answer = await box.client.post("/v1/embeddings", json=body)
        assert len(answer.json()["data"]) == count
    assert [thread is threading.main_thread() for thread in threads] == [True, False]


async def test_embedding_is_recorded_like_any_request(box: Box) -> None:
    await deploy(box)
    await box.client.post("/v1/embeddings", json={"model": "embed", "input": "four"})
    (window,) = box.collector.roll([])
    assert (window.labels.slot, window.requests, window.errors) == ("embed", 1, 0)
    assert (window.prompt_tokens, window.generated_tokens) == (4, 0)
    assert window.prefill_seconds > 0


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"model": "nobody"}, 404, "model_not_found"),
        ({"model": "chat"}, 400, "unsupported_task"),
        ({"input": ""}, 400, "invalid_value"),
        ({"input": []}, 400, "invalid_value"),
        ({"input": ["a"] * 2049}, 400, "invalid_value"),
        ({"input": [[1, 2, 3]]}, 400, "invalid_value"),
        ({"dimensions": 3}, 400, "invalid_value"),
        ({"encoding_format": "hex"}, 400, "invalid_value"),
    ],
)
async def test_what_cannot_be_embedded_is_refused_and_no_worker_lost(
    box: Box, change: dict[str, object], status: int, code: str
) -> None:
    await deploy(box)
    body = {"model": "embed", "input": "text", **change}
    response = await box.client.post("/v1/embeddings", json=body)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    good = await box.client.post("/v1/embeddings", json={"model": "embed", "input": "text"})
    assert good.status_code == 200


async def test_an_encoder_is_pointed_to_its_endpoint(box: Box) -> None:
    await deploy(box)
    refused = await box.complete(model="embed")
    assert refused.status_code == 400
    assert "/v1/embeddings" in refused.json()["error"]["message"]


@pytest.mark.parametrize("value", [math.nan, math.inf])
async def test_an_embedding_that_is_not_finite_is_an_error_of_the_model(
    box: Box, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    await deploy(box)

    async def embed(_: Worker, __: list[str]) -> tuple[Embeddings, Usage]:
        return Embeddings((struct.pack("<2f", 1, value),), 2, 4), Usage(4, 0, 0.1, 0.0)

    monkeypatch.setattr(Worker, "embed", embed)
    answer = await box.client.post("/v1/embeddings", json={"model": "embed", "input": "text"})
    assert answer.status_code == 500
    assert "not finite" in answer.json()["error"]["message"]
    (window,) = box.collector.roll([])
    assert (window.requests, window.errors) == (1, 1)
