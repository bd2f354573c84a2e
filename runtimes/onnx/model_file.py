"""Walk an ONNX file within bounds: graph, weights, operators.

Field numbers are those of https://github.com/onnx/onnx/blob/main/onnx/onnx.proto. The file may be
hostile. The walk refuses weights outside the model's own folder, execution-provider contexts (which
name further files), operators of unknown domains, and anything beyond a bound.
"""

import math
import mmap
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from runtimes.base import TensorInfo, TensorSpec
from runtimes.errors import UnsafeFileError
from runtimes.inspection.magic import refuse_disguise
from runtimes.onnx.wire import Field, WireReader

# Protobuf's own limit; larger models keep their weights beside the file.
MAX_MODEL_BYTES: Final = (1 << 31) - 1
MAX_NAME_BYTES: Final = 4096
MAX_DIMENSIONS: Final = 16
# Over all tensors: a shape without data may claim any number of values.
MAX_TENSOR_VALUES: Final = 1 << 48
MAX_TENSORS: Final = 1 << 16
MAX_NODES: Final = 1 << 18
MAX_GRAPH_DEPTH: Final = 8
MAX_VALUES: Final = 4096
DOMAINS: Final = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc")
_NUMBER: Final = re.compile(r"[0-9]{1,15}")
PLAIN_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")

# TensorProto.DataType: name, bits per value, Open Inference Protocol datatype.
DATA_TYPES: Final = {
    1: ("fp32", 32, "FP32"),
    2: ("uint8", 8, "UINT8"),
    3: ("int8", 8, "INT8"),
    4: ("uint16", 16, "UINT16"),
    5: ("int16", 16, "INT16"),
    6: ("int32", 32, "INT32"),
    7: ("int64", 64, "INT64"),
    8: ("string", 0, "BYTES"),
    9: ("bool", 8, "BOOL"),
    10: ("fp16", 16, "FP16"),
    11: ("fp64", 64, "FP64"),
    12: ("uint32", 32, "UINT32"),
    13: ("uint64", 64, "UINT64"),
    14: ("complex64", 64, ""),
    15: ("complex128", 128, ""),
    16: ("bf16", 16, ""),
    17: ("fp8_e4m3fn", 8, ""),
    18: ("fp8_e4m3fnuz", 8, ""),
    19: ("fp8_e5m2", 8, ""),
    20: ("fp8_e5m2fnuz", 8, ""),
    21: ("uint4", 4, ""),
    22: ("int4", 4, ""),
    23: ("fp4_e2m1", 4, ""),
}


@dataclass(slots=True)
class ModelFile:
    """Contents of an ONNX file.

    ``external`` maps the names of files with external weights to the bytes that they must have.
    """

    inputs: list[TensorSpec] = field(default_factory=list)
    outputs: list[TensorSpec] = field(default_factory=list)
    tensors: list[TensorInfo] = field(default_factory=list)
    operators: dict[str, int] = field(default_factory=dict)
    properties: dict[str, str] = field(default_factory=dict)
    external: dict[str, int] = field(default_factory=dict)
    # (output width, input width, bits) of every MatMulNBits node, whose weights are packed.
    packed: list[tuple[int, int, int]] = field(default_factory=list)
    packed_names: set[str] = field(default_factory=set)
    # Values in float lists of attributes, where tree ensembles and linear models keep weights.
    attribute_values: int = 0


def read_model(path: Path) -> ModelFile:
    """Walk a file; raise UnsafeFileError if it is malformed or exceeds a bound."""
    refuse_disguise(path)
    with path.open("rb") as file:
        size = path.stat().st_size
        if not 0 < size <= MAX_MODEL_BYTES:
            raise UnsafeFileError(
                f"{path.name} is {size:,} bytes; an ONNX file has 1 to {MAX_MODEL_BYTES:,}",
                advice="Keep larger weights in external data beside it.",
            )
        # Mapped, so that only the pages that the walk visits are read: it skips the weights.
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Walk(WireReader(data, path.name)).model(size)


@dataclass(slots=True)
class _Node:
    """The parts of a NodeProto that the walk uses; ``tensors`` are those in its attributes."""

    kind: str = ""
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    tensors: list[TensorInfo] = field(default_factory=list)
    numbers: dict[str, int] = field(default_factory=dict)


class _Walk:
    def __init__(self, wire: WireReader) -> None:
        self._wire = wire
        self._found = ModelFile()
        self._nodes = 0
        self._tensors = 0
        self._values = 0
        self._names: Counter[str] = Counter()
        # Domains of operators and operator sets, and those that the model's functions define.
        self._domains: set[str] = set()
        self._defined: set[str] = set()

    def model(self, size: int) -> ModelFile:
        graphs = 0
        opsets = 0
        for part in self._wire.fields(0, size):
            match part.number:
                case 7:
                    graphs += 1
                    self._graph(part, depth=0)
                case 8:
                    opsets += 1
                    self._opset(part)
                case 14:
                    self._property(part, self._found.properties)
                case 20:
                    raise self._wire.unsafe("it contains training information")
                case 25:
                    self._function(part)
        self._check_domains()
        if graphs != 1 or not opsets or not self._nodes:
            raise self._wire.unsafe(
                f"it has {graphs} graphs, {opsets} operator sets and {self._nodes} operators"
            )
        return self._found

    def _graph(self, message: Field, depth: int) -> None:
        if depth > MAX_GRAPH_DEPTH:
            raise self._wire.unsafe(f"its graphs are nested more than {MAX_GRAPH_DEPTH} deep")
        for part in self._wire.fields(message.start, message.end):
            match part.number:
                case 1:
                    self._node(part, depth)
                case 5:
                    self._store(self._tensor(part))
                case 11 if depth == 0:
                    self._declare(part, self._found.inputs)
                case 12 if depth == 0:
                    self._declare(part, self._found.outputs)
                case 15:
                    raise self._wire.unsafe("it has sparse weights, which are not supported")

    def _function(self, message: Field) -> None:
        for part in self._wire.fields(message.start, message.end):
            if part.number == 7:  # noqa: PLR2004 - FunctionProto.node
                self._node(part, depth=1)
            elif part.number == 9:  # noqa: PLR2004 - FunctionProto.opset_import
                self._opset(part)
            elif part.number == 10:  # noqa: PLR2004 - FunctionProto.domain
                self._defined.add(self._text(part))

    def _opset(self, message: Field) -> None:
        for part in self._wire.fields(message.start, message.end):
            if part.number == 1:
                self._domains.add(self._text(part))

    def _node(self, message: Field, depth: int) -> None:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise self._wire.unsafe(f"it has more than {MAX_NODES} operators")
        node = self._read_node(message, depth)
        if node.kind == "EPContext":
            raise self._wire.unsafe("it has an EPContext node, which loads code from other files")
        self._found.operators[node.kind] = self._found.operators.get(node.kind, 0) + 1
        if node.kind == "Constant":
            # Its tensor rarely has a name: the value that other nodes read is the node's output.
            for info in node.tensors:
                self._store(replace(info, name=node.outputs[0] if node.outputs else info.name))
        if node.kind == "MatMulNBits":
            numbers = node.numbers
            shape = (numbers.get("N", 0), numbers.get("K", 0), numbers.get("bits", 4))
            self._count_values(node.kind, shape[0] * shape[1])
            self._found.packed.append(shape)
            self._found.packed_names.update(node.inputs[1:])

    def _read_node(self, message: Field, depth: int) -> "_Node":
        node = _Node()
        for part in self._wire.fields(message.start, message.end):
            match part.number:
                case 1:
                    node.inputs.append(self._text(part))
                case 2:
                    node.outputs.append(self._text(part))
                case 4:
                    node.kind = self._text(part)
                case 5:
                    node.tensors += self._attribute(part, node.numbers, depth)
                case 7:
                    self._domains.add(self._text(part))
        return node

    def _attribute(self, message: Field, numbers: dict[str, int], depth: int) -> list[TensorInfo]:
        """Read an attribute; return the tensors in it."""
        name = ""
        tensors = []
        for part in self._wire.fields(message.start, message.end):
            match part.number:
                case 1:
                    name = self._text(part)
                case 3:
                    numbers[name] = part.value
                case 5 | 10:
                    tensors.append(self._tensor(part))
                case 6 | 11:
                    self._graph(part, depth + 1)
                case 7:
                    count = (part.end - part.start) // 4
                    self._count_values(name, count)
                    self._found.attribute_values += count
        return tensors

    def _tensor(self, message: Field) -> TensorInfo:
        self._tensors += 1
        if self._tensors > MAX_TENSORS:
            raise self._wire.unsafe(f"it has more than {MAX_TENSORS} tensors")
        return self._tensor_info(message)

    def _store(self, info: TensorInfo) -> None:
        """Add a weight; branches of an If may use the same name, which then gets a number."""
        number = self._names[info.name]
        self._names[info.name] += 1
        if number:
            info = replace(info, name=f"{info.name}#{number + 1}")
        self._found.tensors.append(info)

    def _tensor_info(self, message: Field) -> TensorInfo:
        name, kind, data, raw = "", 0, None, False
        dims: list[int] = []
        external: dict[str, str] = {}
        for part in self._wire.fields(message.start, message.end):
            match part.number:
                case 1:
                    dims += self._wire.integers(part, MAX_DIMENSIONS)
                    if len(dims) > MAX_DIMENSIONS:
                        raise self._wire.unsafe(f"tensor {name!a} has too many dimensions")
                case 2:
                    kind = part.value
                case 4 | 5 | 6 | 7 | 9 | 10 | 11:
                    data, raw = part, part.number == 9  # noqa: PLR2004 - TensorProto.raw_data
                case 8:
                    name = self._text(part)
                case 13:
                    self._property(part, external)
        offset, size = (data.start, data.end - data.start) if data else (message.start, 0)
        type_name, needed = self._needs(name, kind, dims)
        # Other data fields hold varints or text, whose length says nothing about the shape.
        if raw and size != needed:
            raise self._wire.unsafe(f"tensor {name!a} has {size} bytes; {dims} needs {needed}")
        if not external:
            return TensorInfo(name, type_name, tuple(dims), offset, size)
        location, offset = self._external(name, external, needed)
        return TensorInfo(name, type_name, tuple(dims), offset, needed, file=location)

    def _needs(self, name: str, kind: int, dims: list[int]) -> tuple[str, int]:
        """Return the type's name, and the bytes that a tensor of this shape takes."""
        if kind not in DATA_TYPES or min(dims, default=0) < 0:
            raise self._wire.unsafe(f"tensor {name!a} has the type {kind} and the shape {dims}")
        values = math.prod(dims)
        self._count_values(name, values)
        type_name, bits, _ = DATA_TYPES[kind]
        return type_name, (values * bits + 7) // 8

    def _count_values(self, name: str, count: int) -> None:
        self._values += count
        if self._values > MAX_TENSOR_VALUES:
            raise self._wire.unsafe(
                f"its tensors up to {name!a} claim {self._values} values; the maximum is "
                f"{MAX_TENSOR_VALUES}"
            )

    def _external(self, name: str, entries: dict[str, str], needed: int) -> tuple[str, int]:
        """Return the file beside the model, and the offset of the tensor in it."""
        location = entries.get("location", "")
        if not PLAIN_NAME.fullmatch(location):
            raise self._wire.unsafe(
                f"tensor {name!a} is in {location!a}, which is not a plain name beside the model"
            )
        for key in ("offset", "length"):
            if not _NUMBER.fullmatch(entries.get(key, "0")):
                raise self._wire.unsafe(f"tensor {name!a} has the {key} {entries[key]!a}")
        # Without a length, the tensor extends to the size that its shape gives.
        if int(entries.get("length", needed)) != needed:
            raise self._wire.unsafe(
                f"tensor {name!a} has {entries['length']} external bytes; its shape needs {needed}"
            )
        offset = int(entries.get("offset", 0))
        self._found.external[location] = max(offset + needed, self._found.external.get(location, 0))
        return location, offset

    def _property(self, message: Field, into: dict[str, str]) -> None:
        key = value = ""
        for part in self._wire.fields(message.start, message.end):
            if part.number == 1:
                key = self._text(part)
            elif part.number == 2:  # noqa: PLR2004 - StringStringEntryProto.value
                value = self._wire.text(part, 1 << 20)
        if len(into) >= MAX_VALUES:
            raise self._wire.unsafe(f"it has more than {MAX_VALUES} properties")
        into[key] = value

    def _declare(self, message: Field, into: list[TensorSpec]) -> None:
        if len(into) >= MAX_VALUES:
            raise self._wire.unsafe(f"it declares more than {MAX_VALUES} inputs or outputs")
        into.append(self._value(message))

    def _value(self, message: Field) -> TensorSpec:
        """Read a ValueInfoProto; a value that is not a tensor has no datatype."""
        name, kind = "", 0
        dims: list[int] = []
        for part in self._wire.fields(message.start, message.end):
            if part.number == 1:
                name = self._text(part)
            elif part.number == 2:  # noqa: PLR2004 - ValueInfoProto.type
                for kind_of in self._inside(part, 1):
                    for detail in self._wire.fields(kind_of.start, kind_of.end):
                        if detail.number == 1:
                            kind = detail.value
                        elif detail.number == 2:  # noqa: PLR2004 - Tensor.shape
                            dims = [self._dimension(dim) for dim in self._inside(detail, 1)]
        if len(dims) > MAX_DIMENSIONS:
            raise self._wire.unsafe(f"{name!a} has {len(dims)} dimensions")
        datatype = DATA_TYPES[kind][2] if kind in DATA_TYPES else ""
        return TensorSpec(name, datatype, tuple(dims))

    def _inside(self, message: Field, number: int) -> Iterable[Field]:
        fields = self._wire.fields(message.start, message.end)
        return [part for part in fields if part.number == number]

    def _dimension(self, message: Field) -> int:
        for part in self._inside(message, 1):
            # A negative size is a varint of ten bytes, which reads as a huge number.
            return part.value if part.value < 1 << 40 else -1
        return -1

    def _check_domains(self) -> None:
        """Refuse operators that neither ONNX Runtime nor the model's own functions define."""
        unknown = sorted(self._domains - set(DOMAINS) - self._defined)
        if unknown:
            raise self._wire.unsafe(f"it needs operators of the unknown domain {unknown[0]!a}")

    def _text(self, part: Field) -> str:
        return self._wire.text(part, MAX_NAME_BYTES)
