"""The update machine: one transition table, no side effects.

Up to ``probation`` the live release is untouched, so a failure only rejects the candidate. From
``switching`` on, a failure or a restart rolls back. A state is stored on entering it; a state that
is entered too often within one assignment is a loop and counts as a failure.
"""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final

MAX_STORES: Final = 28


class State(StrEnum):
    """A step of an assignment."""

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
    """An input of the machine."""

    ASSIGNED = "assigned"
    DONE = "done"
    FAILED = "failed"
    # The agent stopped in this state and has started again.
    RESTARTED = "restarted"
    # Another variant is to be tried.
    ANOTHER = "another"
    # The assigned release is already the live one.
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
    """Return the state after ``event``; KeyError if ``event`` cannot happen in ``state``."""
    return TABLE[state][event]


def takes_assignments(state: State) -> bool:
    """Return True if a newer assignment may interrupt ``state``; otherwise it has to wait."""
    return Event.ASSIGNED in TABLE[state]


def is_loop(stores: int) -> bool:
    """Return True if ``stores`` entries of one state within one assignment mean a loop."""
    return stores > MAX_STORES
