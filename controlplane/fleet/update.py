"""How far a device is with its assignment, in the words of the agent's update machine."""

from enum import StrEnum


class UpdateState(StrEnum):
    """The agent's states; the last four end an update and stand in its receipt."""

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
        """Whether a receipt may have it as its outcome."""
        return self in _FINAL


_FINAL = frozenset(
    (
        UpdateState.COMMITTED,
        UpdateState.REJECTED,
        UpdateState.ROLLED_BACK,
        UpdateState.INCONSISTENT,
    )
)
