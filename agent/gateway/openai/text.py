"""The OpenAI API for text: /v1/completions and /v1/chat/completions.

Besides ``usage`` an answer has ``timings`` with the fields of llama.cpp's server, and ``ttft_ms``.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field

from agent.composition import (
    Replay,
    classifier_input,
    limit_sampling,
    select_target,
    try_answer,
)
from agent.composition.cascade import Pieces
from agent.errors import AgentError, ModelRefusedError, WorkerFailedError
from agent.gateway.http.exchange import Exchange
from agent.gateway.openai.answers import ChatAnswer, CompletionAnswer, TextAnswer
from agent.gateway.openai.sampling import sampling_of, wants_logprobs
from agent.gateway.recording import Recording
from agent.gateway.schemas import ChatRequest, CompletionRequest, GenerationRequest, decode_strictly
from agent.serving import Serving, Visit
from agent.supervisor import Worker
from agent.supervisor.worker import Generation
from agent.telemetry import Collector
from artifact.manifest import Escalation, Pipeline, Target, Task
from runtimes.base import Sampling

log = logging.getLogger(__name__)

_PATHS = {
    Task.EMBEDDING: "/v1/embeddings",
    Task.CLASSIFICATION: "/v2/models/NAME/infer",
    Task.TENSOR: "/v2/models/NAME/infer",
}


@dataclass(slots=True)
class TextCall:
    """One call of a text endpoint: a prompt or a conversation, and the answer to build.

    ``started`` is the arrival by time.perf_counter; ``route`` is the composed route, if any.
    """

    exchange: Exchange
    request: GenerationRequest
    answer: TextAnswer
    prompt: str | None = None
    conversation: list[dict[str, str]] | None = None
    started: float = field(default_factory=time.perf_counter)
    route: str = ""

    @property
    def text(self) -> str:
        """The text that a pipeline classifies: the prompt, or the last message."""
        if self.conversation is not None:
            return self.conversation[-1]["content"]
        return self.prompt or ""

    def generate(self, worker: Worker, sampling: Sampling) -> Generation:
        """Start generating on a worker."""
        return worker.generate(self.prompt, self.conversation, sampling)

    async def send(self, generation: Pieces, recording: Recording) -> None:
        """Send the answer, whole or as a stream."""
        if self.request.stream:
            options = self.request.stream_options
            usage = bool(options and options.include_usage)
            await self.answer.stream(self.exchange, generation, recording, include_usage=usage)
        else:
            await self.answer.whole(self.exchange, generation, recording)


class TextApi:
    """Handlers of the text endpoints."""

    def __init__(self, serving: Serving, collector: Collector) -> None:
        self._serving = serving
        self._collector = collector

    async def completions(self, exchange: Exchange, body: bytes) -> None:
        """POST /v1/completions."""
        request = decode_strictly(body, CompletionRequest)
        prompt = request.prompt if isinstance(request.prompt, str) else request.prompt[0]
        answer = CompletionAnswer(
            request.model, exchange.request_id, logprobs=wants_logprobs(request)
        )
        await self._answer(TextCall(exchange, request, answer, prompt=prompt))

    async def chat(self, exchange: Exchange, body: bytes) -> None:
        """POST /v1/chat/completions."""
        request = decode_strictly(body, ChatRequest)
        conversation = [message.plain() for message in request.messages]
        answer = ChatAnswer(request.model, exchange.request_id, logprobs=wants_logprobs(request))
        await self._answer(TextCall(exchange, request, answer, conversation=conversation))

    async def _answer(self, call: TextCall) -> None:
        """Answer with the route's target; of a cascade, the first step with a good answer."""
        async with self._serving.visit() as visit:
            deployment = visit.deployment
            route = deployment.route_of(call.request.model)
            call.route = "" if route.slot else route.name
            if route.cascade is not None:
                # The last step always answers; the others only if their answer is good enough.
                *tries, last = route.cascade.steps
                for target in tries:
                    if await self._try(visit, target, call, route.cascade.escalate):
                        return
            elif route.pipeline is not None:
                last = await self._choose(visit, route.pipeline, call)
            else:
                last = deployment.target_of(route)
            with self._worker(visit, last, call) as (worker, recording):
                _refuse_other_tasks(call.request.model, worker)
                generation = call.generate(worker, sampling_of(call.request, worker, last.adapter))
                async with aclosing(generation):
                    await call.send(generation, recording)

    async def _try(
        self, visit: Visit, target: Target, call: TextCall, escalation: Escalation
    ) -> bool:
        """Run a cascade's step; return True if its answer was good and has been sent."""
        try:
            with self._worker(visit, target, call) as (worker, recording):
                sampling = sampling_of(call.request, worker, target.adapter)
                generation = call.generate(worker, limit_sampling(sampling, escalation))
                async with aclosing(generation):
                    tried = await try_answer(generation, escalation, sampling.max_tokens)
                recording.usage = tried.usage
                if tried.escalation_reason:
                    recording.count_tokens(len(tried.pieces))
                    recording.escalated = True
                else:
                    await call.send(Replay(tried), recording)
        except AgentError as error:
            if call.exchange.started:
                raise
            # A failure of this model need not be one of the next.
            log.info("cascade_step_failed slot=%s error=%s", target.slot, ascii(str(error))[:300])
            return False
        return not tried.escalation_reason

    async def _choose(self, visit: Visit, pipeline: Pipeline, call: TextCall) -> Target:
        """Return the target for the class of this text."""
        with self._worker(visit, Target(slot=pipeline.embed), call) as (worker, recording):
            embeddings, recording.usage = await worker.embed([call.text])
        with self._worker(visit, Target(slot=pipeline.classify), call) as (worker, _):
            try:
                outputs = await worker.infer([classifier_input(pipeline, embeddings)])
            except ModelRefusedError as error:
                # The input is the release's choice, not the caller's.
                raise WorkerFailedError(
                    f"the classifier of slot {pipeline.classify!r} refuses the embedding: {error}",
                    advice="Publish a release whose classifier takes the embedding.",
                ) from error
            return select_target(pipeline, outputs)

    @contextmanager
    def _worker(
        self, visit: Visit, target: Target, call: TextCall
    ) -> Iterator[tuple[Worker, Recording]]:
        with (
            visit.worker(target.slot) as worker,
            Recording(self._collector, worker, call.started, route=call.route) as recording,
        ):
            yield worker, recording


def _refuse_other_tasks(name: str, worker: Worker) -> None:
    task = worker.spec.model.task
    if task is not Task.TEXT_GENERATION:
        raise ModelRefusedError(
            f"the model {name[:200]!a} does {task.value}, not text generation",
            unsupported=True,
            advice=f"Call it at {_PATHS[task]}.",
        )
