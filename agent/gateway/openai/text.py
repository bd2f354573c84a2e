"""The OpenAI API for text: /v1/models, /v1/completions, /v1/chat/completions.

Beside ``usage`` an answer carries ``timings`` in the words of llama.cpp's server, and ``ttft_ms``.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass

from agent.composition import Replay, attempt, hear, input_of, target_of
from agent.composition.cascade import Pieces
from agent.errors import AgentError, ModelRefusedError
from agent.gateway.http.exchange import Exchange
from agent.gateway.openai.answers import ChatAnswer, CompletionAnswer, TextAnswer
from agent.gateway.openai.sampling import sampling_of, wants_logprobs
from agent.gateway.recording import Recording
from agent.gateway.refusals import RequestRefusedError
from agent.gateway.schemas import ChatRequest, CompletionRequest, GenerationRequest, decode
from agent.serving import Deployment, Serving
from agent.supervisor import Worker
from agent.telemetry import Collector
from artifact.manifest import Escalation, Pipeline, Target, Task

log = logging.getLogger(__name__)

# Fields that would change the answer, each with the values that leave it off.
_UNSUPPORTED: dict[str, tuple[object, ...]] = {
    "best_of": (None, 1),
    "echo": (None, False),
    "functions": (None, []),
    "logit_bias": (None, {}),
    "n": (None, 1),
    "suffix": (None, ""),
    "tools": (None, []),
}


_PATHS = {
    Task.EMBEDDING: "/v1/embeddings",
    Task.CLASSIFICATION: "/v2/models/NAME/infer",
    Task.TENSOR: "/v2/models/NAME/infer",
}


@dataclass(frozen=True, slots=True)
class Call:
    """What is asked, as a prompt or as a conversation, and the shape of the answer."""

    answer: TextAnswer
    prompt: str | None
    conversation: list[dict[str, str]] | None

    @property
    def text(self) -> str:
        """What the text is about, for who chooses by it: the prompt, or the last message."""
        if self.conversation is not None:
            return self.conversation[-1]["content"]
        return self.prompt or ""


@dataclass(frozen=True, slots=True)
class Making:
    """A request under way; ``route`` is empty unless it is a composed one."""

    exchange: Exchange
    request: GenerationRequest
    call: Call
    route: str
    started: float

    async def send(self, generation: Pieces, recording: Recording) -> None:
        """Answers in the shape and the way that was asked for."""
        if self.request.stream:
            options = self.request.stream_options
            usage = bool(options and options.include_usage)
            answer = self.call.answer
            await answer.stream(self.exchange, generation, recording, include_usage=usage)
        else:
            await self.call.answer.whole(self.exchange, generation, recording)


class TextApi:
    """Handlers of the text endpoints."""

    def __init__(self, serving: Serving, collector: Collector) -> None:
        self._serving = serving
        self._collector = collector

    async def completions(self, exchange: Exchange, body: bytes) -> None:
        """POST /v1/completions."""
        request = decode(body, CompletionRequest)
        _refuse_unsupported(request)
        prompt = request.prompt if isinstance(request.prompt, str) else request.prompt[0]
        answer = CompletionAnswer(
            request.model, exchange.request_id, logprobs=wants_logprobs(request)
        )
        await self._answer(exchange, request, Call(answer, prompt, None))

    async def chat(self, exchange: Exchange, body: bytes) -> None:
        """POST /v1/chat/completions."""
        request = decode(body, ChatRequest)
        _refuse_unsupported(request)
        conversation = [message.plain() for message in request.messages]
        answer = ChatAnswer(request.model, exchange.request_id, logprobs=wants_logprobs(request))
        await self._answer(exchange, request, Call(answer, None, conversation))

    async def _answer(self, exchange: Exchange, request: GenerationRequest, call: Call) -> None:
        """By the route's one target; of a cascade, by the first step whose answer stands."""
        started = time.perf_counter()
        async with self._serving.visit() as deployment:
            route = deployment.route_of(request.model)
            composed = "" if route.slot else route.name
            made = Making(exchange, request, call, composed, started)
            if route.cascade is not None:
                *tries, last = route.cascade.steps
                for target in tries:
                    if await self._try(deployment, target, made, route.cascade.escalate):
                        return
            elif route.pipeline is not None:
                last = await self._choose(deployment, route.pipeline, made)
            else:
                last = deployment.target_of(route)
            with self._worker(deployment, last, made) as (worker, recording):
                _refuse_other_tasks(request.model, worker)
                sampling = sampling_of(request, worker, last.adapter)
                generation = worker.generate(call.prompt, call.conversation, sampling)
                async with aclosing(generation):
                    await made.send(generation, recording)

    async def _try(
        self, deployment: Deployment, target: Target, made: Making, escalation: Escalation
    ) -> bool:
        """Whether this step's answer stood, and was sent; if not, nothing was."""
        try:
            with self._worker(deployment, target, made) as (worker, recording):
                sampling = sampling_of(made.request, worker, target.adapter)
                generation = worker.generate(
                    made.call.prompt, made.call.conversation, attempt(sampling, escalation)
                )
                async with aclosing(generation):
                    heard = await hear(generation, escalation, sampling.max_tokens)
                recording.usage = heard.usage
                if heard.why:
                    recording.count_tokens(len(heard.pieces))
                    recording.escalated = True
                else:
                    await made.send(Replay(heard), recording)
        except AgentError as error:
            if made.exchange.started:
                raise
            # Whatever ails the small model, the next one may not have.
            log.info("cascade_step_failed slot=%s error=%s", target.slot, ascii(str(error))[:300])
            return False
        return not heard.why

    async def _choose(self, deployment: Deployment, pipeline: Pipeline, made: Making) -> Target:
        """The target for this text's class."""
        with self._worker(deployment, Target(slot=pipeline.embed), made) as (worker, recording):
            embeddings, recording.usage = await worker.embed([made.call.text])
        with self._worker(deployment, Target(slot=pipeline.classify), made) as (worker, _):
            outputs = await worker.infer([input_of(pipeline, embeddings)])
        return target_of(pipeline, outputs)

    @contextmanager
    def _worker(
        self, deployment: Deployment, target: Target, made: Making
    ) -> Iterator[tuple[Worker, Recording]]:
        with (
            deployment.lease(target.slot) as worker,
            Recording(self._collector, worker, made.started, route=made.route) as recording,
        ):
            yield worker, recording


def _refuse_unsupported(request: GenerationRequest) -> None:
    for name, off in _UNSUPPORTED.items():
        if getattr(request, name, None) not in off:
            raise RequestRefusedError(
                400,
                "unsupported_parameter",
                f"{name} is not supported here",
                param=name,
                advice="Leave it out.",
            )


def _refuse_other_tasks(name: str, worker: Worker) -> None:
    task = worker.spec.model.task
    if task is not Task.TEXT_GENERATION:
        raise ModelRefusedError(
            f"the model {name[:200]!a} does {task.value}, not text generation",
            unsupported=True,
            advice=f"Call it at {_PATHS[task]}.",
        )
