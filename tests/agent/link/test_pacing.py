"""A status is sent on change, its progress at a limited rate, and an equal one rarely."""

import pytest
from flotilla.v1 import device_pb2 as wire

from agent.link.pacing import (
    METERED,
    STANDARD,
    UPDATING_REFRESH_SECONDS,
    Pace,
    seconds_until_due,
)

DAY = 86400.0


def status(
    state: wire.UpdateState.ValueType = wire.UPDATE_STATE_IDLE, done: int = 0, detail: str = ""
) -> wire.UpdateStatus:
    return wire.UpdateStatus(state=state, bytes_done=done, bytes_total=100, detail=detail)


FETCHING = wire.UPDATE_STATE_FETCHING


@pytest.mark.parametrize("pace", [STANDARD, METERED])
def test_the_first_status_of_a_stream_and_every_change_are_due_at_once(pace: Pace) -> None:
    assert seconds_until_due(status(), None, float("inf"), pace) == 0
    for changed in (status(FETCHING), status(detail="the disk is full")):
        assert seconds_until_due(changed, status(), 0.1, pace) == 0


@pytest.mark.parametrize(("pace", "interval"), [(STANDARD, 2), (METERED, 60)])
def test_progress_of_a_download_is_sent_at_a_limited_rate(pace: Pace, interval: float) -> None:
    last = status(FETCHING, done=1)
    assert seconds_until_due(status(FETCHING, done=2), last, 0.5, pace) == interval - 0.5
    assert seconds_until_due(status(FETCHING, done=2), last, interval, pace) == 0


@pytest.mark.parametrize(("pace", "interval"), [(STANDARD, 300), (METERED, 3600)])
def test_an_idle_box_repeats_an_equal_status_rarely(pace: Pace, interval: float) -> None:
    assert seconds_until_due(status(), status(), 0.5, pace) == interval - 0.5
    assert seconds_until_due(status(), status(), interval, pace) == 0


@pytest.mark.parametrize("pace", [STANDARD, METERED])
def test_a_box_at_an_update_repeats_its_status_before_it_counts_as_silent(pace: Pace) -> None:
    probation = status(wire.UPDATE_STATE_PROBATION)
    assert seconds_until_due(probation, probation, 0, pace) == UPDATING_REFRESH_SECONDS


def test_an_idle_day_has_at_most_288_statuses() -> None:
    """300 s apart; the server's keepalive pings are counted by scripts/bench idle."""
    sent, now = 0, 0.0
    last, last_at = None, 0.0
    while now < DAY:
        wait = seconds_until_due(status(), last, now - last_at, STANDARD)
        if wait > 0:
            now += wait
            continue
        last, last_at, sent = status(), now, sent + 1
    assert sent == 288


def healthy(
    *, ready: bool = True, restarts: int = 0, requests: int = 0, errors: int = 0
) -> wire.UpdateStatus:
    slot = wire.SlotHealth(
        slot="chat", ready=ready, worker_restarts=restarts, requests=requests, errors=errors
    )
    return wire.UpdateStatus(
        state=wire.UPDATE_STATE_IDLE, health=wire.ReleaseHealth(release="a/b@1", slots=[slot])
    )


@pytest.mark.parametrize("pace", [STANDARD, METERED])
def test_a_worker_that_is_down_or_restarted_is_reported_at_once(pace: Pace) -> None:
    for changed in (healthy(ready=False), healthy(restarts=1)):
        assert seconds_until_due(changed, healthy(), 0.1, pace) == 0


@pytest.mark.parametrize(("pace", "interval"), [(STANDARD, 15), (METERED, 900)])
def test_failed_requests_are_reported_at_a_limited_rate(pace: Pace, interval: float) -> None:
    failed = healthy(requests=5, errors=1)
    assert seconds_until_due(failed, healthy(), 1, pace) == interval - 1
    assert seconds_until_due(failed, healthy(), interval, pace) == 0


def test_requests_alone_cause_no_status() -> None:
    busy = healthy(requests=1000)
    assert seconds_until_due(busy, healthy(), 0, STANDARD) == STANDARD.refresh_seconds
