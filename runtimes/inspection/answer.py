"""Answer of the inspecting process, decoded with bounds, since a file may have subverted it."""

from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from runtimes.base import Inspection

# Twice the size of 65,536 tensors with names of some hundred bytes.
MAX_ANSWER_BYTES: Final = 64 << 20
MAX_WORDS: Final = 4096

Words = Annotated[str, Meta(max_length=MAX_WORDS)]


class Found(Struct, frozen=True, tag=True):
    """Answer for a valid file."""

    inspection: Inspection
    confinement: Annotated[str, Meta(max_length=64)]


class Refused(Struct, frozen=True, tag=True):
    """The file is refused."""

    message: Words
    advice: Words


Answer = Found | Refused

_decoder: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)
_encoder = msgspec.msgpack.Encoder()


def encode(answer: Answer) -> bytes:
    return _encoder.encode(answer)


def decode(data: bytes | bytearray) -> Answer:
    """Decode an answer; raise msgspec.MsgspecError if it is malformed."""
    return _decoder.decode(data)
