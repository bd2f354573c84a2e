"""The OpenAI API for embeddings: /v1/embeddings."""

import base64
import math
import struct
import time
from functools import partial
from http import HTTPStatus

import msgspec

from agent.errors import ModelRefusedError, WorkerFailedError
from agent.gateway.http.exchange import JSON, Exchange
from agent.gateway.http.threads import run_in_thread_if_large
from agent.gateway.recording import Recording
from agent.gateway.refusals import RequestRefusedError
from agent.gateway.schemas import EmbeddingRequest, decode_strictly
from agent.serving import Serving
from agent.telemetry import Collector
from artifact.manifest import Task
from runtimes.base import Embeddings


class EmbeddingApi:
    """Handler of the embeddings endpoint."""

    def __init__(self, serving: Serving, collector: Collector) -> None:
        self._serving = serving
        self._collector = collector

    async def embeddings(self, exchange: Exchange, body: bytes) -> None:
        """POST /v1/embeddings."""
        request = decode_strictly(body, EmbeddingRequest)
        texts = [request.input] if isinstance(request.input, str) else request.input
        started = time.perf_counter()
        async with self._serving.lease(request.model) as worker:
            task = worker.spec.model.task
            if task is not Task.EMBEDDING:
                raise ModelRefusedError(
                    f"the model {request.model[:200]!a} does {task.value}, not {Task.EMBEDDING}",
                    unsupported=True,
                    advice="Call the endpoint of its task, or deploy an encoder.",
                )
            # Checked inside the recording, so that it counts as an error of the model.
            with Recording(self._collector, worker, started) as recording:
                found, recording.usage = await worker.embed(texts)
                await run_in_thread_if_large(_size(found), partial(_check_finite, found))
        # The number is known only from an embedding, so a wrong one costs a run of the model.
        if request.dimensions not in (None, found.dimensions):
            raise RequestRefusedError(
                HTTPStatus.BAD_REQUEST,
                "invalid_value",
                f"the model has {found.dimensions} dimensions; the request asks for "
                f"{request.dimensions}",
                param="dimensions",
                advice="Leave dimensions out.",
            )
        whole = await run_in_thread_if_large(_size(found), partial(_encode, request, found))
        await exchange.whole(HTTPStatus.OK, whole, [JSON])


def _size(found: Embeddings) -> int:
    return sum(map(len, found.vectors))


def _check_finite(found: Embeddings) -> None:
    """Raise WorkerFailedError for a vector with NaN or infinity, which no client can compare."""
    form = struct.Struct(f"<{found.dimensions}f")
    for index, vector in enumerate(found.vectors):
        if not math.isfinite(sum(form.unpack(vector))):
            raise WorkerFailedError(
                f"the model's embedding of text {index} is not finite",
                advice="Deploy another variant: this one's weights overflow.",
            )


def _encode(request: EmbeddingRequest, found: Embeddings) -> bytes:
    """Encode the answer vector by vector: the encoder holds the interpreter's lock meanwhile."""
    as_text = request.encoding_format == "base64"
    form = struct.Struct(f"<{found.dimensions}f")
    entries = [
        msgspec.json.encode(
            {
                "object": "embedding",
                "index": index,
                "embedding": base64.b64encode(vector).decode() if as_text else form.unpack(vector),
            }
        )
        for index, vector in enumerate(found.vectors)
    ]
    return msgspec.json.encode(
        {
            "object": "list",
            "model": request.model,
            "data": msgspec.Raw(b"[%b]" % b",".join(entries)),
            "usage": {"prompt_tokens": found.prompt_tokens, "total_tokens": found.prompt_tokens},
        }
    )
