"""Tokenizer of an ONNX language model: tokenizer.json and settings of its configuration."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct
from tokenizers import Tokenizer

from runtimes.errors import LoadError
from runtimes.onnx.pieces import PieceDecoder
from runtimes.onnx.side_files import (
    MAX_TOKENIZER_BYTES,
    ModelConfig,
    read_bounded,
    read_chat_template,
    read_config,
    read_tokenizer_config,
)
from runtimes.text.control_tokens import ChatPrompt, ControlTokens

TOKENIZER: Final = "tokenizer.json"


class _Document(Struct, frozen=True):
    """The parts of tokenizer.json that describe how tokens become text."""

    decoder: dict[str, Any] | None = None
    pre_tokenizer: dict[str, Any] | None = None


@contextlib.contextmanager
def _refusing_panics() -> Iterator[None]:
    """Raise LoadError for a panic in the Rust library.

    pyo3's PanicException derives from BaseException, so that ``except Exception`` lets it through.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise LoadError(
            f"the tokenizer library panicked on {TOKENIZER}: {str(error)[:300]}",
            advice="Export the tokenizer again, with a current version of transformers.",
        ) from None


class TextTokenizer:
    """Converter from text to tokens, and from tokens to the bytes of text."""

    def __init__(self, files: dict[str, Path]) -> None:
        if TOKENIZER not in files:
            raise LoadError(
                f"the variant has no {TOKENIZER} among {', '.join(sorted(files))}",
                advice="Build it again from the whole folder of the export.",
            )
        data = read_bounded(files[TOKENIZER], MAX_TOKENIZER_BYTES)
        try:
            with _refusing_panics():
                self._tokenizer = Tokenizer.from_buffer(data)
            document = msgspec.json.decode(data, type=_Document)
        except LoadError:
            raise
        except Exception as error:
            raise LoadError(
                f"{TOKENIZER} cannot be read: {str(error)[:500]}", advice="Export it again."
            ) from error
        # Files may state lengths for training; the context is checked by the engine.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._pieces = PieceDecoder(self._tokenizer, msgspec.structs.asdict(document))
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = {token for token, entry in added.items() if entry.special}
        self._added = {token: entry.content for token, entry in added.items()}
        nowhere = Path("/nonexistent")
        config = read_config(files.get("config.json", nowhere))
        generation = read_config(files.get("generation_config.json", nowhere))
        self.texts = read_tokenizer_config(files.get("tokenizer_config.json", nowhere))
        template = read_chat_template(files.get("chat_template.jinja", nowhere))
        self.chat_template = template or self.texts.template
        self.context_length = config.max_position_embeddings
        self.end_tokens = self._end_tokens(config, generation)
        self._begin = self._tokenizer.token_to_id(self.texts.begin) if self.texts.begin else None
        self._end = self._tokenizer.token_to_id(self.texts.end) if self.texts.end else None
        self.control = ControlTokens({self._added[token]: token for token in self._special})
        self._prefix = self._added_prefix()

    def encode(self, text: str) -> list[int]:
        """Encode a text, with the begin token if the model expects one.

        Special tokens in the text are parsed.
        """
        tokens = self._encode(text, add=True)
        begin, end = self._begin, self._end
        # A text may begin with the token that the tokenizer also adds: keep one.
        if begin is not None and tokens[:2] == [begin, begin]:
            tokens = tokens[1:]
        if self.texts.add_eos_token and end is not None and tokens[-1:] != [end]:
            tokens = [*tokens, end]
        return self._begun(tokens)

    def encode_chat(self, prompt: ChatPrompt) -> list[int]:
        """Encode a conversation: a begin token if the model adds it, and never an end token.

        Only the template's own special tokens are parsed (runtimes.text.control_tokens).
        """
        if prompt.marks:
            # The setting is the tokenizer's; an engine encodes one text at a time.
            self._tokenizer.encode_special_tokens = True
            try:
                tokens = self.control.tokenize(prompt, lambda text: self._encode(text, add=False))
            finally:
                self._tokenizer.encode_special_tokens = False
        else:
            tokens = self._encode(prompt, add=False)
        prefix = self._prefix
        return self._begun(tokens if tokens[: len(prefix)] == prefix else [*prefix, *tokens])

    def _begun(self, tokens: list[int]) -> list[int]:
        begin = self._begin
        if begin is None or not self.texts.add_bos_token or tokens[:1] == [begin]:
            return tokens
        return [begin, *tokens]

    def _encode(self, text: str, *, add: bool) -> list[int]:
        with _refusing_panics():
            tokens: list[int] = self._tokenizer.encode(text, add_special_tokens=add).ids
        return tokens

    def _added_prefix(self) -> list[int]:
        """Return the tokens that the tokenizer itself puts before every text."""
        inner, whole = self._encode("a", add=False), self._encode("a", add=True)
        starts = range(len(whole) - len(inner) + 1)
        return next((whole[:at] for at in starts if whole[at : at + len(inner)] == inner), [])

    def piece(self, token: int) -> bytes:
        """Return the UTF-8 bytes of a token; empty for special tokens."""
        if token in self._special:
            return b""
        # Added tokens are spelled as text, not in the vocabulary's spelling of bytes.
        if token in self._added:
            return self._added[token].encode()
        return self._pieces.piece(self._tokenizer.id_to_token(token) or "")

    def _end_tokens(self, config: ModelConfig, generation: ModelConfig) -> frozenset[int]:
        ends = generation.end_tokens or config.end_tokens
        named = self._tokenizer.token_to_id(self.texts.end) if self.texts.end else None
        return ends if named is None else ends | {named}
