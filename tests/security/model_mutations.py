"""Mutations of sound model files: parsed, changed in a few places, and serialised again.

So the faults lie deep inside, behind the early checks of a reader.
"""

import json
import struct
from collections.abc import Iterable
from random import Random
from typing import Final

from tests.security import hostile_files

NUMBERS: Final = (
    *(0, 1, 2, 3, 7, 8, 9, 12, 31, 32, 33, 64, 127, 128, 255, 256, 4096, 65535, 65536),
    *(1 << power for power in (20, 24, 31, 32, 40, 48, 62, 63)),
    *((1 << power) - 1 for power in (20, 24, 31, 32, 40, 48, 62, 63, 64)),
)
TEXTS: Final = (
    *(b"input_ids", b"logits", b"past_key_values.0.key", b"N", b"K", b"bits", b"packed"),
    *(b"", b"\0", b"a", b"a" * 64, b"a" * 300, b"\xff\xfe", b"../weights", b"/etc/passwd", b"."),
    *(b"there.bin", b"link.bin", b"C:\\weights", b"there.bin\0.onnx", b"config.json", b"-1"),
    *(b"EPContext", b"MatMulNBits", b"evil.example", b"location", b"offset", b"length"),
    *(b"general.alignment", b"general.architecture", b"llama.context_length", b"tokens#"),
    *(b"llama.block_count", b"llama.attention.head_count", b"tokenizer.ggml.tokens#", b"9" * 400),
)


def spoil_bytes(data: bytes, chance: Random) -> bytes:
    """Change bytes without regard to their meaning."""
    at = chance.randrange(len(data) + 1)
    until = min(len(data), at + chance.choice((1, 2, 4, 8, 64)))
    number = chance.choice(NUMBERS)
    match chance.randrange(6):
        case 0 if at < len(data):
            return data[:at] + bytes([data[at] ^ (1 << chance.randrange(8))]) + data[at + 1 :]
        case 1:
            return data[:at]
        case 2:
            return data[:at] + data[until:]
        case 3:
            return data[:at] + data[at:until] * chance.randrange(2, 9) + data[until:]
        case 4:
            return data[:at] + struct.pack("<Q", number) + data[at + 8 :]
        case _:
            return data[:at] + struct.pack("<I", number & 0xFFFFFFFF) + data[at + 4 :]


# The pieces of a GGUF file in order: numbers with their width, and raw bytes.
Piece = tuple[str, int | bytes]


def _gguf_pieces() -> list[Piece]:
    """Split hostile_files.RICH_GGUF by the rules of the format."""
    data, position = hostile_files.RICH_GGUF, 0
    pieces: list[Piece] = []

    def number(form: str) -> int:
        nonlocal position
        (value,) = struct.unpack_from(form, data, position)
        position += struct.calcsize(form)
        pieces.append((form, value))
        return int(value)

    def raw(length: int) -> None:
        nonlocal position
        pieces.append(("", data[position : position + length]))
        position += length

    raw(4)
    number("<I")
    tensors, keys = number("<Q"), number("<Q")
    for _ in range(keys):
        raw(number("<Q"))
        match number("<I"):
            case 8:
                raw(number("<Q"))
            case 9:
                kind, count = number("<I"), number("<Q")
                for _ in range(count):
                    raw(number("<Q") if kind == 8 else 4)
            case _:
                number("<I")
    for _ in range(tensors):
        raw(number("<Q"))
        for _ in range(number("<I")):
            number("<Q")
        number("<I")
        number("<Q")
    raw(len(data) - position)
    return pieces


def gguf(chance: Random) -> bytes:
    """Make a GGUF file with one to four faults."""
    pieces = _gguf_pieces()
    for _ in range(chance.randrange(1, 5)):
        at = chance.randrange(len(pieces))
        form, value = pieces[at]
        if chance.random() < 0.2:
            other = chance.randrange(len(pieces))
            pieces[at:at] = pieces[other : other + chance.randrange(1, 6)]
        elif form:
            assert isinstance(value, int)
            near = chance.choice((value + 1, value - 1, value * 2, *NUMBERS))
            pieces[at] = (form, near & ((1 << 8 * struct.calcsize(form)) - 1))
        else:
            text = chance.choice(TEXTS)
            pieces[at] = ("", text)
            # Mostly the length changes too; otherwise the reader stops here.
            if at and pieces[at - 1][0] == "<Q" and chance.random() < 0.9:
                pieces[at - 1] = ("<Q", len(text))
    data = b"".join(
        value if isinstance(value, bytes) else struct.pack(form, value) for form, value in pieces
    )
    return spoil_bytes(data, chance) if chance.random() < 0.2 else data


# The fields of a protobuf message: number, and an integer, bytes, or a message.
Message = list[tuple[int, "int | bytes | Message"]]
# The fields of an ONNX message that are messages, by their path of field numbers.
INSIDE: Final = {
    (): (7, 8, 14, 25),
    (7,): (1, 5, 11, 12, 13, 15),
    (7, 1): (5,),
    (7, 1, 5): (5, 6),
    (7, 5): (13,),
    (7, 11): (2,),
    (7, 1, 5, 5): (13,),
    (7, 12): (2,),
    (7, 12, 2): (1,),
    (7, 12, 2, 1): (2,),
    (7, 12, 2, 1, 2): (1,),
    (7, 11, 2): (1,),
    (7, 11, 2, 1): (2,),
    (7, 11, 2, 1, 2): (1,),
}


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, position


def _take_apart(data: bytes, path: tuple[int, ...] = ()) -> Message:
    message: Message = []
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        value, position = _varint(data, position)
        number = tag >> 3
        if tag & 7 == 0:
            message.append((number, value))
            continue
        inner = data[position : position + value]
        position += value
        within = number in INSIDE.get(path, ())
        message.append((number, _take_apart(inner, (*path, number)) if within else inner))
    return message


def _encoded(value: int) -> bytes:
    data = bytearray()
    while value > 0x7F:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*data, value])


def _put_together(message: Message) -> bytes:
    data = bytearray()
    for number, value in message:
        if isinstance(value, int):
            data += _encoded(number << 3) + _encoded(value)
        else:
            inner = _put_together(value) if isinstance(value, list) else value
            data += _encoded(number << 3 | 2) + _encoded(len(inner)) + inner
    return bytes(data)


def _messages(message: Message) -> Iterable[Message]:
    yield message
    for _, value in message:
        if isinstance(value, list):
            yield from _messages(value)


def _sound_onnx_models() -> list[bytes]:
    models = [hostile_files.rich_onnx().SerializeToString()] * 3
    for spoil in (lambda _: None, hostile_files.nested(2), hostile_files.external(location="w")):
        model = hostile_files.sound_onnx()
        spoil(model)
        models.append(model.SerializeToString())
    return models


ONNX_SEEDS: Final = _sound_onnx_models()


def onnx(chance: Random) -> bytes:
    """Make an ONNX file with one to four faults."""
    model = _take_apart(chance.choice(ONNX_SEEDS))
    for _ in range(chance.randrange(1, 5)):
        messages = [message for message in _messages(model) if message]
        message = chance.choice(messages)
        at = chance.randrange(len(message))
        number, value = message[at]
        match chance.randrange(7):
            case 0:
                message[at] = (number, chance.choice(NUMBERS))
            case 1:
                message[at] = (number, chance.choice(TEXTS))
            case 2:
                message[at] = (chance.randrange(1, 30), value)
            case 3:
                del message[at]
            case 4:
                # Nested messages multiply, and the file must stay small enough for a fast test.
                most = 8 if isinstance(value, list) else 300
                message[at:at] = [message[at]] * chance.randrange(1, most)
            case 5:
                # A packed field of numbers, such as a shape.
                packed = b"".join(_encoded(chance.choice(NUMBERS)) for _ in range(20))
                message[at] = (number, packed[: chance.randrange(len(packed))])
            case _:
                # A copy, because a message cannot contain itself.
                other = _put_together(chance.choice(messages))
                message.insert(at, (number, other[: 1 << 16]))
    data = _put_together(model)
    return spoil_bytes(data, chance) if chance.random() < 0.2 else data


def config(chance: Random) -> bytes:
    """Make a faulty config.json of an ONNX model."""
    values: tuple[object, ...] = (
        "llama",
        -1,
        1 << 70,
        1.5,
        None,
        [],
        {},
        "x" * 100,
        [1] * 1000,
        True,
    )
    names = ("model_type", "max_position_embeddings", "num_attention_heads", "eos_token_id")
    text = json.dumps({name: chance.choice(values) for name in names}).encode()
    match chance.randrange(4):
        case 0:
            return b"[" * chance.choice((10, 100_000))
        case 1:
            return spoil_bytes(text, chance)
        case 2:
            return b'{"model_type":' + b'{"a":' * 50_000
        case _:
            return text
