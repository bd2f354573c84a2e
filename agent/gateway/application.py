"""The routing table of the local HTTP endpoint."""

import ipaddress
from collections.abc import Awaitable, Callable, Mapping
from functools import lru_cache
from http import HTTPStatus
from typing import Any

from agent.errors import AgentError
from agent.gateway.http.asgi import Application, Receive, Router, Scope, Send
from agent.gateway.http.endpoint import Admission, Endpoint, Handler
from agent.gateway.http.exchange import Exchange, ReserveSpan, reserve_none
from agent.gateway.inference.api import TensorApi
from agent.gateway.inference.bodies import EXTENSION
from agent.gateway.metrics.exposition import CONTENT_TYPE
from agent.gateway.metrics.page import exposition
from agent.gateway.openai.embeddings import EmbeddingApi
from agent.gateway.openai.text import TextApi
from agent.gateway.refusals import Refusal, refusal_of
from agent.serving import Serving
from agent.supervisor import Worker
from agent.telemetry import Collector
from artifact.manifest import Route

# 1 MiB of text is about 250,000 tokens; tensors are larger.
TEXT_BODY_BYTES = 1 << 20
TENSOR_BODY_BYTES = 16 << 20

Status = Callable[[], Mapping[str, Any]]
Answer = Callable[[Exchange], Awaitable[None]]
Shape = Callable[[Refusal], object]


def build(
    serving: Serving,
    collector: Collector,
    status: Status,
    admission: Admission,
    *,
    version: str,
    only_local_names: bool,
) -> Application:
    """Return the gateway as an ASGI application."""
    text, tensor = TextApi(serving, collector), TensorApi(serving, collector)
    embedding = EmbeddingApi(serving, collector)
    openai, v2 = Refusal.openai, Refusal.open_inference

    async def models(exchange: Exchange) -> None:
        await exchange.json(200, {"object": "list", "data": list(_models(serving).values())})

    async def model(exchange: Exchange) -> None:
        # Raises UnknownRouteError, hence 404, for an unknown name.
        serving.worker(exchange.name)
        await exchange.json(200, _models(serving)[exchange.name])

    async def server(exchange: Exchange) -> None:
        await exchange.json(
            200, {"name": "flotilla-agent", "version": version, "extensions": [EXTENSION]}
        )

    async def live(exchange: Exchange) -> None:
        await exchange.json(200, {"live": True})

    async def ready(exchange: Exchange) -> None:
        detail = _unready(serving)
        code = HTTPStatus.SERVICE_UNAVAILABLE if detail else HTTPStatus.OK
        await exchange.json(code, {"ready": not detail, "detail": detail})

    async def state(exchange: Exchange) -> None:
        await exchange.json(200, status())

    async def measurements(exchange: Exchange) -> None:
        body = exposition(serving, collector, admission, len(status().get("warnings", ())))
        await exchange.whole(200, body, [CONTENT_TYPE])

    def call(
        handler: Handler, limit: int, shape: Shape, reserve: ReserveSpan = reserve_none
    ) -> Endpoint:
        return Endpoint(handler, admission, body_limit=limit, shape=shape, reserve=reserve)

    application = Router(
        get={
            path: Page(answer, v2 if _is_v2(path) else openai)
            for path, answer in {
                "/v1/models": models,
                "/v1/models/{name}": model,
                "/v2": server,
                "/v2/health/live": live,
                "/v2/health/ready": ready,
                "/v2/models/{name}": tensor.describe,
                "/v2/models/{name}/ready": tensor.ready,
                "/v2/models/{name}/versions/{version}": tensor.describe,
                "/v2/models/{name}/versions/{version}/ready": tensor.ready,
                "/healthz": live,
                "/readyz": ready,
                "/metrics": measurements,
                "/status": state,
            }.items()
        },
        post={
            "/v1/completions": call(text.completions, TEXT_BODY_BYTES, openai),
            "/v1/chat/completions": call(text.chat, TEXT_BODY_BYTES, openai),
            "/v1/embeddings": call(embedding.embeddings, TEXT_BODY_BYTES, openai),
            **dict.fromkeys(
                ("/v2/models/{name}/infer", "/v2/models/{name}/versions/{version}/infer"),
                call(tensor.infer, TENSOR_BODY_BYTES, v2, tensor.reserve),
            ),
        },
        fallback=NotFound,
    )
    return LocalHostsOnly(application) if only_local_names else application


class Page:
    """An ASGI application for one read-only path."""

    def __init__(self, answer: Answer, shape: Shape) -> None:
        self._answer = answer
        self._shape = shape

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, send)
        try:
            await self._answer(exchange)
        except AgentError as error:
            refusal = refusal_of(error)
            await exchange.json(refusal.status, self._shape(refusal), refusal.retry_seconds)


class NotFound:
    """Answers 404 for an unknown path and 405 for a known one; ``allowed`` are its methods."""

    def __init__(self, allowed: tuple[str, ...]) -> None:
        self._allowed = allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, send)
        method, path = scope["method"][:32], f"{scope['path'][:200]!a}"
        refusal = Refusal(404, "unknown_url", f"the gateway has no path {path}")
        if self._allowed:
            methods = " or ".join(self._allowed)
            refusal = Refusal(405, "unknown_url", f"{path} expects {methods}, not {method}")
        body = refusal.open_inference() if _is_v2(scope["path"]) else refusal.openai()
        await exchange.json(refusal.status, body, allow=", ".join(self._allowed))


class LocalHostsOnly:
    """Refuses requests whose Host field does not name this machine.

    Protects against DNS rebinding: a web page can point its own host name at 127.0.0.1 and then
    send requests from the user's browser.
    """

    def __init__(self, application: Application) -> None:
        self._application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or _is_local(dict(scope["headers"]).get(b"host", b"")):
            await self._application(scope, receive, send)
            return
        exchange = Exchange(scope, receive, send)
        refusal = Refusal(
            403, "unknown_host", "the Host is not a name of this machine; use localhost", "Host"
        )
        await exchange.json(refusal.status, refusal.openai())


def is_loopback(host: str) -> bool:
    """Return True if a host name or address is reachable from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


# A box is called by a few names only; parsing each once is cheaper than per request.
@lru_cache(maxsize=16)
def _is_local(header: bytes) -> bool:
    # A client of HTTP/1.0 may send no Host; a browser always does.
    name = header.decode("latin-1").lower()
    name = name.partition("]")[0][1:] if name.startswith("[") else name.partition(":")[0]
    return name == "" or is_loopback(name)


def _is_v2(path: str) -> bool:
    return path == "/v2" or path.startswith("/v2/")


def _models(serving: Serving) -> dict[str, dict[str, object]]:
    """Describe the routes that programs may call, by name."""
    deployment = serving.deployment
    if deployment is None:
        return {}
    return {
        name: {
            "id": name,
            "object": "model",
            "created": 0,
            "owned_by": deployment.release.publisher,
            "flotilla": {
                "release": deployment.release.reference,
                **_describe_route(route, deployment.workers),
            },
        }
        for name, route in sorted(deployment.routes.items())
    }


def _describe_route(route: Route, workers: dict[str, Worker]) -> dict[str, object]:
    """Describe a route: the model and its state, or the kind and targets of a composed route."""
    targets = route.targets()
    if not route.slot:
        kind = "split" if route.split else "cascade" if route.cascade else "pipeline"
        return {
            "kind": kind,
            "task": workers[targets[0].slot].spec.model.task.value,
            "targets": [{"slot": each.slot, "adapter": each.adapter} for each in targets],
        }
    worker = workers[route.slot]
    return {
        "slot": route.slot,
        **({"adapter": route.adapter} if route.adapter else {}),
        "model": worker.spec.model.reference,
        "task": worker.spec.model.task.value,
        "variant": worker.spec.variant.name,
        "runtime": worker.spec.variant.runtime,
        "loaded": worker.stats().loaded,
    }


def _unready(serving: Serving) -> str:
    """Return why this box cannot answer now; empty if it can."""
    deployment = serving.deployment
    if deployment is None:
        return "no release is served"
    down = [slot for slot, worker in deployment.workers.items() if not worker.stats().live]
    return f"workers are down: {', '.join(sorted(down))}" if down else ""
