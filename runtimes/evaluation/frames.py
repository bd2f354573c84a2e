"""Frames on the pipe from an evaluating process: rows of predictions, then one ending."""

import struct
from typing import Annotated, BinaryIO, Final

import msgspec
import numpy as np
from msgspec import Meta, Struct

from artifact.manifest import Task
from runtimes.predictions import Predictions

# A frame has a few dozen rows; with the largest vocabularies they take 40 MB.
MAX_FRAME_BYTES: Final = 1 << 30
MAX_WORDS: Final = 4096

# Kind, fraction done, rows and columns; of an ending, its length in bytes in the place of rows.
_HEADER: Final = struct.Struct("<cdII")
_ROWS: Final = b"R"
_END: Final = b"E"


Shapes = dict[str, tuple[int, ...]]


class EvaluationJob(Struct, frozen=True):
    """Work for an evaluating process: files of a variant by name, and the data to evaluate on.

    A ``trial`` runs the model on a few inputs only, without ``evaluation`` on generated ones.
    ``shapes`` are the sizes that the source's trial found.
    """

    runtime: str
    files: dict[str, str]
    task: Task
    context_length: int
    evaluation: str = ""
    trial: bool = False
    shapes: Shapes = {}


class Ended(Struct, frozen=True, tag=True):
    """Evaluation is complete. ``memory_bytes`` is the peak of it, 0 if unknown.

    ``shapes`` and ``unmeasured`` are the outcome of a trial (runtimes.evaluation.trial).
    """

    memory_bytes: Annotated[int, Meta(ge=0)]
    shapes: Shapes = {}
    unmeasured: str = ""


class Failed(Struct, frozen=True, tag=True):
    """Evaluation failed because of the model or the data."""

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
    """Read the next frame; raise EOFError if the pipe ends within it, ValueError if malformed."""
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
        raise ValueError(f"the frame is {length:,} bytes; the maximum is {MAX_FRAME_BYTES:,}")
    data = pipe.read(length)
    if len(data) != length:
        raise EOFError
    return data
