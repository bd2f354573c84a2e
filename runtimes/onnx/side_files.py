"""Read the small JSON files beside an ONNX language model, as Optimum writes them, bounded."""

from pathlib import Path
from typing import Annotated, TypeVar, get_origin

import msgspec
from msgspec import Meta, Struct

from runtimes.errors import UnsafeFileError

MAX_CONFIG_BYTES = 1 << 20
# The tokenizer.json of the largest vocabularies is about 35 MB.
MAX_TOKENIZER_BYTES = 128 << 20

# A list if the stages of an image model differ.
Heads = Annotated[int, Meta(ge=0, le=1 << 16)] | list[int] | None
TokenId = Annotated[int, Meta(ge=0, lt=1 << 24)]
T = TypeVar("T")


class ModelConfig(Struct, frozen=True):
    """The fields of config.json and generation_config.json that the engine uses."""

    model_type: Annotated[str, Meta(max_length=64)] = ""
    max_position_embeddings: Annotated[int, Meta(ge=0, le=1 << 24)] = 0
    num_attention_heads: Heads = None
    # The names of the same field in DistilBERT and XLM, and in GPT-2.
    n_heads: Heads = None
    n_head: Heads = None
    bos_token_id: TokenId | None = None
    eos_token_id: TokenId | list[TokenId] | None = None

    @property
    def heads(self) -> int:
        """Attention heads; 0 if unknown."""
        names = (self.num_attention_heads, self.n_heads, self.n_head)
        return next((heads for heads in names if isinstance(heads, int)), 0)

    @property
    def end_tokens(self) -> frozenset[int]:
        """The tokens that end a text."""
        if self.eos_token_id is None:
            return frozenset()
        return frozenset(
            self.eos_token_id if isinstance(self.eos_token_id, list) else [self.eos_token_id]
        )


class SpecialToken(Struct, frozen=True):
    """A special token that tokenizer_config.json gives as an object."""

    content: str


class TokenizerConfig(Struct, frozen=True):
    """The fields of tokenizer_config.json that the engine uses."""

    add_bos_token: bool | None = None
    add_eos_token: bool | None = None
    bos_token: str | SpecialToken | None = None
    eos_token: str | SpecialToken | None = None
    chat_template: str | list[dict[str, str]] | None = None

    @property
    def begin(self) -> str:
        return _content(self.bos_token)

    @property
    def end(self) -> str:
        return _content(self.eos_token)

    @property
    def template(self) -> str:
        """The chat template; if there are several, the one named ``default``."""
        if isinstance(self.chat_template, list):
            named = {entry.get("name"): entry.get("template", "") for entry in self.chat_template}
            return named.get("default", "")
        return self.chat_template or ""


def _content(token: str | SpecialToken | None) -> str:
    return token.content if isinstance(token, SpecialToken) else token or ""


def read_config(path: Path) -> ModelConfig:
    """Read config.json or generation_config.json; return defaults if it is missing."""
    return read_side_file(path, ModelConfig)


def read_tokenizer_config(path: Path) -> TokenizerConfig:
    """Read tokenizer_config.json; return defaults if it is missing."""
    return read_side_file(path, TokenizerConfig)


def read_heads(files: dict[str, Path]) -> int:
    """Read the number of attention heads from config.json; return 0 if it is unknown."""
    path = files.get("config.json")
    return read_config(path).heads if path is not None else 0


def read_chat_template(path: Path) -> str:
    """Read chat_template.jinja, which newer exports write; return "" if it is missing."""
    if not path.is_file():
        return ""
    return read_bounded(path, MAX_CONFIG_BYTES).decode(errors="replace")


def read_bounded(path: Path, limit: int) -> bytes:
    """Read a file of at most ``limit`` bytes; raise UnsafeFileError if it is larger."""
    # One byte more than allowed tells a file that is too large, however large it is.
    with path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise UnsafeFileError(
            f"{path.name} has more than {limit:,} bytes, the maximum for such a file",
            advice="Export the model again.",
        )
    return data


def read_side_file(path: Path | None, kind: type[T]) -> T:
    """Decode a JSON file as ``kind``; return its defaults if the file is missing.

    Raises UnsafeFileError for a file that is too large or malformed.
    """
    if path is None or not path.is_file():
        # list[Module] and other generic types have no constructor of their own.
        return (get_origin(kind) or kind)()
    try:
        return msgspec.json.decode(read_bounded(path, MAX_CONFIG_BYTES), type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UnsafeFileError(
            f"{path.name} is not a valid model configuration: {error}",
            advice="Export the model again.",
        ) from error
