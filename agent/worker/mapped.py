"""The worker's side of the memory that it shares with the daemon (agent.worker.region)."""

import mmap
import os
from collections.abc import Callable, Sequence

from agent.worker.messages import Infer, Inferred, WireTensor
from agent.worker.region import (
    ALIGNMENT_BYTES,
    PAGE_BYTES,
    STARTED,
    WORTH_BYTES,
    align_up,
    check_inside,
)
from runtimes.base import TensorValue

Run = Callable[[Sequence[TensorValue]], list[TensorValue]]


class MappedRegion:
    """A region mapped from an inherited descriptor; empty without one (-1)."""

    def __init__(self, descriptor: int = -1) -> None:
        self._view = memoryview(b"")
        self._started = memoryview(bytearray(STARTED.size))
        if descriptor >= 0:
            view = memoryview(mmap.mmap(descriptor, os.fstat(descriptor).st_size))
            self._view, self._started = view[:-PAGE_BYTES], view[-PAGE_BYTES:]
            os.close(descriptor)

    def mark_started(self, command_id: int) -> None:
        """Let the daemon see, even after a crash, that the engine has begun this command."""
        STARTED.pack_into(self._started, 0, command_id)

    def infer(self, command: Infer, run: Run) -> Inferred:
        """Run on the command's inputs and place large outputs in the region where they fit."""
        outputs = run([self._value(tensor) for tensor in command.inputs])
        offset, free = command.room
        answer = []
        for output in outputs:
            size = len(output.data)
            if WORTH_BYTES <= size <= free:
                self._part(offset, size)[:] = output.data
                answer.append(_wire(output, (offset, size)))
                offset, free = offset + align_up(size), free - align_up(size)
            else:
                answer.append(_wire(output, bytes(output.data)))
        return Inferred(id=command.id, outputs=answer)

    def _value(self, tensor: WireTensor) -> TensorValue:
        place = tensor.data
        data = place if isinstance(place, bytes) else self._data(*place)
        return TensorValue(tensor.name, tensor.datatype, tensor.shape, data)

    def _data(self, offset: int, length: int) -> bytes | memoryview:
        part = self._part(offset, length)
        # Engines may assume that numbers are aligned to their size: copy unaligned data.
        return bytes(part) if offset % ALIGNMENT_BYTES else part.toreadonly()

    def _part(self, offset: int, length: int) -> memoryview:
        check_inside(offset, length, len(self._view))
        return self._view[offset : offset + length]


def _wire(tensor: TensorValue, data: bytes | tuple[int, int]) -> WireTensor:
    return WireTensor(tensor.name, tensor.datatype, tensor.shape, data)
