"""Intervals between messages of the stream: on change, rate-limited, with a slow refresh.

Liveness is gRPC keepalive's task, not the status's, so an idle box repeats its status rarely. Pure:
statuses and seconds in, seconds out.
"""

from dataclasses import dataclass
from typing import Final

from flotilla.v1 import device_pb2

# Without an update in progress a status changes rarely; with one, servers of earlier versions take
# a device for silent after ten minutes without a status.
_SETTLED: Final = frozenset({device_pb2.UPDATE_STATE_IDLE, device_pb2.UPDATE_STATE_UNSPECIFIED})
UPDATING_REFRESH_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class Pace:
    """Shortest intervals between messages, in seconds; the server may ask for longer ones."""

    # A status that is equal to the last one, while no update is in progress.
    refresh_seconds: float = 300.0
    # A status in which only the bytes of a download differ.
    progress_seconds: float = 2.0
    # A status in which the requests that failed differ.
    errors_seconds: float = 15.0
    # The length of a telemetry window.
    window_seconds: float = 0.0


STANDARD: Final = Pace()
# For links that are paid by volume: at most one message an hour while the box is idle, four
# telemetry windows an hour and route while it serves.
METERED: Final = Pace(
    refresh_seconds=3600.0, progress_seconds=60.0, errors_seconds=900.0, window_seconds=900.0
)


def seconds_until_due(
    status: device_pb2.UpdateStatus,
    last: device_pb2.UpdateStatus | None,
    since_last: float,
    pace: Pace,
) -> float:
    """Return the seconds until ``status`` is to be sent; 0 if now.

    ``last`` was sent ``since_last`` seconds ago on the same stream; None before the first.
    """
    if last is None or _without_counts(status) != _without_counts(last):
        return 0.0
    if (status.bytes_done, status.bytes_total) != (last.bytes_done, last.bytes_total):
        interval = pace.progress_seconds
    elif _errors(status) != _errors(last):
        interval = pace.errors_seconds
    elif status.state in _SETTLED:
        interval = pace.refresh_seconds
    else:
        interval = min(pace.refresh_seconds, UPDATING_REFRESH_SECONDS)
    return max(0.0, interval - since_last)


def _without_counts(status: device_pb2.UpdateStatus) -> device_pb2.UpdateStatus:
    """Return the status without the counts that rise all the time: bytes and requests."""
    rest = device_pb2.UpdateStatus()
    rest.CopyFrom(status)
    rest.ClearField("bytes_done")
    rest.ClearField("bytes_total")
    for slot in rest.health.slots:
        slot.ClearField("requests")
        slot.ClearField("errors")
    return rest


def _errors(status: device_pb2.UpdateStatus) -> list[int]:
    return [slot.errors for slot in status.health.slots]
