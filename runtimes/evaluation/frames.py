"""How an evaluating process tells what it predicts, on a pipe."""

import struct
from typing import Annotated, BinaryIO, Final

import msgspec
import numpy as np
from msgspec import Meta, Struct

from artifact.manifest import Task
from runtimes.predictions import Predictions

# Of one frame: some dozen rows of the largest vocabularies have 40 MB.
MAX_FRAME_BYTES: Final = 1 << 30
MAX_WORDS: Final = 4096

_HEADER: Final = struct.Struct("<cdII")
_ROWS: Final = b"R"
_END: Final = b"E"


class EvaluationJob(Struct, frozen=True):
    """What a process is to evaluate: files of a variant by name, and the data to read."""

    runtime: str
    files: dict[str, str]
    task: Task
    context_length: int
    evaluation: str


class Ended(Struct, frozen=True, tag=True):
    """All was read. ``memory_bytes``: the peak while loading and reading; 0: not to be told."""

    memory_bytes: Annotated[int, Meta(ge=0)]


class Failed(Struct, frozen=True, tag=True):
    """The model or the data refused."""

    message: Annotated[str, Meta(max_length=MAX_WORDS)]
    advice: Annotated[str, Meta(max_length=MAX_WORDS)]


Ending = Ended | Failed
_ending: msgspec.json.Decoder[Ending] = msgspec.json.Decoder(Ending)


def write_rows(pipe: BinaryIO, some: Predictions) -> None:
    rows = np.ascontiguousarray(some.rows, dtype="<f4")
    targets = np.ascontiguousarray(some.targets, dtype="<i8")
    pipe.write(_HEADER.pack(_ROWS, some.done, *rows.shape))
    pipe.write(targets.tobytes())
    pipe.write(rows.data)


def write_end(pipe: BinaryIO, ending: Ending) -> None:
    words = msgspec.json.encode(ending)
    pipe.write(_HEADER.pack(_END, 1.0, len(words), 0))
    pipe.write(words)


def read(pipe: BinaryIO) -> Predictions | Ending:
    """The next frame; EOFError when the pipe ends within it, ValueError for none of ours."""
    kind, done, count, columns = _HEADER.unpack(_exactly(pipe, _HEADER.size))
    if kind == _END:
        return _ending.decode(_exactly(pipe, count))
    if kind != _ROWS or not count or not columns:
        raise ValueError(f"a frame of the kind {kind!r} with {count} rows of {columns}")
    targets = np.frombuffer(_exactly(pipe, 8 * count), dtype="<i8")
    rows = np.frombuffer(_exactly(pipe, 4 * count * columns), dtype="<f4")
    return Predictions(targets, rows.reshape(count, columns), done)


def _exactly(pipe: BinaryIO, length: int) -> bytes:
    if length > MAX_FRAME_BYTES:
        raise ValueError(f"a frame of {length} bytes, more than {MAX_FRAME_BYTES}")
    data = pipe.read(length)
    if len(data) != length:
        raise EOFError
    return data
