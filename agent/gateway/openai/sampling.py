"""From a request's fields to what an engine is asked for."""

import msgspec

from agent.gateway.refusals import RequestRefusedError
from agent.gateway.schemas import (
    ChatRequest,
    GenerationRequest,
    JsonObjectFormat,
    JsonSchemaFormat,
)
from agent.supervisor import Worker
from runtimes.base import Sampling

DEFAULT_COMPLETION_TOKENS = 16
DEFAULT_TEMPERATURE = 1.0
ANY_OBJECT = '{"type":"object"}'


def sampling_of(request: GenerationRequest, worker: Worker, adapter: str) -> Sampling:
    """What this worker is asked for; RequestRefusedError."""
    if isinstance(request, ChatRequest):
        room = worker.spec.context_length or worker.spec.variant.context_length or 512
        most = request.max_completion_tokens or request.max_tokens or room
    else:
        most = request.max_tokens or DEFAULT_COMPLETION_TOKENS
    stop = request.stop
    if isinstance(stop, str):
        stop = [stop]
    temperature = request.temperature
    return Sampling(
        max_tokens=most,
        temperature=DEFAULT_TEMPERATURE if temperature is None else temperature,
        top_p=1.0 if request.top_p is None else request.top_p,
        seed=request.seed,
        stop=tuple(stop or ()),
        top_k=request.top_k or 0,
        min_p=request.min_p or 0.0,
        repeat_penalty=1.0 if request.repeat_penalty is None else request.repeat_penalty,
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        grammar=request.grammar or "",
        json_schema=_schema(request),
        adapter=adapter,
        logprobs=wants_logprobs(request),
    )


def wants_logprobs(request: GenerationRequest) -> bool:
    """Whether the chosen tokens' log-probabilities are asked for; RequestRefusedError.

    A chat asks with true, a completion with the number of other tokens that it wants beside.
    """
    asked = request.logprobs
    others = request.top_logprobs if isinstance(request, ChatRequest) else asked
    if others:
        name = "top_logprobs" if isinstance(request, ChatRequest) else "logprobs"
        raise RequestRefusedError(
            400,
            "unsupported_parameter",
            f"{name} is {others}: only the chosen token's log-probability is told",
            param=name,
            advice="Ask with logprobs: true in a chat, with logprobs: 0 in a completion.",
        )
    if isinstance(request, ChatRequest):
        return asked is True
    # JSON's false leaves it off, and 0 turns it on.
    return asked is not None and asked is not False


def _schema(request: GenerationRequest) -> str:
    match request.response_format:
        case JsonObjectFormat():
            return ANY_OBJECT
        case JsonSchemaFormat(json_schema=wanted):
            return msgspec.json.encode(wanted.schema).decode()
        case _:
            return ""
