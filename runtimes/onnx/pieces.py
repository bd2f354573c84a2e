"""Turn single tokens into bytes of text, by the decoder pipeline that tokenizer.json states.

The library decodes whole sequences to text, but a stream needs the bytes of each token as it comes,
also where a character is spread over several tokens. Each step of the pipeline is therefore applied
to one token, in the middle of a text: effects on the first or last token of a text are left out.

Source of the steps: https://github.com/huggingface/tokenizers, ``tokenizers/src/decoders``.
"""

from collections.abc import Callable
from typing import Any, Final

from tokenizers import Tokenizer

# A token before all steps, or its bytes after a step that knows them.
Spelled = str | bytes
Step = Callable[[str], Spelled]

_BYTE_TOKEN_LENGTH: Final = len("<0xE2>")
_BLANK: Final = "\N{LOWER ONE EIGHTH BLOCK}"
# WordPiece's cleanup of English: what is written before, and after.
_CLEANUP: Final = (
    *((" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't")),
    *((" 'm", "'m"), (" do not", " don't"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re")),
)


def _byte_of_character() -> dict[str, int]:
    """Invert GPT-2's spelling of bytes as printable characters."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    spelled = {chr(byte): byte for byte in plain}
    return spelled | {chr(256 + position): byte for position, byte in enumerate(others)}


_BYTES: Final = _byte_of_character()


class PieceDecoder:
    """The steps of a tokenizer's decoder, applied to one token."""

    def __init__(self, tokenizer: Tokenizer, document: dict[str, Any]) -> None:
        """Take the steps from ``document``, the tokenizer's JSON without its vocabulary."""
        self._library = tokenizer.decoder
        self._steps: list[Step] = []
        self._fused = False
        decoder = document.get("decoder")
        if decoder is None:
            self._steps = _undeclared(document)
        else:
            self._add(decoder)

    def piece(self, spelled: str) -> bytes:
        """Return the bytes of a token, spelled as in the vocabulary."""
        text: Spelled = spelled
        for step in self._steps:
            if isinstance(text, bytes):
                break
            text = step(text)
        return text if isinstance(text, bytes) else text.encode()

    def _add(self, decoder: dict[str, Any]) -> None:
        kind = decoder.get("type")
        if kind == "Sequence":
            for inner in decoder.get("decoders", ()):
                self._add(inner)
        elif kind == "Fuse":
            self._fused = True
        elif kind == "Strip" and self._fused:
            # After Fuse, it strips the text's ends instead of each token's.
            pass
        elif kind in _MAKERS and (kind != "Replace" or "String" in decoder.get("pattern", {})):
            self._steps.append(_MAKERS[kind](decoder))
        else:
            # A step that is not known here: the library applies the pipeline to the one token.
            self._steps.insert(0, lambda token: self._library.decode([token]).encode())


def _undeclared(document: dict[str, Any]) -> list[Step]:
    """Return the steps for a tokenizer without a decoder, by how it spells its tokens."""
    spellings = _types(document.get("pre_tokenizer"))
    if "ByteLevel" in spellings:
        return [_byte_level]
    return [_byte_fallback, _replacing(_BLANK, " ")]


def _types(part: Any) -> set[str]:
    if not isinstance(part, dict):
        return set()
    inner = part.get("pretokenizers", ())
    return {str(part.get("type"))}.union(*(_types(each) for each in inner))


def _byte_level(token: str) -> Spelled:
    if all(character in _BYTES for character in token):
        return bytes(_BYTES[character] for character in token)
    # As the library does for a token with other characters, such as an added one.
    return token.encode()


def _byte_fallback(token: str) -> Spelled:
    if len(token) == _BYTE_TOKEN_LENGTH and token.startswith("<0x") and token.endswith(">"):
        try:
            return bytes([int(token[3:5], 16)])
        except ValueError:
            return token
    return token


def _replacing(pattern: str, content: str) -> Step:
    return lambda token: token.replace(pattern, content) if pattern else token


def _stripping(decoder: dict[str, Any]) -> Step:
    content = str(decoder.get("content", " "))
    start, stop = int(decoder.get("start", 0)), int(decoder.get("stop", 0))

    def strip(token: str) -> str:
        for _ in range(start):
            token = token.removeprefix(content)
        for _ in range(stop):
            token = token.removesuffix(content)
        return token

    return strip


def _word_piece(decoder: dict[str, Any]) -> Step:
    prefix = str(decoder.get("prefix", "##"))
    cleanup = bool(decoder.get("cleanup", True))

    def join(token: str) -> str:
        text = token.removeprefix(prefix) if token.startswith(prefix) else f" {token}"
        return _cleaned(text) if cleanup else text

    return join


def _ctc(decoder: dict[str, Any]) -> Step:
    pad = str(decoder.get("pad_token", "<pad>"))
    delimiter = str(decoder.get("word_delimiter_token", "|"))
    cleanup = bool(decoder.get("cleanup", True))

    def join(token: str) -> str:
        text = token.replace(pad, "")
        return _cleaned(text).replace(delimiter, " ") if cleanup else text

    return join


def _cleaned(text: str) -> str:
    for before, after in _CLEANUP:
        text = text.replace(before, after)
    return text


_MAKERS: Final[dict[Any, Callable[[dict[str, Any]], Step]]] = {
    "ByteLevel": lambda _: _byte_level,
    "ByteFallback": lambda _: _byte_fallback,
    "Metaspace": lambda decoder: _replacing(decoder.get("replacement", _BLANK), " "),
    "Replace": lambda decoder: _replacing(decoder["pattern"]["String"], decoder.get("content", "")),
    "Strip": _stripping,
    "WordPiece": _word_piece,
    "BPEDecoder": lambda decoder: _replacing(decoder.get("suffix", "</w>"), " "),
    "CTC": _ctc,
}
