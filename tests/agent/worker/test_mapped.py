"""Tensors of a worker in the memory that it shares with the daemon."""

import os
from collections.abc import Sequence

import pytest

from agent.errors import ProtocolError
from agent.worker.mapped import MappedRegion
from agent.worker.messages import Infer, WireTensor
from agent.worker.region import PAGE_BYTES, WORTH_BYTES, Region, Span
from runtimes.base import TensorValue

SIZE = 64 * PAGE_BYTES
LARGE = bytes(range(256)) * (WORTH_BYTES // 256)


@pytest.fixture
def region() -> Region:
    return Region(SIZE)


@pytest.fixture
def mapped(region: Region) -> MappedRegion:
    return MappedRegion(os.dup(region.descriptor))


def room(region: Region, length: int) -> Span:
    span = region.take(length)
    assert span is not None
    return span


def same(inputs: Sequence[TensorValue]) -> list[TensorValue]:
    return list(inputs)


def wire(data: bytes | tuple[int, int]) -> WireTensor:
    return WireTensor("x", "UINT8", (1,), data)


def test_inputs_are_read_where_they_lie_and_not_written(
    region: Region, mapped: MappedRegion
) -> None:
    span = room(region, 5)
    span.view[:] = b"hello"

    def run(inputs: Sequence[TensorValue]) -> list[TensorValue]:
        (tensor,) = inputs
        assert isinstance(tensor.data, memoryview)
        assert tensor.data.readonly
        assert bytes(tensor.data) == b"hello"
        span.view[:] = b"there"
        assert bytes(tensor.data) == b"there"
        return []

    mapped.infer(Infer(id=1, inputs=[wire((span.offset, 5))]), run)


def test_an_input_that_lies_across_is_copied(region: Region, mapped: MappedRegion) -> None:
    span = room(region, 9)
    span.view[:] = b"a12345678"
    inputs = [wire((span.offset, 1)), wire((span.offset + 1, 8))]
    found: list[TensorValue] = []

    def run(values: Sequence[TensorValue]) -> list[TensorValue]:
        found.extend(values)
        return []

    mapped.infer(Infer(id=1, inputs=inputs), run)
    assert [type(value.data) for value in found] == [memoryview, bytes]
    assert found[1].data == b"12345678"


@pytest.mark.parametrize("place", [(-1, 1), (0, SIZE + 1), (SIZE, 1), (0, -1), (1 << 62, 1 << 62)])
def test_a_place_outside_is_refused(mapped: MappedRegion, place: tuple[int, int]) -> None:
    with pytest.raises(ProtocolError, match="exceed"):
        mapped.infer(Infer(id=1, inputs=[wire(place)]), same)


def test_without_a_region_all_goes_in_frames() -> None:
    answer = MappedRegion().infer(Infer(id=1, inputs=[wire(LARGE)]), same)
    assert answer.outputs == [wire(LARGE)]
    with pytest.raises(ProtocolError, match="exceed"):
        MappedRegion().infer(Infer(id=1, inputs=[wire((0, 1))]), same)


def test_large_outputs_go_where_there_is_room_one_after_another(
    region: Region, mapped: MappedRegion
) -> None:
    span = room(region, 2 * WORTH_BYTES + 64)
    inputs = [wire(data) for data in (LARGE + b"x", b"small", LARGE[:-1] + b"x", LARGE)]
    command = Infer(id=1, inputs=inputs, room=(span.offset, span.length))
    first, small, second, third = mapped.infer(command, same).outputs
    assert (small.data, third.data) == (b"small", LARGE)
    for tensor, sent in ((first, LARGE + b"x"), (second, LARGE[:-1] + b"x")):
        assert isinstance(tensor.data, tuple)
        offset, length = tensor.data
        assert offset % 64 == 0
        assert span.read(offset - span.offset, length) == sent
