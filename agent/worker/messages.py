"""What the daemon and a worker process say to each other, as tagged msgpack frames.

A frame is a 4-byte big-endian length and that many bytes. Every command but ``Cancel`` is answered
by events with its id, the last of which is final.
"""

import struct
from typing import Final

import msgspec
from msgspec import Struct

from agent.errors import ProtocolError
from artifact.manifest import Task
from runtimes.base import Embeddings, Sampling, Score, TensorSpec, Usage

MAX_FRAME_BYTES = 64 << 20
HEADER: Final = struct.Struct(">I")


# What a Piece consists of, in its order.
WirePiece = tuple[str, int | None, str | None, float | None]
# Of a tensor's data in the region that both sides share (agent.worker.region): offset, length.
Place = tuple[int, int]


class WireTensor(Struct, frozen=True, array_like=True):
    """A TensorValue, with its data or the place where they lie."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes | Place


class Command(Struct, frozen=True, kw_only=True, tag=True):
    """Something the daemon wants of the worker."""

    id: int


class Load(Command, frozen=True, kw_only=True):
    """Always the first command. ``files`` maps manifest names to paths, ``adapters`` names.

    ``parallel`` is how many generations are wanted at once; 0: as many as the engine thinks good.
    """

    runtime: str
    files: dict[str, str]
    task: Task
    context_length: int
    threads: int
    adapters: dict[str, str] = {}
    parallel: int = 0


class Generate(Command, frozen=True, kw_only=True):
    """Either a prompt or a conversation (role, content)."""

    prompt: str | None
    messages: list[dict[str, str]] | None
    sampling: Sampling


class ScoreText(Command, frozen=True, kw_only=True):
    """The likelihood of a text."""

    text: str


class Embed(Command, frozen=True, kw_only=True):
    """The embeddings of texts."""

    texts: list[str]


class Infer(Command, frozen=True, kw_only=True):
    """Tensors in, tensors out; data of outputs may be put into ``room``."""

    inputs: list[WireTensor]
    room: Place = (0, 0)


class Cancel(Command, frozen=True, kw_only=True):
    """Nobody waits for the answer to the command of this id any more."""


class Event(Struct, frozen=True, kw_only=True, tag=True):
    """An answer to the command of the same id."""

    id: int


class Importing(Event, frozen=True, kw_only=True):
    """The engine's code is in memory, the model is not; resident bytes so far.

    ``confinement`` says how the process is confined (runtimes.confinement).
    """

    resident_bytes: int
    confinement: str


class Loaded(Event, frozen=True, kw_only=True):
    """The model is in memory: what it takes of it, and the tensors that it declares."""

    model_memory_bytes: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    parallel: int = 1


class Working(Event, frozen=True, kw_only=True):
    """Work goes on, though it has brought nothing to send yet; the id is 0, as it is nobody's."""


class Tokens(Event, frozen=True, kw_only=True):
    """Pieces of generated text."""

    pieces: list[WirePiece]


class Generated(Event, frozen=True, kw_only=True):
    """A generation is over."""

    usage: Usage


class Scored(Event, frozen=True, kw_only=True):
    """The likelihood asked for."""

    score: Score


class Embedded(Event, frozen=True, kw_only=True):
    """The embeddings asked for, and the seconds that the engine worked on them."""

    embeddings: Embeddings
    busy_seconds: float


class Inferred(Event, frozen=True, kw_only=True):
    """The tensors asked for."""

    outputs: list[WireTensor]


class Failed(Event, frozen=True, kw_only=True):
    """The command failed.

    ``kind``: refused, context_exceeded, unsupported, unsafe_file, out_of_memory, no_runtime,
    cancelled, failed.
    """

    kind: str
    message: str
    advice: str


AnyCommand = Load | Generate | ScoreText | Embed | Infer | Cancel
AnyEvent = Importing | Loaded | Working | Tokens | Generated | Scored | Embedded | Inferred | Failed
FINAL = (Loaded, Generated, Scored, Embedded, Inferred, Failed)

_encoder = msgspec.msgpack.Encoder()
_commands: msgspec.msgpack.Decoder[AnyCommand] = msgspec.msgpack.Decoder(AnyCommand)
_events: msgspec.msgpack.Decoder[AnyEvent] = msgspec.msgpack.Decoder(AnyEvent)


def encode(message: AnyCommand | AnyEvent) -> bytearray:
    """A whole frame; ProtocolError when it would be too long."""
    # In place: a tensor is copied once.
    frame = bytearray(HEADER.size)
    _encoder.encode_into(message, frame, HEADER.size)
    length = len(frame) - HEADER.size
    check_length(length)
    HEADER.pack_into(frame, 0, length)
    return frame


def decode_command(payload: bytes | memoryview) -> AnyCommand:
    """A command from a frame's bytes; ProtocolError for anything else."""
    try:
        return _commands.decode(payload)
    except msgspec.MsgspecError as error:
        raise ProtocolError(f"not a command: {error}") from error


def decode_event(payload: bytes | memoryview) -> AnyEvent:
    """An event from a frame's bytes; ProtocolError for anything else."""
    try:
        return _events.decode(payload)
    except msgspec.MsgspecError as error:
        raise ProtocolError(f"not an event: {error}") from error


def check_length(length: int) -> None:
    """ProtocolError when a frame is longer than either side accepts."""
    if length > MAX_FRAME_BYTES:
        raise ProtocolError(
            f"a frame of {length} bytes is longer than {MAX_FRAME_BYTES}",
            advice="Send smaller inputs.",
        )


class FrameReader:
    """Cuts a byte stream into frames, as it comes."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes | bytearray) -> list[bytes]:
        """The frames that these bytes complete; ProtocolError when one is too long."""
        self._buffer += data
        frames: list[bytes] = []
        position = 0
        while len(self._buffer) - position >= HEADER.size:
            (length,) = HEADER.unpack_from(self._buffer, position)
            check_length(length)
            end = position + HEADER.size + length
            if len(self._buffer) < end:
                break
            with memoryview(self._buffer) as view:
                frames.append(bytes(view[position + HEADER.size : end]))
            position = end
        del self._buffer[:position]
        return frames
