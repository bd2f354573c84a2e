"""Upload of the chunks that the server lacks."""

import hashlib
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import click
from flotilla.v1 import model_pb2, model_pb2_grpc

from artifact.chunks import Chunk, verify_chunk
from artifact.errors import ArtifactError
from artifact.sizes import in_bytes
from controlplane.cli.app import RefusedError
from controlplane.cli.client import TIMEOUT_SECONDS
from controlplane.cli.publishing.built_model import BuiltFile

DIGESTS_PER_CALL = 16384
REPORT_EVERY_SECONDS = 0.5
# Deadline of an upload. Stored chunks remain, so publishing again continues from there.
MIN_BYTES_PER_SECOND = 32 << 10


@dataclass(frozen=True, slots=True)
class UploadReport:
    """Distinct chunks of a release, and those that had to be sent."""

    chunks_total: int
    bytes_total: int
    chunks_sent: int
    bytes_sent: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Piece:
    """Location of a chunk's bytes: an offset of a file, or (an index) in memory."""

    chunk: Chunk
    path: Path | None
    offset: int = 0
    data: bytes = b""

    def read(self) -> bytes:
        """Read the chunk's bytes and verify them again: the file may have changed meanwhile."""
        data = self.data
        if self.path is not None:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                data = file.read(self.chunk.size)
        verify_chunk(self.chunk, data)
        return data


def upload(stub: model_pb2_grpc.ModelServiceStub, files: Iterable[BuiltFile]) -> UploadReport:
    """Query which chunks are missing and send those; progress goes to stderr."""
    pieces = _pieces(files)
    missing = _missing(stub, pieces)
    sending = _Sending(missing)
    if missing:
        total = sum(piece.chunk.size for piece in missing)
        stub.UploadChunks(
            sending.requests(), timeout=TIMEOUT_SECONDS + total / MIN_BYTES_PER_SECOND
        )
    if sending.error is not None:
        raise RefusedError(
            f"a file changed during the upload: {sending.error}",
            advice="Let nothing write to the model's folder, then publish again.",
        ) from sending.error
    return UploadReport(
        chunks_total=len(pieces),
        bytes_total=sum(piece.chunk.size for piece in pieces.values()),
        chunks_sent=sending.chunks,
        bytes_sent=sending.bytes,
        seconds=round(sending.elapsed(), 3),
    )


def _pieces(files: Iterable[BuiltFile]) -> dict[bytes, Piece]:
    """Return pieces by digest, so that bytes shared by several files travel once."""
    pieces: dict[bytes, Piece] = {}
    for file in files:
        encoded = file.encoded_index
        index = Chunk(hashlib.sha256(encoded).digest(), len(encoded))
        pieces.setdefault(index.sha256, Piece(index, None, data=encoded))
        offset = 0
        for chunk in file.index.chunks:
            pieces.setdefault(chunk.sha256, Piece(chunk, file.path, offset))
            offset += chunk.size
    return pieces


def _missing(stub: model_pb2_grpc.ModelServiceStub, pieces: Mapping[bytes, Piece]) -> list[Piece]:
    digests = list(pieces)
    missing: list[Piece] = []
    for start in range(0, len(digests), DIGESTS_PER_CALL):
        request = model_pb2.MissingChunksRequest(digests=digests[start : start + DIGESTS_PER_CALL])
        answer = stub.MissingChunks(request, timeout=TIMEOUT_SECONDS)
        missing += [pieces[digest] for digest in answer.digests if digest in pieces]
    return missing


@dataclass(slots=True)
class _Sending:
    """The stream of chunks, counted.

    grpc reads it in a thread and discards its exceptions, so an error ends the stream and is
    stored.
    """

    pieces: list[Piece]
    chunks: int = 0
    bytes: int = 0
    error: ArtifactError | OSError | None = None
    started: float = field(default_factory=time.monotonic)
    _reported: float = 0.0

    def requests(self) -> Iterator[model_pb2.UploadChunksRequest]:
        for piece in self.pieces:
            try:
                data = piece.read()
            except (ArtifactError, OSError) as error:
                self.error = error
                return
            yield model_pb2.UploadChunksRequest(data=data)
            self.chunks += 1
            self.bytes += len(data)
            self._report()

    def elapsed(self) -> float:
        return time.monotonic() - self.started

    def _report(self) -> None:
        """Redraw one progress line, on a terminal only."""
        now = self.elapsed()
        last = self.chunks == len(self.pieces)
        if not sys.stderr.isatty() or (now - self._reported < REPORT_EVERY_SECONDS and not last):
            return
        self._reported = now
        total = sum(piece.chunk.size for piece in self.pieces)
        rate = in_bytes(self.bytes / now) if now else "-"
        line = f"\ruploading {in_bytes(self.bytes)} of {in_bytes(total)}, {rate}/s  "
        click.echo(line, err=True, nl=last)
