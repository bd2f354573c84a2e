"""An upload is bounded from message to message, not as a whole."""

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest
from control_plane import Plane
from flotilla.v1 import model_pb2

from controlplane.api import interceptor


async def test_an_upload_that_goes_on_may_take_longer_than_any_pause_in_it(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interceptor, "UPLOAD_IDLE_SECONDS", 0.5)
    began = asyncio.get_running_loop().time()

    async def chunks() -> AsyncIterator[model_pb2.UploadChunksRequest]:
        for number in range(1000):
            yield model_pb2.UploadChunksRequest(data=bytes([number % 256]) * 10)
            await asyncio.sleep(0.05)
            if asyncio.get_running_loop().time() - began > 1.0:
                return

    assert (await plane.model().UploadChunks(chunks())).chunks_stored > 1


async def test_an_upload_that_stops_is_ended(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interceptor, "UPLOAD_IDLE_SECONDS", 0.1)

    async def chunks() -> AsyncIterator[model_pb2.UploadChunksRequest]:
        yield model_pb2.UploadChunksRequest(data=b"weights")
        await asyncio.Event().wait()

    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await plane.model().UploadChunks(chunks())
    assert ended.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
