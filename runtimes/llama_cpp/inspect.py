"""Bounded reader of a GGUF header, which may be hostile.

The public ``gguf`` package hangs on a 49-byte file that announces an array of 2^63 elements, and
llama.cpp is C++: this reader goes first. Tensors that it accepts lie within the file, within the
bounds below, and without overlaps.
"""

import math
import os
import struct
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, Final

from artifact.manifest import Task
from runtimes.base import Inspection, TensorInfo
from runtimes.errors import UnsafeFileError
from runtimes.inspection.magic import refuse_disguise
from runtimes.llama_cpp.gguf import (
    ARRAY,
    DEFAULT_ALIGNMENT,
    FILE_TYPES,
    MAGIC,
    SCALARS,
    STRING,
    TENSOR_TYPES,
    VERSIONS,
)

MAX_HEADER_BYTES: Final = 64 << 20
MAX_KEYS: Final = 4096
MAX_KEY_BYTES: Final = 256
MAX_STRING_BYTES: Final = 1 << 20
# Sum over all arrays; the largest vocabularies have 262,144 tokens and twice as many merges.
MAX_ARRAY_VALUES: Final = 4 << 20
MAX_TENSORS: Final = 1 << 16
MAX_NAME_BYTES: Final = 63
MAX_DIMENSIONS: Final = 4
MAX_ALIGNMENT: Final = 1 << 16
MAX_CONTEXT_LENGTH: Final = 1 << 24
MAX_SHOWN: Final = 1024

_U32: Final = struct.Struct("<I")
_U64: Final = struct.Struct("<Q")

Value = int | float | bool | str


class GgufInspector:
    def inspect(self, path: Path) -> Inspection:
        refuse_disguise(path, expected=MAGIC)
        with path.open("rb", buffering=1 << 18) as file:
            header = _Header(file, path.name)
            metadata = header.read_metadata()
            tensors = header.read_tensors(metadata)
            context_length = header.context_length(metadata)
        return _summarise(metadata, tensors, context_length)


class _Header:
    """The header as a stream with bounded lengths and offsets."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file = file
        self._name = name
        self._size = os.fstat(file.fileno()).st_size
        self._position = 0
        self._array_values = 0
        magic = self._read(len(MAGIC))
        version = self._number(_U32)
        if magic != MAGIC or version not in VERSIONS:
            raise self._unsafe(f"its version is {version}; the supported versions are {VERSIONS}")
        self._tensor_count = self._count("tensors", MAX_TENSORS)
        self._key_count = self._count("metadata keys", MAX_KEYS)

    def read_metadata(self) -> dict[str, Value]:
        """Return scalars and strings by key; arrays are skipped, with their length as ``key#``."""
        metadata: dict[str, Value] = {}
        for _ in range(self._key_count):
            key = self._string("a metadata key", MAX_KEY_BYTES)
            if key in metadata or f"{key}#" in metadata or key.endswith("#"):
                raise self._unsafe(f"the metadata key {key!a} is repeated or ends with '#'")
            kind = self._number(_U32)
            if kind == ARRAY:
                metadata[f"{key}#"] = self._skip_array(key)
            else:
                metadata[key] = self._value(key, kind)
        return metadata

    def read_tensors(self, metadata: dict[str, Value]) -> tuple[TensorInfo, ...]:
        """Return the tensor table, checked against the file's size."""
        alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if (
            not isinstance(alignment, int)
            or not 8 <= alignment <= MAX_ALIGNMENT  # noqa: PLR2004 - llama.cpp's least
            or alignment & (alignment - 1)
        ):
            raise self._unsafe(
                f"its alignment is {alignment!a}; expected a power of two, 8 to {MAX_ALIGNMENT}"
            )
        entries = [self._tensor() for _ in range(self._tensor_count)]
        begin = self._position + -self._position % alignment
        tensors = tuple(
            TensorInfo(tensor.name, tensor.type, tensor.shape, begin + tensor.offset, tensor.size)
            for tensor in entries
        )
        self._check_layout(tensors, begin, alignment)
        return tensors

    def context_length(self, metadata: dict[str, Value]) -> int:
        """Return the context length of the training; 0 if the header has none."""
        length = metadata.get(f"{metadata.get('general.architecture', '')}.context_length", 0)
        if not isinstance(length, int) or not 0 <= length <= MAX_CONTEXT_LENGTH:
            raise self._unsafe(f"its context length is {str(length)[:64]!a}")
        return length

    def _tensor(self) -> TensorInfo:
        name = self._string("a tensor's name", MAX_NAME_BYTES)
        dimensions = self._number(_U32)
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise self._unsafe(f"tensor {name!a} has {dimensions} dimensions")
        lengths = [self._number(_U64) for _ in range(dimensions)]
        number = self._number(_U32)
        offset = self._number(_U64)
        kind = TENSOR_TYPES.get(number)
        if kind is None:
            raise self._unsafe(f"tensor {name!a} has the unknown type {number}")
        values = math.prod(lengths)
        if values == 0 or lengths[0] % kind.block_values:
            raise self._unsafe(f"tensor {name!a} of type {kind.name} has the shape {lengths}")
        size = values // kind.block_values * kind.block_bytes
        if size > self._size or offset > self._size:
            raise self._unsafe(f"tensor {name!a} reaches beyond its {self._size} bytes")
        # GGUF lists the fastest dimension first.
        return TensorInfo(name, kind.name, tuple(reversed(lengths)), offset, size)

    def _check_layout(self, tensors: tuple[TensorInfo, ...], begin: int, alignment: int) -> None:
        names = Counter(tensor.name for tensor in tensors)
        repeated = [name for name, count in names.items() if count > 1]
        if repeated:
            raise self._unsafe(f"tensor {repeated[0]!a} is repeated")
        end = begin if tensors else self._position
        for tensor in sorted(tensors, key=lambda tensor: tensor.offset):
            if tensor.offset < end or tensor.offset % alignment:
                raise self._unsafe(f"tensor {tensor.name!a} overlaps another or is not aligned")
            end = tensor.offset + tensor.size
        if end > self._size:
            raise self._unsafe(
                f"its tensors need {end} bytes; the file has {self._size}: it is truncated"
            )
        if self._size - end >= max(alignment, DEFAULT_ALIGNMENT):
            raise self._unsafe(f"{self._size - end} bytes follow its last tensor")

    def _value(self, key: str, kind: int) -> Value:
        if kind == STRING:
            return self._string(f"the value of {key!a}", MAX_STRING_BYTES)
        scalar = SCALARS.get(kind)
        if scalar is None:
            raise self._unsafe(f"the value of {key!a} has the unknown type {kind}")
        value: Value = scalar.unpack(self._read(scalar.size))[0]
        return value

    def _skip_array(self, key: str) -> int:
        kind = self._number(_U32)
        count = self._number(_U64)
        self._array_values += count
        if self._array_values > MAX_ARRAY_VALUES:
            raise self._unsafe(
                f"the array {key!a} has {count} values; all arrays may have {MAX_ARRAY_VALUES}"
            )
        if kind == STRING:
            for _ in range(count):
                self._skip(self._length(f"a string of {key!a}", MAX_STRING_BYTES))
        elif kind in SCALARS:
            self._skip(count * SCALARS[kind].size)
        else:
            raise self._unsafe(f"the array {key!a} has values of type {kind}")
        return count

    def _string(self, what: str, limit: int) -> str:
        data = self._read(self._length(what, limit))
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise self._unsafe(f"{what} is not UTF-8: {data[:32]!r}") from error

    def _length(self, what: str, limit: int) -> int:
        length = self._number(_U64)
        if length > limit:
            raise self._unsafe(f"{what} has {length} bytes; the maximum is {limit}")
        return length

    def _count(self, what: str, limit: int) -> int:
        count = self._number(_U64)
        if count > limit:
            raise self._unsafe(f"it announces {count} {what}; the maximum is {limit}")
        return count

    def _number(self, form: struct.Struct) -> int:
        value: int = form.unpack(self._read(form.size))[0]
        return value

    def _read(self, length: int) -> bytes:
        self._advance(length)
        data = self._file.read(length)
        if len(data) != length:
            raise self._unsafe("it became shorter while it was read")
        return data

    def _skip(self, length: int) -> None:
        self._advance(length)
        self._file.seek(length, os.SEEK_CUR)

    def _advance(self, length: int) -> None:
        self._position += length
        if self._position > self._size:
            raise self._unsafe(f"its header reaches beyond its {self._size} bytes: it is truncated")
        if self._position > MAX_HEADER_BYTES:
            raise self._unsafe(f"its header has more than {MAX_HEADER_BYTES} bytes, the maximum")

    def _unsafe(self, reason: str) -> UnsafeFileError:
        return UnsafeFileError(
            f"{self._name} is not a valid GGUF file: {reason}",
            advice="Fetch or export it again; do not load it with anything else.",
        )


def _summarise(
    metadata: dict[str, Value], tensors: tuple[TensorInfo, ...], context_length: int
) -> Inspection:
    architecture = str(metadata.get("general.architecture", ""))
    pools = f"{architecture}.pooling_type" in metadata
    return Inspection(
        format="gguf",
        task=Task.EMBEDDING if pools else Task.TEXT_GENERATION,
        architecture=architecture[:MAX_SHOWN],
        parameters=sum(math.prod(tensor.shape) for tensor in tensors),
        quantization=_quantization(metadata, tensors),
        context_length=context_length,
        tensors=tensors,
        metadata={key: str(value)[:MAX_SHOWN] for key, value in metadata.items()},
    )


def _quantization(metadata: dict[str, Value], tensors: Iterable[TensorInfo]) -> str:
    """Return the file type, else the type of most of the file's bytes."""
    file_type = metadata.get("general.file_type")
    if isinstance(file_type, int) and file_type in FILE_TYPES:
        return FILE_TYPES[file_type]
    sizes: Counter[str] = Counter()
    for tensor in tensors:
        sizes[tensor.type] += tensor.size
    return sizes.most_common(1)[0][0] if sizes else "unknown"
