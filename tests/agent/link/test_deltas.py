"""Of a server's answers about deltas the box accepts only valid ones."""

import math
from typing import Any

import pytest
from flotilla.v1 import device_pb2

from agent.link.deltas import MAX_RETRY_SECONDS, delta_from_wire, digests_to_wire
from agent.storage.deltas import BeingMade, Offer
from artifact.manifest import MAX_FILE_BYTES, File

BASE, SHA256, INDEX = (bytes([number]) * 32 for number in (1, 2, 3))


def answer(**changes: Any) -> device_pb2.GetDeltaResponse:
    fields: dict[str, Any] = {
        "state": device_pb2.DELTA_STATE_READY,
        "base_sha256": BASE,
        "delta": device_pb2.FileDigests(sha256=SHA256, index=INDEX),
        "size": 7,
    }
    return device_pb2.GetDeltaResponse(**fields | changes)


def test_a_delta_that_is_ready_is_an_offer() -> None:
    file = File(name="delta", size=7, sha256=SHA256.hex(), index=INDEX.hex())
    assert delta_from_wire(answer()) == Offer(BASE.hex(), file)
    assert digests_to_wire(file) == answer().delta


@pytest.mark.parametrize(
    "changes",
    [
        {"state": device_pb2.DELTA_STATE_NONE},
        {"state": device_pb2.DELTA_STATE_UNSPECIFIED},
        {"state": 99},
        {"base_sha256": b"../../etc/passwd"},
        {"base_sha256": b""},
        {"delta": device_pb2.FileDigests(sha256=SHA256[:31], index=INDEX)},
        {"delta": device_pb2.FileDigests(sha256=SHA256)},
        {"size": 0},
        {"size": MAX_FILE_BYTES + 1},
    ],
)
def test_what_makes_no_sense_is_no_offer(changes: dict[str, Any]) -> None:
    assert delta_from_wire(answer(**changes)) is None


@pytest.mark.parametrize(
    ("said", "waited"),
    [(1.5, 1.5), (-3, 0), (1e300, MAX_RETRY_SECONDS), (math.inf, 0), (math.nan, 0)],
)
def test_nobody_makes_a_box_wait_for_ever(said: float, waited: float) -> None:
    state = device_pb2.DELTA_STATE_BEING_MADE
    found = delta_from_wire(answer(state=state, retry_after_seconds=said))
    assert found == BeingMade(waited)
