"""Spans of the shared memory: allocation, reference counts and release of pages."""

import gc
import os
from pathlib import Path

import pytest

from agent.errors import ProtocolError
from agent.worker import region as region_module
from agent.worker.region import KEPT_BYTES, PAGE_BYTES, QUIET_SECONDS, Region, Span

SIZE = 4 * KEPT_BYTES


@pytest.fixture
def region() -> Region:
    return Region(SIZE)


def take(region: Region, length: int) -> Span:
    span = region.take(length)
    assert span is not None
    return span


def resident(region: Region) -> int:
    return os.fstat(region.descriptor).st_blocks * 512


def test_spans_lie_apart_on_pages_of_their_own(region: Region) -> None:
    spans = [take(region, length) for length in (1, PAGE_BYTES, PAGE_BYTES + 1, 7)]
    assert [span.offset // PAGE_BYTES for span in spans] == [0, 1, 2, 4]
    assert [len(span.view) for span in spans] == [span.length for span in spans]


def test_a_freed_span_is_taken_again_where_it_fits(region: Region) -> None:
    first, second, third = (take(region, 2 * PAGE_BYTES) for _ in range(3))
    second.release()
    assert take(region, 3 * PAGE_BYTES).offset > third.offset
    assert take(region, 2 * PAGE_BYTES).offset == second.offset
    first.release()
    assert take(region, 1).offset == 0


def test_without_room_there_is_no_span(region: Region) -> None:
    span = take(region, SIZE)
    assert region.take(1) is None
    span.release()
    assert region.take(SIZE + 1) is None
    assert region.take(0) is None
    assert region.take(SIZE) is not None


def test_a_span_is_taken_as_long_as_somebody_holds_it(region: Region) -> None:
    span = take(region, SIZE)
    span.retain()
    span.release()
    assert region.take(1) is None
    span.release()
    assert region.take(1) is not None


def test_what_was_written_is_read_as_a_copy(region: Region) -> None:
    take(region, 10)
    span = take(region, 10)
    span.view[:] = b"0123456789"
    copy = span.read(2, 5)
    span.view[:] = bytes(10)
    assert copy == b"23456"


@pytest.mark.parametrize(("start", "length"), [(-1, 2), (0, 11), (10, 1), (0, -1), (1 << 70, 1)])
def test_nothing_outside_of_a_span_is_read(region: Region, start: int, length: int) -> None:
    span = take(region, 10)
    with pytest.raises(ProtocolError, match="exceed"):
        span.read(start, length)


def test_nobody_changes_its_size(region: Region) -> None:
    for size in (0, SIZE // 2, 2 * SIZE):
        with pytest.raises(PermissionError):
            os.ftruncate(region.descriptor, size)


def test_pages_past_those_kept_are_given_back_at_once(region: Region) -> None:
    span = take(region, 3 * KEPT_BYTES)
    span.view[:] = bytes(span.length)
    assert resident(region) >= span.length
    span.release()
    assert resident(region) <= KEPT_BYTES


def test_all_pages_are_given_back_when_it_was_quiet(region: Region) -> None:
    span = take(region, KEPT_BYTES)
    span.view[:] = bytes(span.length)
    region.release_idle_pages(0.0)
    region.release_idle_pages(2 * QUIET_SECONDS)
    span.release()
    region.release_idle_pages(3 * QUIET_SECONDS - 0.1)
    assert resident(region) == region.used_bytes == KEPT_BYTES
    region.release_idle_pages(3 * QUIET_SECONDS)
    assert resident(region) == region.used_bytes == 0


def test_a_span_between_two_looks_is_no_quiet(region: Region) -> None:
    region.release_idle_pages(0.0)
    span = take(region, PAGE_BYTES)
    span.view[:] = bytes(span.length)
    span.release()
    region.release_idle_pages(QUIET_SECONDS)
    assert resident(region) == PAGE_BYTES


def test_its_descriptor_is_closed_with_it() -> None:
    def open_descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    # Regions and spans of other tests form reference cycles until they are collected.
    gc.collect()
    before = open_descriptors()
    region = Region(PAGE_BYTES)
    assert open_descriptors() > before
    del region
    assert open_descriptors() == before


def test_a_region_takes_no_memory_by_itself() -> None:
    assert resident(Region(region_module.REGION_BYTES)) == 0
