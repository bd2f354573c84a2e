"""Warnings of devices are logged once each and cannot fill the server's log."""

import logging

import pytest
from control_plane import Plane, Publisher
from flotilla.v1 import device_pb2 as wire

from controlplane.api.device_warnings import MAX_LOGGED, MAX_PER_STATUS, ReportedWarnings

EXPIRES = "the targets metadata of the image repository expires on 2027-01-01"


async def test_a_warning_of_a_device_is_logged_with_its_name(
    plane: Plane, publisher: Publisher, caplog: pytest.LogCaptureFixture
) -> None:
    box = await plane.enroll("box-1")
    life = await box.connect()
    status = wire.UpdateStatus(state=wire.UPDATE_STATE_IDLE, warnings=[EXPIRES])
    for _ in range(3):
        await life.send(status=status)
    await life.end()
    lines = [r.getMessage() for r in caplog.records if "device_warning" in r.getMessage()]
    assert lines == [f"device_warning device={box.device_id} name=box-1 text='{EXPIRES}'"]


def test_a_device_cannot_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        warnings = ReportedWarnings("id-1", "box-1")
        warnings.note([f"number {number}" for number in range(1000)])
        assert len(caplog.records) == MAX_PER_STATUS
        for number in range(1000):
            warnings.note([f"another {number}\n" + "x" * 10_000])
    assert len(caplog.records) == MAX_LOGGED
    assert max(len(record.getMessage()) for record in caplog.records) < 5000
    assert not any("\n" in record.getMessage() for record in caplog.records)
