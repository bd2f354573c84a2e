"""References to shared memory in commands, and the checks of those in a worker's answers."""

import asyncio
import fcntl
import mmap
import os
import weakref
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest
from fake_fleet import worker_spec

from agent.errors import ProtocolError
from agent.supervisor import Supervisor
from agent.supervisor import sharing as sharing_module
from agent.supervisor.sharing import MAX_OUTPUT_BYTES, PlacedTensor, Sharing
from agent.worker.messages import Failed, Inferred, Place, WireTensor, encode
from agent.worker.region import REGION_BYTES, WORTH_BYTES, Region, Span
from runtimes.base import TensorValue

LARGE = bytes(range(256)) * (2 * WORTH_BYTES // 256)


@pytest.fixture
def sharing() -> Sharing:
    return Sharing()


def taken(sharing: Sharing, data: bytes) -> Span:
    assert sharing.region is not None
    span = sharing.region.take(len(data))
    assert span is not None
    span.view[:] = data
    return span


def placed(span: Span, start: int = 0) -> PlacedTensor:
    return PlacedTensor("x", "UINT8", (span.length - start,), span, start, span.length - start)


def output(data: bytes | Place) -> WireTensor:
    return WireTensor("y", "UINT8", (1,), data)


def answer(sharing: Sharing, *data: bytes | Place, command_id: int = 1) -> Sequence[WireTensor]:
    event = sharing.answered(Inferred(id=command_id, outputs=[output(each) for each in data]))
    assert isinstance(event, Inferred)
    return event.outputs


def is_free(sharing: Sharing) -> bool:
    """Return True if no span of the region is in use."""
    assert sharing.region is not None
    span = sharing.region.take(REGION_BYTES)
    if span is not None:
        span.release()
    return span is not None


def test_of_tensors_in_the_region_only_the_place_is_told(sharing: Sharing) -> None:
    taken(sharing, b"another")
    span = taken(sharing, b"12345678")
    small = TensorValue("s", "UINT8", (2,), b"ab")
    command = sharing.infer(1, [placed(span, 3), small])
    assert [tensor.data for tensor in command.inputs] == [(span.offset + 3, 5), b"ab"]


def test_tensors_of_another_region_are_copied(sharing: Sharing) -> None:
    span = taken(Sharing(), b"12345678")
    command = sharing.infer(1, [placed(span, 3)])
    assert command.inputs[0].data == b"45678"


def test_without_a_region_all_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    span = taken(Sharing(), b"12345678")

    def impossible() -> Region:
        raise OSError("no memory")

    monkeypatch.setattr(sharing_module, "Region", impossible)
    sharing = Sharing()
    assert sharing.infer(1, [placed(span)]).inputs[0].data == b"12345678"
    assert answer(sharing, LARGE)[0].data == LARGE
    sharing.release_idle_pages(0.0)


@pytest.mark.parametrize("refused", [True, False])
def test_a_span_is_not_taken_again_before_the_worker_has_answered(
    sharing: Sharing, refused: bool
) -> None:
    span = taken(sharing, b"12345678")
    sharing.infer(7, [placed(span)])
    # The caller has given up.
    span.release()
    answer(sharing, b"", command_id=6)
    assert not is_free(sharing)
    if refused:
        sharing.answered(Failed(id=7, kind="cancelled", message="", advice=""))
    else:
        answer(sharing, b"", command_id=7)
    assert is_free(sharing)


def test_a_command_that_was_never_sent_holds_nothing(sharing: Sharing) -> None:
    span = taken(sharing, b"12345678")
    sharing.infer(1, [placed(span)])
    sharing.forget(1)
    span.release()
    assert is_free(sharing)


def test_after_large_outputs_there_is_room_for_as_large_ones(sharing: Sharing) -> None:
    assert sharing.infer(1, []).room == (0, 0)
    answer(sharing, LARGE, b"small", LARGE)
    command = sharing.infer(2, [])
    assert command.room[1] == 2 * len(LARGE)
    offset = command.room[0]
    assert sharing.region is not None
    sharing.region.view[offset : offset + len(LARGE)] = LARGE
    (found,) = answer(sharing, (offset, len(LARGE)), command_id=2)
    assert found.data == LARGE
    assert is_free(sharing)
    assert sharing.infer(3, []).room[1] == len(LARGE)


def test_outputs_too_large_for_the_region_go_in_the_frame(sharing: Sharing) -> None:
    answer(sharing, bytes(MAX_OUTPUT_BYTES + 1))
    assert sharing.infer(2, []).room == (0, 0)


def test_where_no_room_is_left_there_is_none_for_outputs(sharing: Sharing) -> None:
    answer(sharing, LARGE)
    assert sharing.region is not None
    assert sharing.region.take(REGION_BYTES) is not None
    assert sharing.infer(2, []).room == (0, 0)


HOSTILE = [(-1, 8), (0, 1 << 62), (1 << 62, 8), (0, -8), (-(1 << 62), 8), (len(LARGE) - 4, 8)]


@pytest.mark.parametrize(("offset", "length"), HOSTILE)
def test_what_a_worker_points_at_outside_of_its_room_is_not_read(
    sharing: Sharing, offset: int, length: int
) -> None:
    taken(sharing, b"of somebody else")
    answer(sharing, LARGE)
    room = sharing.infer(2, []).room
    with pytest.raises(ProtocolError):
        answer(sharing, (room[0] + offset, length), command_id=2)


@pytest.mark.parametrize("length", [0, 1])
def test_without_room_a_worker_points_at_nothing(sharing: Sharing, length: int) -> None:
    sharing.infer(1, [])
    with pytest.raises(ProtocolError, match="reserved"):
        answer(sharing, (0, length))


def test_no_worker_has_the_same_bytes_copied_over_and_over(sharing: Sharing) -> None:
    answer(sharing, LARGE)
    place = sharing.infer(2, []).room
    with pytest.raises(ProtocolError, match="reserved"):
        answer(sharing, place, place, command_id=2)


def test_a_process_that_has_gone_leaves_what_was_sent_to_be_sent_again(sharing: Sharing) -> None:
    span = taken(sharing, b"12345678")
    sharing.infer(1, [placed(span)])
    sharing.end()
    assert sharing.region is None
    assert Sharing().infer(1, [placed(span)]).inputs[0].data == b"12345678"


def test_a_process_that_has_gone_leaves_no_region_behind(sharing: Sharing) -> None:
    span = taken(sharing, b"12345678")
    sharing.infer(1, [placed(span)])
    region = weakref.ref(span.region)
    sharing.end()
    span.release()
    del span
    # Without the cycle collector, which an idle daemon may not run for hours.
    assert region() is None


@pytest.mark.parametrize(
    ("module", "name"), [(os, "memfd_create"), (fcntl, "F_SEAL_GROW"), (mmap, "MADV_REMOVE")]
)
def test_where_python_knows_no_such_memory_there_is_none(
    monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str
) -> None:
    monkeypatch.delattr(module, name)
    assert Sharing().region is None


def test_memory_that_cannot_be_given_back_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    # gVisor's kernel fails this way.
    monkeypatch.setattr(mmap, "MADV_REMOVE", 1 << 20)
    assert Sharing().region is None


def test_only_pages_of_the_region_are_not_counted_as_the_workers(sharing: Sharing) -> None:
    assert sharing.shared_bytes(1 << 20) == 0
    taken(sharing, LARGE)
    assert sharing.shared_bytes(1 << 30) == len(LARGE)
    assert sharing.shared_bytes(100) == 100


async def test_a_command_that_cannot_be_written_holds_nothing(tmp_path: Path) -> None:
    supervisor = Supervisor()
    worker = await supervisor.start(worker_spec(tmp_path))
    sharing = worker._lifecycle.process.sharing
    span = taken(sharing, b"12345678")
    with pytest.raises(OverflowError):
        await worker.infer([PlacedTensor("x", "UINT8", (1 << 64,), span, 0, 8)])
    span.release()
    assert is_free(sharing)
    await supervisor.close()


async def test_a_worker_that_points_elsewhere_is_ended(tmp_path: Path) -> None:
    supervisor = Supervisor()
    worker = await supervisor.start(worker_spec(tmp_path))
    process = worker._lifecycle.process
    process.data_received(bytes(encode(Inferred(id=99, outputs=[output((0, 8))]))))
    async with asyncio.timeout(20):
        await process.gone.wait()
    await supervisor.close()
