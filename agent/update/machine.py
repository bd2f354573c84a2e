"""The update machine: one table, and no effects.

Up to ``probation`` nothing that serves is touched, so a failure only rejects the candidate. From
``switching`` on a failure, and so a restart too, rolls back. A state is stored on entering it;
one that is stored too often within one assignment is a loop, and counts as failed.
"""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final

MAX_STORES: Final = 28


class State(StrEnum):
    """Where an assignment stands."""

    IDLE = "idle"
    VERIFYING = "verifying"
    PLANNING = "planning"
    FETCHING = "fetching"
    STAGING = "staging"
    PROBATION = "probation"
    SWITCHING = "switching"
    SOAKING = "soaking"
    COMMITTED = "committed"
    REJECTED = "rejected"
    ROLLING_BACK = "rolling_back"
    ROLLED_BACK = "rolled_back"
    INCONSISTENT = "inconsistent"


class Event(StrEnum):
    """What happens to an assignment."""

    ASSIGNED = "assigned"
    DONE = "done"
    FAILED = "failed"
    # The process was killed in this state and has started again.
    RESTARTED = "restarted"
    # Another variant is to be tried.
    ANOTHER = "another"
    # The release asked for is the one that serves.
    UNCHANGED = "unchanged"


_S, _E = State, Event

TABLE: Final[Mapping[State, Mapping[Event, State]]] = MappingProxyType(
    {
        _S.IDLE: {_E.ASSIGNED: _S.VERIFYING, _E.RESTARTED: _S.IDLE},
        _S.VERIFYING: {
            _E.DONE: _S.PLANNING,
            _E.FAILED: _S.REJECTED,
            _E.UNCHANGED: _S.COMMITTED,
            _E.ASSIGNED: _S.VERIFYING,
            _E.RESTARTED: _S.VERIFYING,
        },
        _S.PLANNING: {
            _E.DONE: _S.FETCHING,
            _E.FAILED: _S.REJECTED,
            _E.ASSIGNED: _S.VERIFYING,
            _E.RESTARTED: _S.PLANNING,
        },
        _S.FETCHING: {
            _E.DONE: _S.STAGING,
            _E.FAILED: _S.REJECTED,
            _E.ASSIGNED: _S.VERIFYING,
            _E.RESTARTED: _S.FETCHING,
        },
        _S.STAGING: {
            _E.DONE: _S.PROBATION,
            _E.ANOTHER: _S.FETCHING,
            _E.FAILED: _S.REJECTED,
            _E.ASSIGNED: _S.VERIFYING,
            _E.RESTARTED: _S.STAGING,
        },
        _S.PROBATION: {
            _E.DONE: _S.SWITCHING,
            _E.ANOTHER: _S.FETCHING,
            _E.FAILED: _S.REJECTED,
            _E.ASSIGNED: _S.VERIFYING,
            _E.RESTARTED: _S.STAGING,
        },
        _S.SWITCHING: {
            _E.DONE: _S.SOAKING,
            _E.FAILED: _S.ROLLING_BACK,
            _E.RESTARTED: _S.ROLLING_BACK,
        },
        _S.SOAKING: {
            _E.DONE: _S.COMMITTED,
            _E.FAILED: _S.ROLLING_BACK,
            _E.RESTARTED: _S.ROLLING_BACK,
        },
        _S.ROLLING_BACK: {
            _E.DONE: _S.ROLLED_BACK,
            _E.FAILED: _S.INCONSISTENT,
            _E.RESTARTED: _S.ROLLING_BACK,
        },
        _S.COMMITTED: {_E.DONE: _S.IDLE, _E.RESTARTED: _S.IDLE},
        _S.REJECTED: {_E.DONE: _S.IDLE, _E.RESTARTED: _S.IDLE},
        _S.ROLLED_BACK: {_E.DONE: _S.IDLE, _E.RESTARTED: _S.IDLE},
        _S.INCONSISTENT: {_E.DONE: _S.IDLE, _E.RESTARTED: _S.IDLE},
    }
)

# An assignment ends in one of these, and its receipt is stored with it.
OUTCOMES: Final = frozenset({_S.COMMITTED, _S.REJECTED, _S.ROLLED_BACK, _S.INCONSISTENT})


def next_state(state: State, event: Event) -> State:
    """The state after ``event``; KeyError for an event that cannot happen in ``state``."""
    return TABLE[state][event]


def takes_assignments(state: State) -> bool:
    """Whether a newer assignment starts now; otherwise it waits until this one has ended."""
    return Event.ASSIGNED in TABLE[state]


def is_loop(stores: int) -> bool:
    """Whether a state that was stored so often within one assignment is a loop."""
    return stores > MAX_STORES
