"""What goes to and comes from one worker process through the memory that both share."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from agent.errors import ProtocolError
from agent.worker.messages import AnyEvent, Infer, Inferred, Place, WireTensor
from agent.worker.region import REGION_BYTES, WORTH_BYTES, Region, Span, align_up
from runtimes.base import TensorValue

log = logging.getLogger(__name__)

# Room made for the outputs of one command at most: there have to be inputs too.
MAX_OUTPUT_BYTES = REGION_BYTES // 4


@dataclass(frozen=True, slots=True)
class PlacedTensor:
    """A tensor whose data lies in a span: TensorValue's other fields, and where in it."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    span: Span
    start: int
    length: int


class Sharing:
    """The spans that one process was told of, each held until it has answered.

    A command that nobody waits for any more may still be under way there.
    """

    def __init__(self) -> None:
        self.region = _region()
        self._told: dict[int, list[Span]] = {}
        self._rooms: dict[int, Span] = {}
        # A model's outputs are mostly as long as they were before.
        self._output_bytes = 0

    def infer(self, command_id: int, inputs: Sequence[TensorValue | PlacedTensor]) -> Infer:
        """A command that tells where the data of tensors lie that are in this region."""
        spans = self._told[command_id] = []
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
                # It was meant for another process, which has gone since, or is another model's.
                data = tensor.span.read(tensor.start, tensor.length)
            values.append(WireTensor(tensor.name, tensor.datatype, tensor.shape, data))
        room = self._room()
        if room is None:
            return Infer(id=command_id, inputs=values)
        spans.append(room)
        self._rooms[command_id] = room
        return Infer(id=command_id, inputs=values, room=(room.offset, room.length))

    def release_idle_pages(self, now: float) -> None:
        """Gives memory back that has not been used for some seconds; to be called now and then."""
        if self.region is not None:
            self.region.release_idle_pages(now)

    def end(self) -> None:
        """The process has gone."""
        for command_id in tuple(self._told):
            self.forget(command_id)
        self.region = None

    def shared_bytes(self, found: int) -> int:
        """How many of so many shared bytes that a process has are this region's."""
        return 0 if self.region is None else min(found, self.region.used_bytes)

    def forget(self, command_id: int) -> None:
        """The process has no use for a command's spans any more, or never heard of it."""
        self._rooms.pop(command_id, None)
        for span in self._told.pop(command_id, ()):
            span.release()

    def answered(self, event: AnyEvent) -> AnyEvent:
        """The final event of a command, with copies of what it points at; ProtocolError."""
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
                # Or a few words could have the daemon copy the whole region, over and over.
                if room is None or length > free:
                    raise ProtocolError(
                        f"output {tensor.name[:128]!a} of {length} bytes at {offset} is not where "
                        "there was room for it"
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
