"""A gateway over real sockets with real workers, and a client."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
from fake_fleet import release_of, worker_spec

from agent.gateway import Gateway
from agent.serving import Deployment, Serving
from agent.supervisor import Supervisor
from agent.supervisor.spec import WorkerTimeouts
from agent.telemetry import Collector
from artifact.manifest import Route
from runtimes.fake import FakeModel

TIMEOUTS = WorkerTimeouts(backoff_first_seconds=0.02, backoff_most_seconds=0.1)
ROUTES = (Route(name="assistant", slot="chat"),)


class Box:
    """Supervisor, serving, collector, gateway and a client."""

    def __init__(self, directory: Path, max_concurrency: int) -> None:
        self.directory = directory
        self.supervisor = Supervisor(timeouts=TIMEOUTS)
        self.serving = Serving(self.supervisor)
        self.collector = Collector()
        self.gateway = Gateway(
            self.serving,
            self.collector,
            lambda: {"state": "idle", "warnings": ["the root metadata expires soon"]},
            max_concurrency=max_concurrency,
        )
        self.client = httpx.AsyncClient(timeout=30)

    async def deploy(
        self, version: str = "1", *, routes: tuple[Route, ...] = ROUTES, **models: FakeModel
    ) -> Deployment:
        specs = [
            worker_spec(self.directory, model, slot=slot, version=version)
            for slot, model in models.items()
        ]
        workers = {spec.slot: await self.supervisor.start(spec) for spec in specs}
        deployment = Deployment(release_of(*specs, routes=routes), workers)
        await self.serving.swap(deployment)
        return deployment

    async def complete(self, **fields: object) -> httpx.Response:
        body = {"model": "assistant", "prompt": "hi", **fields}
        return await self.client.post("/v1/completions", json=body)


@asynccontextmanager
async def running(directory: Path, max_concurrency: int = 64) -> AsyncIterator[Box]:
    box = Box(directory, max_concurrency)
    address = await box.gateway.start("127.0.0.1")
    box.client.base_url = httpx.URL(f"http://{address}")
    try:
        yield box
    finally:
        await box.client.aclose()
        await box.gateway.stop()
        await box.supervisor.close()
