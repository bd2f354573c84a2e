"""Tensors that travel to and from one worker process through shared memory."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from agent.errors import ProtocolError
from agent.worker.messages import AnyEvent, Infer, Inferred, Place, WireTensor
from agent.worker.region import REGION_BYTES, WORTH_BYTES, Region, Span, align_up
from runtimes.base import TensorValue

log = logging.getLogger(__name__)

# At most so much of the region is reserved for outputs, so that inputs have room too.
MAX_OUTPUT_BYTES = REGION_BYTES // 4


@dataclass(frozen=True, slots=True)
class PlacedTensor:
    """A tensor whose data lies in a span at ``start``; the other fields are TensorValue's."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    span: Span
    start: int
    length: int


class Sharing:
    """The spans in use by the commands of one process, each retained until its final event.

    A cancelled command may still be running, so its spans stay retained too.
    """

    def __init__(self) -> None:
        self.region = _region()
        self._spans: dict[int, list[Span]] = {}
        self._rooms: dict[int, Span] = {}
        # Room for the next outputs: a model's outputs usually have the size of the last ones.
        self._output_bytes = 0

    def infer(self, command_id: int, inputs: Sequence[TensorValue | PlacedTensor]) -> Infer:
        """Build a command that refers to tensors in this region and carries the others."""
        spans = self._spans[command_id] = []
        values = []
        for tensor in inputs:
            data: bytes | Place
            if isinstance(tensor, TensorValue):
                data = bytes(tensor.data)
            elif tensor.span.region is self.region:
                data = (tensor.span.offset + tensor.start, tensor.length)
                tensor.span.retain()
                spans.append(tensor.span)
            else:
                # The span belongs to a process that has ended since, or to another model's.
                data = tensor.span.read(tensor.start, tensor.length)
            values.append(WireTensor(tensor.name, tensor.datatype, tensor.shape, data))
        room = self._room()
        if room is None:
            return Infer(id=command_id, inputs=values)
        spans.append(room)
        self._rooms[command_id] = room
        return Infer(id=command_id, inputs=values, room=(room.offset, room.length))

    def release_idle_pages(self, now: float) -> None:
        """Return memory that was unused for some seconds to the kernel; call it periodically."""
        if self.region is not None:
            self.region.release_idle_pages(now)

    def end(self) -> None:
        """Release everything after the end of the process."""
        for command_id in tuple(self._spans):
            self.forget(command_id)
        self.region = None

    def started_id(self) -> int | None:
        """Return the highest command id that the process has started; None if unknown."""
        return None if self.region is None else self.region.started_id()

    def shared_bytes(self, found: int) -> int:
        """Return how many of a process's shared resident bytes belong to this region."""
        return 0 if self.region is None else min(found, self.region.used_bytes)

    def forget(self, command_id: int) -> None:
        """Release the spans of a command that was answered or never sent."""
        self._rooms.pop(command_id, None)
        for span in self._spans.pop(command_id, ()):
            span.release()

    def answered(self, event: AnyEvent) -> AnyEvent:
        """Return a final event with its tensors copied out of the region; ProtocolError."""
        try:
            return self._copied(event) if isinstance(event, Inferred) else event
        finally:
            self.forget(event.id)

    def _room(self) -> Span | None:
        if self.region is None or not self._output_bytes:
            return None
        return self.region.take(self._output_bytes)

    def _copied(self, event: Inferred) -> Inferred:
        room = self._rooms.get(event.id)
        free = room.length if room else 0
        outputs, large = [], 0
        for tensor in event.outputs:
            data = tensor.data
            if not isinstance(data, bytes):
                offset, length = data
                # Bound the copies by the reserved room: otherwise a short event could make the
                # daemon copy the whole region many times.
                if room is None or length > free:
                    raise ProtocolError(
                        f"output {tensor.name[:128]!a} of {length} bytes at {offset} is outside "
                        f"the {free} bytes reserved for it"
                    )
                data = room.read(offset - room.offset, length)
                free -= length
            if len(data) >= WORTH_BYTES:
                large += align_up(len(data))
            outputs.append(WireTensor(tensor.name, tensor.datatype, tensor.shape, data))
        self._output_bytes = large if large <= MAX_OUTPUT_BYTES else 0
        return Inferred(id=event.id, outputs=outputs)


def _region() -> Region | None:
    try:
        return Region()
    except (OSError, AttributeError) as error:
        log.warning("no_shared_memory error=%s", ascii(str(error)))
        return None
