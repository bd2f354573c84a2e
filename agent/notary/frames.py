"""Frames between the daemon and its notary: a 4-byte big-endian length, then that many bytes."""

import struct
from typing import Final, TypeAlias

import msgspec

from agent.errors import NotaryLostError
from agent.notary import questions as q

HEADER: Final = struct.Struct(">I")
MAX_FRAME_BYTES: Final = 64 << 20

AnyQuestion: TypeAlias = q.WhoAmI | q.Sign | q.Request | q.Adopt | q.Follow | q.Direct | q.Resolve
AnyAnswer: TypeAlias = q.Identified | q.Signed | q.Directed | q.Resolved | q.Missing | q.Refused

_encoder = msgspec.msgpack.Encoder()
_questions: msgspec.msgpack.Decoder[AnyQuestion] = msgspec.msgpack.Decoder(AnyQuestion)
_answers: msgspec.msgpack.Decoder[AnyAnswer] = msgspec.msgpack.Decoder(AnyAnswer)


def encode(message: q.Question | q.Answer) -> bytes:
    """Encode a frame; NotaryLostError if it is longer than the maximum."""
    payload = _encoder.encode(message)
    check_length(len(payload))
    return HEADER.pack(len(payload)) + payload


def decode_question(payload: bytes) -> AnyQuestion:
    """Decode a question from a frame's payload."""
    return _questions.decode(payload)


def decode_answer(payload: bytes) -> AnyAnswer:
    """Decode an answer from a frame's payload; NotaryLostError if it is not one."""
    try:
        return _answers.decode(payload)
    except msgspec.MsgspecError as error:
        raise NotaryLostError(f"the notary's answer cannot be decoded: {error}") from error


def check_length(length: int) -> None:
    """Raise NotaryLostError if a frame is longer than either side accepts."""
    if length > MAX_FRAME_BYTES:
        raise NotaryLostError(f"a frame has {length} bytes; the maximum is {MAX_FRAME_BYTES}")
