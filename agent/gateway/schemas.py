"""Bodies of the OpenAI API and the Open Inference Protocol, as bounded structs.

Other fields than these are judged by ``agent.gateway.fields``, or refused by the struct.
"""

from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from agent.gateway.fields import refuse_other_fields
from agent.gateway.refusals import RequestRefusedError

MAX_TOKENS = 1 << 20
MAX_GRAMMAR_CHARACTERS = 1 << 16
MAX_STOP_TOKENS = 64
MAX_SALT_CHARACTERS = 256

Stop = Annotated[list[Annotated[str, Meta(min_length=1, max_length=256)]], Meta(max_length=4)]
TokenId = Annotated[int, Meta(ge=0, lt=1 << 31)]
Name = Annotated[str, Meta(min_length=1, max_length=128)]


class StreamOptions(Struct, frozen=True):
    """Options of a streamed answer."""

    include_usage: bool = False


class TextFormat(Struct, frozen=True, tag_field="type", tag="text"):
    """Any text."""


class JsonObjectFormat(Struct, frozen=True, tag_field="type", tag="json_object"):
    """Any JSON object."""


class NamedSchema(Struct, frozen=True):
    """A JSON schema; its name and description are ignored."""

    schema: dict[str, Any]


class JsonSchemaFormat(Struct, frozen=True, tag_field="type", tag="json_schema"):
    """JSON that matches a schema."""

    json_schema: NamedSchema


class GenerationRequest(Struct, frozen=True, kw_only=True):
    """Fields that completions and chat completions share."""

    model: Name
    max_tokens: Annotated[int, Meta(ge=1, le=MAX_TOKENS)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    seed: Annotated[int, Meta(ge=0, lt=1 << 32)] | None = None
    stop: Stop | Annotated[str, Meta(min_length=1, max_length=256)] | None = None
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=MAX_STOP_TOKENS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    response_format: TextFormat | JsonObjectFormat | JsonSchemaFormat | None = None
    # Log-probabilities exist for the chosen token only.
    logprobs: bool | Annotated[int, Meta(ge=0, le=20)] | None = None
    # Extensions of llama.cpp's server.
    top_k: Annotated[int, Meta(ge=0, le=1 << 20)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repeat_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    grammar: Annotated[str, Meta(max_length=MAX_GRAMMAR_CHARACTERS)] | None = None
    # Extensions of vLLM and of llama.cpp's server: with whom to share cached prompts.
    cache_salt: Annotated[str, Meta(min_length=1, max_length=MAX_SALT_CHARACTERS)] | None = None
    cache_prompt: bool | None = None


class CompletionRequest(GenerationRequest, frozen=True, kw_only=True):
    """POST /v1/completions."""

    prompt: str | Annotated[list[str], Meta(min_length=1, max_length=1)]


class TextPart(Struct, frozen=True, tag_field="type", tag="text"):
    """A part of a message; only text parts are supported."""

    text: str


Empty = Annotated[list[Any], Meta(max_length=0)]


class Message(Struct, frozen=True, forbid_unknown_fields=True):
    """One turn of a conversation.

    The fields after ``content`` are those of OpenAI's answers, which clients send back; they are
    accepted only while they say nothing.
    """

    role: Annotated[str, Meta(pattern=r"^(system|developer|user|assistant)\Z")]
    content: str | Annotated[list[TextPart], Meta(max_length=256)]
    annotations: Empty | None = None
    audio: None = None
    function_call: None = None
    name: None = None
    reasoning_content: None = None
    refusal: None = None
    tool_call_id: None = None
    tool_calls: Empty | None = None

    def plain(self) -> dict[str, str]:
        """Return role and content in the form that engines take."""
        content = self.content
        text = content if isinstance(content, str) else "".join(part.text for part in content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class ChatRequest(GenerationRequest, frozen=True, kw_only=True):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Meta(min_length=1, max_length=1024)]
    max_completion_tokens: Annotated[int, Meta(ge=1, le=MAX_TOKENS)] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None


class EmbeddingRequest(Struct, frozen=True, kw_only=True):
    """POST /v1/embeddings."""

    model: Name
    input: str | Annotated[list[str], Meta(min_length=1, max_length=2048)]
    encoding_format: Literal["float", "base64"] = "float"
    # Refused unless equal to the model's own dimensions.
    dimensions: Annotated[int, Meta(ge=1, le=1 << 20)] | None = None


class InputParameters(Struct, frozen=True, forbid_unknown_fields=True):
    """Length of this tensor's bytes after the JSON."""

    binary_data_size: Annotated[int, Meta(ge=0, le=1 << 31)] | None = None


class InferInput(Struct, frozen=True, forbid_unknown_fields=True):
    """A tensor: nested or flat row-major numbers, or bytes after the JSON."""

    name: Annotated[str, Meta(max_length=128)]
    shape: Annotated[list[Annotated[int, Meta(ge=0, le=1 << 31)]], Meta(max_length=8)]
    datatype: Annotated[str, Meta(max_length=32)]
    data: list[Any] | None = None
    parameters: InputParameters = InputParameters()


class OutputParameters(Struct, frozen=True, forbid_unknown_fields=True):
    """Encoding of one output: bytes, numbers, or (None) the request's default."""

    binary_data: bool | None = None


class InferOutput(Struct, frozen=True, forbid_unknown_fields=True):
    """An output requested by name."""

    name: Annotated[str, Meta(max_length=128)]
    parameters: OutputParameters = OutputParameters()


class InferParameters(Struct, frozen=True, forbid_unknown_fields=True):
    """Parameters for all outputs, and Triton's scheduling hints, which are ignored."""

    binary_data_output: bool = False
    priority: Any = None
    timeout: Any = None


class InferRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """POST /v2/models/NAME/infer."""

    inputs: Annotated[list[InferInput], Meta(min_length=1, max_length=64)]
    outputs: Annotated[list[InferOutput], Meta(max_length=64)] = []
    id: Annotated[str, Meta(max_length=128)] = ""
    parameters: InferParameters = InferParameters()


T = TypeVar("T")
R = TypeVar("R", bound=Struct)


def decode_strictly(body: bytes, kind: type[R]) -> R:
    """Decode a text request; raise RequestRefusedError (400) for fields that are not honoured."""
    request = decode(body, kind)
    refuse_other_fields(body, kind)
    return request


def decode(body: bytes, kind: type[T]) -> T:
    """Decode a request's body; raise RequestRefusedError (400) that names the invalid field."""
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        text = str(error)
        # msgspec ends its message with the path: "... - at `$.max_tokens`".
        _, found, path = text.rpartition("at `$.")
        param = path.rstrip("`").partition("[")[0].partition(".")[0] if found else None
        raise RequestRefusedError(
            400, "invalid_value", f"the body is not valid: {text[:500]}", param=param
        ) from None
