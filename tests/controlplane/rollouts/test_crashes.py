"""A server may die between deciding and applying, and may apply twice: the end is the same."""

import contextlib

from hypothesis import example, given, settings
from hypothesis import strategies as st

from controlplane.errors import ConflictError
from controlplane.rollouts import commands
from controlplane.rollouts.machine import MemberState, RolloutState
from controlplane.rollouts.tick import tick

from .conftest import NEW, OLD, STRATEGY, Fleet, SimulatedDevice, make_fleet

devices = st.lists(
    st.builds(
        lambda kind, behaves, online: (kind, behaves, online),
        st.sampled_from("ab"),
        st.sampled_from(["ok", "ok", "ok", "bad", "silent", "shaky"]),
        st.booleans(),
    ),
    min_size=1,
    max_size=8,
)
# Events of a second: a crash loses a decision, a device goes or comes, an operator acts.
events = st.lists(
    st.tuples(
        st.sampled_from(["", "", "crash", "toggle", "pause", "resume", "roll_back", "abort"]),
        st.integers(0, 7),
        st.integers(0, 40),
    ),
    max_size=25,
)


def build(rows: list[tuple[str, str, bool]], policy: str) -> Fleet:
    return make_fleet(
        (SimulatedDevice(f"d{n}", *row) for n, row in enumerate(rows)),
        f"{STRATEGY}\non_failure: {policy}\n",
    )


def happen(fleet: Fleet, event: str, number: int) -> None:
    state = fleet.store.state
    if event == "crash":
        fleet.plan()  # Decided, never applied.
    elif event == "toggle":
        device = fleet.devices[f"d{number % len(fleet.devices)}"]
        device.online = not device.online
    elif event == "pause" and state is RolloutState.RUNNING:
        fleet.store = commands.pause(fleet.store, "", fleet.now)
    elif event == "resume" and state is RolloutState.PAUSED:
        fleet.store = commands.resume(fleet.store, fleet.facts(), fleet.now)
    elif event == "abort" and state is RolloutState.RUNNING and number == 7:
        fleet.store = commands.abort(fleet.store, "", fleet.now)
    elif event == "roll_back" and state in {RolloutState.RUNNING, RolloutState.PAUSED}:
        with contextlib.suppress(ConflictError):  # Nothing was assigned yet.
            fleet.store = commands.roll_back(fleet.store, fleet.facts(), "", fleet.now)


# One device is due for a retry in the same tick in which the other's failure ends the rollout.
@example([("a", "shaky", True), ("b", "bad", True)], [("", 0, 0), ("", 0, 0)], "rollback")
@settings(max_examples=100)
@given(devices, events, st.sampled_from(["rollback", "pause", "abort"]))
def test_whatever_happens_the_rollout_comes_to_rest_and_devices_obey(
    rows: list[tuple[str, str, bool]], story: list[tuple[str, int, int]], policy: str
) -> None:
    fleet = build(rows, policy)
    for event, number, seconds in story:
        happen(fleet, event, number)
        fleet.pass_time(seconds)
        # Planning again at the same time, on the result, changes no state.
        again = tick(fleet.store, fleet.facts(), fleet.now)
        assert again.assignments == ()
        assert again.rollout == fleet.store
        fleet.work()
    for device in fleet.devices.values():
        device.online = True
    for _ in range(10):
        fleet.pass_time(61)
        fleet.work()

    state = fleet.store.state
    assert state.finished or state is RolloutState.PAUSED
    for member in fleet.store.members.values():
        device = fleet.devices[member.device_id]
        told = [release for name, release in fleet.assigned if name == device.id]
        tries = 1 + member.retries
        assert told.count(NEW) <= tries
        assert told.count(OLD) <= tries
        assert told == sorted(told, key=[NEW, OLD].index)
        if state is RolloutState.ROLLED_BACK and device.behaves != "silent":
            assert device.current == OLD
        if state is RolloutState.SUCCEEDED and device.behaves == "ok":
            # A device that comes back after the end is not tried again.
            assert device.current == NEW or "stopped" in member.detail
        if member.state is MemberState.SUCCEEDED:
            assert device.current == NEW
