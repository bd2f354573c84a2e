"""A disconnect cancels the generation, so that later requests are answered."""

import asyncio

import pytest
from gateway_box import Box

from artifact.manifest import Task
from runtimes.fake import FakeModel


def tensor(rows: int) -> dict[str, object]:
    return {"name": "input", "datatype": "FP32", "shape": [rows, 4], "data": [1] * rows * 4}


@pytest.mark.parametrize("stream", [True, False])
async def test_hanging_up_stops_the_generation(box: Box, stream: bool) -> None:
    await box.deploy(chat=FakeModel(token_seconds=0.02, context_length=10_000))
    with pytest.raises(TimeoutError):
        # A cancelled client closes its connection.
        async with asyncio.timeout(0.3):
            await box.complete(max_tokens=5000, stream=stream)
    # The 5000 tokens would take 100 s.
    async with asyncio.timeout(5):
        assert (await box.complete(max_tokens=2)).status_code == 200


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {"model": "embed", "input": ["text"] * 2000}),
        ("/v2/models/digits/infer", {"inputs": [tensor(100)]}),
    ],
)
async def test_hanging_up_gives_up_what_has_one_answer(
    box: Box, path: str, body: dict[str, object]
) -> None:
    """Requests that would take 100 s each, followed by a short one."""
    await box.deploy(
        embed=FakeModel(task=Task.EMBEDDING, token_seconds=0.05),
        digits=FakeModel(task=Task.TENSOR, row_seconds=1),
    )
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await box.client.post(path, json=body)
    short = {**body, "input": "text"} if "input" in body else {"inputs": [tensor(1)]}
    async with asyncio.timeout(10):
        assert (await box.client.post(path, json=short)).status_code == 200
