"""Translate a request's fields into the engine's sampling parameters."""

import secrets

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

# OpenAI's defaults.
DEFAULT_COMPLETION_TOKENS = 16
DEFAULT_TEMPERATURE = 1.0
ANY_OBJECT = '{"type":"object"}'


def sampling_of(request: GenerationRequest, worker: Worker, adapter: str) -> Sampling:
    """Return the sampling parameters of a request; raise RequestRefusedError."""
    if isinstance(request, ChatRequest):
        context = worker.spec.context_length or worker.spec.variant.context_length or 512
        max_tokens = request.max_completion_tokens or request.max_tokens or context
    else:
        max_tokens = request.max_tokens or DEFAULT_COMPLETION_TOKENS
    stop = request.stop
    if isinstance(stop, str):
        stop = [stop]
    temperature = request.temperature
    return Sampling(
        max_tokens=max_tokens,
        temperature=DEFAULT_TEMPERATURE if temperature is None else temperature,
        top_p=1.0 if request.top_p is None else request.top_p,
        seed=request.seed,
        stop=tuple(stop or ()),
        stop_token_ids=tuple(request.stop_token_ids or ()),
        top_k=request.top_k or 0,
        min_p=request.min_p or 0.0,
        repeat_penalty=1.0 if request.repeat_penalty is None else request.repeat_penalty,
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        grammar=request.grammar or "",
        json_schema=_schema(request),
        adapter=adapter,
        logprobs=wants_logprobs(request),
        cache_salt=_cache_salt(request, worker),
    )


def _cache_salt(request: GenerationRequest, worker: Worker) -> str:
    if request.cache_salt and request.cache_prompt is not False:
        return request.cache_salt
    shares = worker.spec.share_prefixes and request.cache_prompt is not False
    # A salt of this request only: its prompt is cached for no other.
    return "" if shares else secrets.token_hex(16)


def wants_logprobs(request: GenerationRequest) -> bool:
    """Return True if a request asks for the chosen tokens' log-probabilities.

    A chat sends true, a completion the number of alternatives per token. Alternatives are not
    available: RequestRefusedError (400).
    """
    asked = request.logprobs
    alternatives = request.top_logprobs if isinstance(request, ChatRequest) else asked
    if alternatives:
        name = "top_logprobs" if isinstance(request, ChatRequest) else "logprobs"
        raise RequestRefusedError(
            400,
            "unsupported_parameter",
            f"{name} is {alternatives}: only the chosen token's log-probability is available",
            param=name,
            advice="Send logprobs: true in a chat, logprobs: 0 in a completion.",
        )
    if isinstance(request, ChatRequest):
        return asked is True
    # 0 turns log-probabilities on (no alternatives); false turns them off.
    return asked is not None and asked is not False


def _schema(request: GenerationRequest) -> str:
    match request.response_format:
        case JsonObjectFormat():
            return ANY_OBJECT
        case JsonSchemaFormat(json_schema=wanted):
            return msgspec.json.encode(wanted.schema).decode()
        case _:
            return ""
