"""Progress of a device's assignment, in the states of the agent's update machine."""

from enum import StrEnum


class UpdateState(StrEnum):
    """States of the agent; the last four end an update and are a receipt's outcome."""

    IDLE = "idle"
    VERIFYING = "verifying"
    PLANNING = "planning"
    FETCHING = "fetching"
    STAGING = "staging"
    PROBATION = "probation"
    SWITCHING = "switching"
    SOAKING = "soaking"
    ROLLING_BACK = "rolling_back"
    COMMITTED = "committed"
    REJECTED = "rejected"
    ROLLED_BACK = "rolled_back"
    INCONSISTENT = "inconsistent"

    @property
    def final(self) -> bool:
        """True if a receipt can have this state as its outcome."""
        return self in _FINAL


_FINAL = frozenset(
    (
        UpdateState.COMMITTED,
        UpdateState.REJECTED,
        UpdateState.ROLLED_BACK,
        UpdateState.INCONSISTENT,
    )
)
