"""The update machine's chains of states: success, failure and a kill in every state."""

import pytest

from agent.update.machine import (
    MAX_STORES,
    OUTCOMES,
    TABLE,
    Event,
    State,
    is_loop,
    next_state,
    takes_assignments,
)

HAPPY = [
    State.IDLE,
    State.VERIFYING,
    State.PLANNING,
    State.FETCHING,
    State.STAGING,
    State.PROBATION,
    State.SWITCHING,
    State.SOAKING,
    State.COMMITTED,
    State.IDLE,
]


def chain(start: State, first: Event) -> list[State]:
    """Return the states from ``first`` on if every step succeeds."""
    states = [next_state(start, first)]
    while states[-1] is not State.IDLE:
        states.append(next_state(states[-1], Event.DONE))
    return states


def test_an_assignment_that_succeeds_visits_every_state_in_order() -> None:
    assert [State.IDLE, *chain(State.IDLE, Event.ASSIGNED)] == HAPPY


@pytest.mark.parametrize("state", HAPPY[1:6])
def test_a_failure_before_switching_rejects_and_touches_nothing(state: State) -> None:
    assert chain(state, Event.FAILED) == [State.REJECTED, State.IDLE]


@pytest.mark.parametrize("state", [State.SWITCHING, State.SOAKING])
@pytest.mark.parametrize("event", [Event.FAILED, Event.RESTARTED])
def test_a_failure_or_a_kill_after_switching_rolls_back(state: State, event: Event) -> None:
    assert chain(state, event) == [State.ROLLING_BACK, State.ROLLED_BACK, State.IDLE]


def test_a_rollback_that_fails_is_inconsistent() -> None:
    assert chain(State.ROLLING_BACK, Event.FAILED) == [State.INCONSISTENT, State.IDLE]


@pytest.mark.parametrize(
    ("killed_in", "resumes_in"),
    [
        (State.IDLE, State.IDLE),
        (State.VERIFYING, State.VERIFYING),
        (State.PLANNING, State.PLANNING),
        (State.FETCHING, State.FETCHING),
        (State.STAGING, State.STAGING),
        (State.PROBATION, State.STAGING),
        (State.SWITCHING, State.ROLLING_BACK),
        (State.SOAKING, State.ROLLING_BACK),
        (State.ROLLING_BACK, State.ROLLING_BACK),
        *((outcome, State.IDLE) for outcome in sorted(OUTCOMES)),
    ],
)
def test_where_a_killed_agent_resumes(killed_in: State, resumes_in: State) -> None:
    assert next_state(killed_in, Event.RESTARTED) is resumes_in


@pytest.mark.parametrize("state", [State.STAGING, State.PROBATION])
def test_another_variant_is_fetched_first(state: State) -> None:
    assert next_state(state, Event.ANOTHER) is State.FETCHING


def test_the_release_that_serves_already_is_committed_at_once() -> None:
    assert chain(State.VERIFYING, Event.UNCHANGED) == [State.COMMITTED, State.IDLE]


def test_only_what_has_not_switched_yet_can_be_superseded() -> None:
    assert [state for state in State if takes_assignments(state)] == HAPPY[:6]
    for state in HAPPY[:6]:
        assert next_state(state, Event.ASSIGNED) is State.VERIFYING


def test_every_state_that_works_can_fail_and_be_killed() -> None:
    for state in set(State) - OUTCOMES - {State.IDLE}:
        assert {Event.DONE, Event.FAILED, Event.RESTARTED} <= set(TABLE[state])


def test_a_failure_leads_to_an_outcome_within_two_steps_from_everywhere() -> None:
    for state in set(State) - OUTCOMES - {State.IDLE}:
        first = next_state(state, Event.FAILED)
        assert first in OUTCOMES or next_state(first, Event.FAILED) in OUTCOMES


def test_an_event_that_cannot_happen_is_refused() -> None:
    with pytest.raises(KeyError):
        next_state(State.SWITCHING, Event.ASSIGNED)


def test_a_state_stored_more_than_28_times_is_a_loop() -> None:
    assert MAX_STORES == 28
    assert not is_loop(28)
    assert is_loop(29)
