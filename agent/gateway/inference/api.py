"""The Open Inference Protocol v2 for tensors: health, metadata, infer."""

import time
from functools import partial
from http import HTTPStatus
from typing import Final

from agent.gateway.http.direct_body import JSON_LENGTH
from agent.gateway.http.exchange import JSON, Exchange
from agent.gateway.http.threads import run_in_thread_if_large
from agent.gateway.inference.bodies import is_binary, json_end, read, write
from agent.gateway.recording import Recording
from agent.gateway.refusals import RequestRefusedError
from agent.gateway.schemas import InferRequest
from agent.serving import Serving
from agent.telemetry import Collector
from agent.worker.region import WORTH_BYTES, Span
from runtimes.base import TensorSpec, TensorValue

_BINARY: Final = (b"content-type", b"application/octet-stream")


class TensorApi:
    """Handlers of the tensor endpoints; the path names the model."""

    def __init__(self, serving: Serving, collector: Collector) -> None:
        self._serving = serving
        self._collector = collector

    async def infer(self, exchange: Exchange, body: bytes) -> None:
        """POST /v2/models/NAME[/versions/VERSION]/infer."""
        name, header_length = exchange.name, exchange.header(JSON_LENGTH)
        size = json_end(body, header_length)
        request, inputs = await run_in_thread_if_large(
            size, partial(read, body, header_length, exchange.rest)
        )
        started = time.perf_counter()
        async with self._serving.lease(name, exchange.version) as worker:
            with Recording(self._collector, worker, started):
                outputs = _select_outputs(await worker.infer(inputs), request)
            # Read within the lease: afterwards a swap may have replaced the worker.
            version = worker.spec.model.version
        answer = {
            "model_name": name,
            "model_version": version,
            "id": request.id or exchange.request_id,
        }
        size = sum(len(out.data) for out in outputs if not is_binary(out, request))
        whole, end = await run_in_thread_if_large(size, partial(write, answer, outputs, request))
        headers = [JSON]
        if end < len(whole):
            headers = [_BINARY, (JSON_LENGTH, str(end).encode())]
        await exchange.whole(HTTPStatus.OK, whole, headers)

    def reserve(self, exchange: Exchange, length: int) -> Span | None:
        """Reserve the worker's shared memory for tensors that are arriving; None for small ones."""
        deployment = self._serving.deployment
        if deployment is None or length < WORTH_BYTES:
            return None
        # A composed route has no slot here: its worker is chosen later, and no worker may read
        # the tensors meant for another.
        route = deployment.routes.get(exchange.name)
        worker = deployment.workers.get(route.slot) if route else None
        region = worker.region() if worker else None
        return region.take(length) if region else None

    async def describe(self, exchange: Exchange) -> None:
        """GET /v2/models/NAME[/versions/VERSION]."""
        worker = self._serving.worker(exchange.name, exchange.version)
        inputs, outputs = worker.tensors()
        await exchange.json(
            200,
            {
                "name": exchange.name,
                "versions": self._serving.versions(exchange.name),
                "platform": f"flotilla_{worker.spec.variant.runtime}",
                "inputs": [_declared(spec) for spec in inputs],
                "outputs": [_declared(spec) for spec in outputs],
                "loaded": worker.stats().loaded,
            },
        )

    async def ready(self, exchange: Exchange) -> None:
        """GET /v2/models/NAME[/versions/VERSION]/ready.

        A model that is unloaded while idle is ready: its next request loads it.
        """
        worker = self._serving.worker(exchange.name, exchange.version)
        stats = worker.stats()
        status = HTTPStatus.OK if stats.live else HTTPStatus.SERVICE_UNAVAILABLE
        await exchange.json(
            status, {"name": exchange.name, "ready": stats.live, "loaded": stats.loaded}
        )


def _select_outputs(outputs: list[TensorValue], request: InferRequest) -> list[TensorValue]:
    if not request.outputs:
        return outputs
    found = {output.name: output for output in outputs}
    for wanted in request.outputs:
        if wanted.name not in found:
            raise RequestRefusedError(
                HTTPStatus.BAD_REQUEST,
                "invalid_value",
                f"the model has no output {wanted.name!a}",
                advice=f"Use one of: {', '.join(found)}.",
            )
    return [found[wanted.name] for wanted in request.outputs]


def _declared(spec: TensorSpec) -> dict[str, object]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}
