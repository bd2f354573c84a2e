"""Generated files that attack their readers: GGUF, ONNX, and files beside a model.

Inspectors must refuse every file of ``GGUF`` and ``ONNX``. Most of these are made from SOUND_GGUF
and ``sound_onnx`` by one change. tests.security.fuzz_model_files generates more.
"""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Spoil = Callable[[onnx.ModelProto], Any]


def string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def key(name: bytes, kind: int, value: bytes) -> bytes:
    return string(name) + struct.pack("<I", kind) + value


def header(tensors: int, keys: int, *parts: bytes, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + b"".join(parts)


def tensor(
    name: bytes = b"t", dims: tuple[int, ...] = (32,), kind: int = 0, offset: int = 0
) -> bytes:
    shape = struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
    return string(name) + shape + struct.pack("<IQ", kind, offset)


def padded(data: bytes, values: bytes = bytes(128), alignment: int = 32) -> bytes:
    return data + bytes(-len(data) % alignment) + values


def array(kind: int, count: int, values: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + values


ARCHITECTURE = key(b"general.architecture", 8, string(b"llama"))
SOUND_GGUF: Final = padded(header(1, 1, ARCHITECTURE, tensor()))
HUGE: Final = (1 << 63) + 5
RICH_GGUF: Final = padded(
    header(
        2,
        8,
        ARCHITECTURE,
        *(
            key(b"llama." + name, 4, struct.pack("<I", value))
            for name, value in (
                (b"context_length", 512),
                (b"embedding_length", 64),
                (b"block_count", 2),
                (b"attention.head_count", 4),
            )
        ),
        key(b"tokenizer.ggml.tokens", 9, array(8, 3, string(b"a") + string(b"bc") + string(b""))),
        key(b"scores", 9, array(6, 3, bytes(12))),
        key(b"general.alignment", 4, struct.pack("<I", 64)),
        tensor(b"a", (32, 2), kind=8),
        tensor(b"b", (8,), offset=128),
    ),
    bytes(160),
    alignment=64,
)


def _with_context(kind: int, value: bytes) -> bytes:
    context = key(b"llama.context_length", kind, value)
    return padded(header(1, 2, ARCHITECTURE, context, tensor()))


GGUF: Final = {
    "empty": b"",
    "only a magic": b"GGUF",
    "cut in the counts": header(0, 0)[:-1],
    "version 1": header(0, 0, version=1),
    "version 4": header(0, 0, version=4),
    "big-endian version": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
    "zip": b"PK\x03\x04" + bytes(60),
    "pickle": b"\x80\x04\x95" + bytes(60),
    "torch": b"\x80\x02" + bytes(60),
    "elf": b"\x7fELF" + bytes(60),
    "html": b"<!DOCTYPE html><html>404</html>",
    "lfs pointer": b"version https://git-lfs.github.com/spec/v1\n",
    "zip from its end": SOUND_GGUF + b"PK\x05\x06" + bytes(18),
    "something appended": SOUND_GGUF + bytes(64),
    # The gguf package would loop over it for hours.
    "49 bytes that hang": header(0, 1, key(b"a", 9, array(4, HUGE))),
    "huge tensor count": header(HUGE, 0),
    "huge key count": header(0, HUGE),
    "many keys": header(0, 4097, *[key(b"%d" % n, 0, b"\0") for n in range(4097)]),
    "huge key": header(0, 1, struct.pack("<Q", HUGE)),
    "huge string": header(0, 1, key(b"a", 8, struct.pack("<Q", HUGE))),
    "huge array of strings": header(0, 1, key(b"a", 9, array(8, 1 << 40))),
    "array beyond the file": header(0, 1, key(b"a", 9, array(4, 1000))),
    "arrays in arrays": header(0, 1, key(b"a", 9, array(9, 1, array(9, 1, array(4, 0))))),
    "unknown value type": header(0, 1, key(b"a", 13, bytes(8))),
    "unknown array type": header(0, 1, key(b"a", 9, array(99, 1, bytes(8)))),
    "key twice": header(0, 2, key(b"a", 0, b"\0"), key(b"a", 0, b"\0")),
    "key as value and array": header(0, 2, key(b"a", 0, b"\0"), key(b"a", 9, array(0, 0))),
    "key that is no UTF-8": header(0, 1, key(b"\xff\xfe", 0, b"\0")),
    "no dimensions": padded(header(1, 0, tensor(dims=()))),
    "five dimensions": padded(header(1, 0, tensor(dims=(1, 1, 1, 1, 1)))),
    "a dimension of none": padded(header(1, 0, tensor(dims=(0,)))),
    "dimensions that overflow": padded(header(1, 0, tensor(dims=(1 << 32, 1 << 32)))),
    "unknown tensor type": padded(header(1, 0, tensor(kind=4))),
    "part of a block": padded(header(1, 0, tensor(dims=(33,), kind=2))),
    "offset beyond the file": padded(header(1, 0, tensor(offset=1 << 40))),
    "offset that wraps": padded(header(1, 0, tensor(offset=HUGE))),
    "offset not aligned": padded(header(1, 0, tensor(offset=4)), bytes(160)),
    "tensors on top of each other": padded(header(2, 0, tensor(b"a"), tensor(b"b"))),
    "tensor twice": padded(header(2, 0, tensor(), tensor(offset=128)), bytes(256)),
    "tensor cut off": SOUND_GGUF[:-1],
    "long tensor name": padded(header(1, 0, tensor(b"x" * 64))),
    "alignment of none": padded(header(1, 1, key(b"general.alignment", 4, bytes(4)), tensor())),
    "alignment that is no power": padded(
        header(1, 1, key(b"general.alignment", 4, struct.pack("<I", 48)), tensor())
    ),
    "huge alignment": padded(
        header(1, 1, key(b"general.alignment", 4, struct.pack("<I", 1 << 31)), tensor())
    ),
    "a context that is negative": _with_context(5, struct.pack("<i", -1)),
    "a context beyond all memory": _with_context(10, struct.pack("<Q", HUGE)),
    "a context that is a truth": _with_context(8, string(b"true")),
    "a key that passes for the length of an array": padded(
        header(1, 1, key(b"tokenizer.ggml.tokens#", 8, string(b"many")), tensor())
    ),
    "alignment that is text": padded(
        header(1, 1, key(b"general.alignment", 8, string(b"32")), tensor())
    ),
}


def sound_onnx() -> onnx.ModelProto:
    """Return a model that computes y = x w."""
    weight = numpy_helper.from_array(np.ones((4, 3), dtype=np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        initializer=[weight],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


def rich_onnx() -> onnx.ModelProto:
    """Return a decoder with Optimum's names, with raw and with typed weights."""
    floats = helper.make_tensor("scales", TensorProto.FLOAT, [2, 3], [1.0] * 6)
    packed = numpy_helper.from_array(np.zeros((4, 1, 16), dtype=np.uint8), "packed")
    inputs: list[onnx.ValueInfoProto] = []
    *inputs, logits = (
        helper.make_tensor_value_info(
            name, kind, [int(size) if size.isdecimal() else size for size in shape.split()]
        )
        for name, kind, shape in (
            ("input_ids", TensorProto.INT64, "batch tokens"),
            ("past_key_values.0.key", TensorProto.FLOAT, "batch 2 past 8"),
            ("logits", TensorProto.FLOAT, "batch tokens 512"),
        )
    )
    nodes = [
        helper.make_node(
            *("MatMulNBits", ["a", "packed", "scales"], ["logits"]),
            domain="com.microsoft",
            N=4,
            K=32,
            bits=4,
            block_size=32,
        ),
        helper.make_node("Constant", [], ["c"], value=floats),
    ]
    graph = helper.make_graph(nodes, "g", inputs, [logits], initializer=[packed, floats])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.metadata_props.add(key="task", value="classification")
    return model


def external(**entries: str) -> Spoil:
    def spoil(model: onnx.ModelProto) -> None:
        weight = model.graph.initializer[0]
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        for key, value in entries.items():
            weight.external_data.add(key=key, value=value)

    return spoil


def nested(depth: int) -> Spoil:
    def spoil(model: onnx.ModelProto) -> None:
        graph = helper.make_graph([helper.make_node("Identity", ["a"], ["b"])], "g", [], [])
        for _ in range(depth):
            node = helper.make_node("If", ["c"], ["d"], then_branch=graph)
            graph = helper.make_graph([node], "g", [], [])
        model.graph.node.extend(graph.node)

    return spoil


def _unraw(spoil: Callable[[TensorProto], Any]) -> Spoil:
    def spoil_first(model: onnx.ModelProto) -> None:
        model.graph.initializer[0].ClearField("raw_data")
        spoil(model.graph.initializer[0])

    return spoil_first


def _with_external(**entries: str) -> onnx.GraphProto:
    model = sound_onnx()
    external(**entries)(model)
    model.graph.initializer[0].dims[0] = 1 << 20
    return model.graph


_SPOILED: Final[dict[str, Spoil]] = {
    "weights in the parent folder": external(location="../weights"),
    "weights at a root": external(location="/etc/passwd"),
    "weights in a folder": external(location="data/weights"),
    "weights nowhere": external(location=""),
    "weights in a file that is not there": external(location="weights.bin"),
    "weights of another length": external(location="there.bin", length="5"),
    "weights at a negative offset": external(location="there.bin", offset="-4"),
    "weights beyond the end": external(location="there.bin", offset="64"),
    "weights behind a link": external(location="link.bin"),
    "a context of an execution provider": lambda m: m.graph.node.append(
        helper.make_node("EPContext", [], ["z"], domain="com.microsoft", ep_cache_context="x.so")
    ),
    "a context inside a branch": lambda m: m.graph.node.append(
        helper.make_node(
            "If",
            ["x"],
            ["z"],
            then_branch=helper.make_graph(
                [helper.make_node("EPContext", [], ["z"], domain="com.microsoft")], "g", [], []
            ),
        )
    ),
    "operators of an unknown domain": lambda m: m.graph.node.append(
        helper.make_node("Run", [], ["z"], domain="evil.example")
    ),
    "an unknown operator set": lambda m: m.opset_import.append(
        helper.make_opsetid("evil.example", 1)
    ),
    "no operator set": lambda m: m.ClearField("opset_import"),
    "no graph": lambda m: m.ClearField("graph"),
    "sizes that overflow, of weights that are not there": _unraw(
        lambda t: t.dims.extend([1 << 62, 1 << 62])
    ),
    "packed sizes that overflow": lambda m: m.graph.node.append(
        helper.make_node("MatMulNBits", ["a"], ["b"], N=(1 << 62), K=(1 << 62), bits=4)
    ),
    "weights in a branch beyond the end of their file": lambda m: m.graph.node.append(
        helper.make_node("If", ["x"], ["z"], then_branch=_with_external(location="there.bin"))
    ),
    "an offset in the digits of another script": external(location="there.bin", offset="\u0663"),
    "training": lambda m: m.training_info.add(),
    "no operators": lambda m: m.graph.ClearField("node"),
    "data that is too short": lambda m: setattr(m.graph.initializer[0], "raw_data", b"\0" * 47),
    "a shape that is negative": lambda m: m.graph.initializer[0].dims.__setitem__(0, -4),
    "a shape that overflows": lambda m: m.graph.initializer[0].dims.extend([1 << 62, 1 << 62]),
    "many dimensions": lambda m: m.graph.initializer[0].dims.extend([1] * 20),
    "an unknown type": lambda m: setattr(m.graph.initializer[0], "data_type", 99),
    "sparse weights": lambda m: m.graph.sparse_initializer.add(),
    "deep nesting": nested(20),
    "a long name": lambda m: setattr(m.graph.node[0], "op_type", "x" * 5000),
}


def _spoiled(spoil: Spoil) -> bytes:
    model = sound_onnx()
    spoil(model)
    return model.SerializeToString()


_SOUND_ONNX: Final = sound_onnx().SerializeToString()

ONNX: Final = {name: _spoiled(spoil) for name, spoil in _SPOILED.items()} | {
    "empty": b"",
    "a zip": b"PK\x03\x04" + bytes(60),
    "a pickle": b"\x80\x04" + bytes(60),
    "a GGUF file": b"GGUF" + bytes(60),
    "a program": b"\x7fELF" + bytes(60),
    "a script": b"#!/bin/sh\n",
    "no protobuf": b"\xff" * 100,
    "a length beyond the end": b"\x3a\xff\xff\xff\xff\x0f",
    "a zip from its end": _SOUND_ONNX + b"PK\x05\x06" + bytes(18),
    "cut off": _SOUND_ONNX[:-9],
    "two models in one": _SOUND_ONNX * 2,
}


def write_onnx(folder: Path, content: bytes) -> Path:
    """Write a model with the files that it may refer to: a short one, and a link to it."""
    (folder / "there.bin").write_bytes(bytes(64))
    (folder / "link.bin").symlink_to(folder / "there.bin")
    path = folder / "model.onnx"
    path.write_bytes(content)
    return path


# One of each kind, for tests of entry points instead of readers: runtime -> name -> content.
AT_EVERY_DOOR: Final[dict[str, dict[str, bytes]]] = {
    "llama_cpp": {
        name: GGUF[name]
        for name in (
            "49 bytes that hang",
            "huge tensor count",
            "tensors on top of each other",
            "offset that wraps",
            "zip from its end",
            "torch",
        )
    },
    "onnx": {
        name: ONNX[name]
        for name in (
            "weights at a root",
            "weights in the parent folder",
            "a context inside a branch",
            "packed sizes that overflow",
            "deep nesting",
            "a pickle",
        )
    },
}
