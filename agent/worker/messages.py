"""Commands and events between the daemon and a worker process, as tagged msgpack frames.

A frame is a 4-byte big-endian length and that many bytes. Every command except ``Cancel`` is
answered by events with its id; the last one is final.
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


# The fields of a Piece in order.
WirePiece = tuple[str, int | None, str | None, float | None]
# Offset and length of a tensor's data in the shared region (agent.worker.region).
Place = tuple[int, int]


class WireTensor(Struct, frozen=True, array_like=True):
    """A TensorValue with its data or their place in the region."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes | Place


class Command(Struct, frozen=True, kw_only=True, tag=True):
    """A request of the daemon to the worker."""

    id: int


class Load(Command, frozen=True, kw_only=True):
    """The first command. ``files`` and ``adapters`` map names to paths.

    ``parallel`` is the wanted number of concurrent generations; 0: the engine's own choice.
    """

    runtime: str
    files: dict[str, str]
    task: Task
    context_length: int
    threads: int
    adapters: dict[str, str] = {}
    parallel: int = 0


class Generate(Command, frozen=True, kw_only=True):
    """Generate from either a prompt or a conversation (role, content)."""

    prompt: str | None
    messages: list[dict[str, str]] | None
    sampling: Sampling


class ScoreText(Command, frozen=True, kw_only=True):
    """Compute the likelihood of a text."""

    text: str


class Embed(Command, frozen=True, kw_only=True):
    """Compute the embeddings of texts."""

    texts: list[str]


class Infer(Command, frozen=True, kw_only=True):
    """Run the model on tensors; output data may be written to ``room``."""

    inputs: list[WireTensor]
    room: Place = (0, 0)


class Cancel(Command, frozen=True, kw_only=True):
    """Cancel the command of this id."""


class Event(Struct, frozen=True, kw_only=True, tag=True):
    """An event of the command with the same id."""

    id: int


class Importing(Event, frozen=True, kw_only=True):
    """The engine is imported, the model is not loaded yet.

    ``confinement`` describes the limits in force (runtimes.confinement).
    """

    confinement: str


class Loaded(Event, frozen=True, kw_only=True):
    """The model is loaded: its declared tensors and its concurrency."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    parallel: int = 1


class Working(Event, frozen=True, kw_only=True):
    """A sign of life while no command has output; the id is 0, for no particular command."""


class Tokens(Event, frozen=True, kw_only=True):
    """Pieces of generated text."""

    pieces: list[WirePiece]


class Generated(Event, frozen=True, kw_only=True):
    """The end of a generation."""

    usage: Usage


class Scored(Event, frozen=True, kw_only=True):
    """The likelihood of a text."""

    score: Score


class Embedded(Event, frozen=True, kw_only=True):
    """The embeddings of texts, and the seconds that the engine worked on them."""

    embeddings: Embeddings
    busy_seconds: float


class Inferred(Event, frozen=True, kw_only=True):
    """The output tensors."""

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
    """Encode a frame; ProtocolError if it would be too long."""
    # Encode behind the header in place, so that tensor data is copied only once.
    frame = bytearray(HEADER.size)
    _encoder.encode_into(message, frame, HEADER.size)
    length = len(frame) - HEADER.size
    check_length(length)
    HEADER.pack_into(frame, 0, length)
    return frame


def decode_command(payload: bytes | memoryview) -> AnyCommand:
    """Decode a command; ProtocolError if ``payload`` is not one."""
    try:
        return _commands.decode(payload)
    except msgspec.MsgspecError as error:
        raise ProtocolError(f"not a command: {error}") from error


def decode_event(payload: bytes | memoryview) -> AnyEvent:
    """Decode an event; ProtocolError if ``payload`` is not one."""
    try:
        return _events.decode(payload)
    except msgspec.MsgspecError as error:
        raise ProtocolError(f"not an event: {error}") from error


def check_length(length: int) -> None:
    """Raise ProtocolError if a frame is longer than MAX_FRAME_BYTES."""
    if length > MAX_FRAME_BYTES:
        raise ProtocolError(
            f"the frame is {length:,} bytes; the maximum is {MAX_FRAME_BYTES:,}",
            advice="Send smaller inputs.",
        )


class FrameReader:
    """Splits a byte stream into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes | bytearray) -> list[bytes]:
        """Return the frames that ``data`` completes; ProtocolError if one is too long."""
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
