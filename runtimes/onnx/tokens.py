"""Tokenizer of an ONNX language model: tokenizer.json and settings of its configuration."""

from pathlib import Path
from typing import Final

from tokenizers import Tokenizer, decoders

from runtimes.errors import LoadError
from runtimes.onnx.side_files import (
    MAX_TOKENIZER_BYTES,
    ModelConfig,
    read_bounded,
    read_chat_template,
    read_config,
    read_tokenizer_config,
)

TOKENIZER: Final = "tokenizer.json"
REPLACEMENT: Final = "\N{REPLACEMENT CHARACTER}"


def _byte_of_character() -> dict[str, int]:
    """Invert GPT-2's spelling of bytes as printable characters."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    spelled = {chr(byte): byte for byte in plain}
    return spelled | {chr(256 + position): byte for position, byte in enumerate(others)}


_BYTES: Final = _byte_of_character()


class TextTokenizer:
    """Converter from text to tokens, and from tokens to the bytes of text."""

    def __init__(self, files: dict[str, Path]) -> None:
        if TOKENIZER not in files:
            raise LoadError(
                f"the variant has no {TOKENIZER} among {', '.join(sorted(files))}",
                advice="Build it again from the whole folder of the export.",
            )
        try:
            self._tokenizer = Tokenizer.from_buffer(
                read_bounded(files[TOKENIZER], MAX_TOKENIZER_BYTES)
            )
        except Exception as error:
            raise LoadError(
                f"{TOKENIZER} cannot be read: {str(error)[:500]}", advice="Export it again."
            ) from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._byte_level = isinstance(self._tokenizer.decoder, decoders.ByteLevel)
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

    def encode(self, text: str) -> list[int]:
        """Encode a text, with the begin token if the model expects one.

        Special tokens in the text are parsed.
        """
        tokens: list[int] = self._tokenizer.encode(text).ids
        begin = self._begin
        if begin is None:
            return tokens
        # A chat template may write the begin token that the tokenizer also adds: keep one.
        if tokens[:2] == [begin, begin]:
            return tokens[1:]
        if self.texts.add_bos_token and tokens[:1] != [begin]:
            return [begin, *tokens]
        return tokens

    def piece(self, token: int) -> bytes:
        """Return the UTF-8 bytes of a token; empty for special tokens."""
        if token in self._special:
            return b""
        if token in self._added:
            return self._added[token].encode()
        spelled = self._tokenizer.id_to_token(token) or ""
        if self._byte_level and all(character in _BYTES for character in spelled):
            return bytes(_BYTES[character] for character in spelled)
        if len(spelled) == 6 and spelled.startswith("<0x"):  # noqa: PLR2004 - <0xE2>
            return bytes([int(spelled[3:5], 16)])
        # SentencePiece writes a space as this character.
        return spelled.replace("\N{LOWER ONE EIGHTH BLOCK}", " ").encode()

    def _end_tokens(self, config: ModelConfig, generation: ModelConfig) -> frozenset[int]:
        ends = generation.end_tokens or config.end_tokens
        named = self._tokenizer.token_to_id(self.texts.end) if self.texts.end else None
        return ends if named is None else ends | {named}
