"""GetDelta: file digests to the wire, offers from it."""

import math
from typing import Final

from flotilla.v1 import device_pb2

from agent.storage.deltas import BeingMade, Offer
from artifact.manifest import MAX_FILE_BYTES, File

MAX_RETRY_SECONDS: Final = 60.0
_DIGEST_BYTES: Final = 32


def digests_to_wire(file: File) -> device_pb2.FileDigests:
    """Name a file by its SHA-256 and that of its chunk index."""
    return device_pb2.FileDigests(
        sha256=bytes.fromhex(file.sha256), index=bytes.fromhex(file.index)
    )


def delta_from_wire(answer: device_pb2.GetDeltaResponse) -> Offer | BeingMade | None:
    """Return the server's offer, or None if there is none or its fields are invalid."""
    if answer.state == device_pb2.DELTA_STATE_BEING_MADE:
        seconds = answer.retry_after_seconds
        return BeingMade(min(max(seconds, 0), MAX_RETRY_SECONDS) if math.isfinite(seconds) else 0)
    digests = (answer.base_sha256, answer.delta.sha256, answer.delta.index)
    are_digests = all(len(digest) == _DIGEST_BYTES for digest in digests)
    if (
        answer.state != device_pb2.DELTA_STATE_READY
        or not are_digests
        or not 0 < answer.size <= MAX_FILE_BYTES
    ):
        return None
    base, sha256, index = (digest.hex() for digest in digests)
    return Offer(base, File(name="delta", size=answer.size, sha256=sha256, index=index))
