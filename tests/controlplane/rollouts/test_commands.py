"""Effects of operators' commands and of receipts, and when they are refused."""

from dataclasses import replace

import pytest

from controlplane.errors import ConflictError
from controlplane.rollouts import commands
from controlplane.rollouts.commands import UpdateResult, retries_allowed, settle
from controlplane.rollouts.machine import MemberState, RolloutState
from controlplane.rollouts.records import Member
from controlplane.rollouts.strategy import Strategy

from .conftest import NEW, OLD, STRATEGY, NewFleet, states


def test_resume_accepts_the_failures_seen_and_no_more(new_fleet: NewFleet) -> None:
    fleet = new_fleet(strategy=f"{STRATEGY}\non_failure: pause\n")
    fleet.in_wave(0)[0].behaves = "bad"
    fleet.finish()
    assert states(fleet) == ("paused", "failed", "pending")
    fleet.store = commands.resume(fleet.store, fleet.facts(), fleet.now)
    fleet.in_wave(1)[0].behaves = "bad"
    fleet.finish()
    assert states(fleet) == ("paused", "passed", "failed")
    fleet.store = commands.resume(fleet.store, fleet.facts(), fleet.now)
    fleet.finish()
    assert states(fleet) == ("succeeded", "passed", "passed")


def test_pausing_stops_assignments_at_once_and_resuming_goes_on(new_fleet: NewFleet) -> None:
    fleet = new_fleet()
    fleet.tick()
    fleet.store = commands.pause(fleet.store, "lunch", fleet.now)
    fleet.finish()
    assert states(fleet) == ("paused", "running", "pending")
    assert fleet.store.reason == "lunch"
    assert len(fleet.assigned) == 1
    # The canary has its assignment already and reports meanwhile.
    assert fleet.member(fleet.in_wave(0)[0].id).state is MemberState.SUCCEEDED
    fleet.store = commands.resume(fleet.store, fleet.facts(), fleet.now)
    assert fleet.finish().state is RolloutState.SUCCEEDED


def test_abort_leaves_devices_where_they_are_and_can_still_be_undone(new_fleet: NewFleet) -> None:
    fleet = new_fleet()
    fleet.tick()
    fleet.work()
    fleet.store = commands.abort(fleet.store, "enough", fleet.now)
    fleet.finish()
    assert fleet.store.state is RolloutState.ABORTED
    assert [device.current for device in fleet.in_wave(0)] == [NEW]
    fleet.store = commands.roll_back(fleet.store, fleet.facts(), "after all", fleet.now)
    fleet.finish()
    assert fleet.store.state is RolloutState.ROLLED_BACK
    assert {device.current for device in fleet.devices.values()} == {OLD}


@pytest.mark.parametrize("end", ["abort", "roll_back"])
@pytest.mark.parametrize("paused", [False, True])
def test_a_wave_that_a_command_ends_does_not_stay_running(
    new_fleet: NewFleet, end: str, paused: bool
) -> None:
    """It showed `running 1/2` for good, after the end of the rollout."""
    fleet = new_fleet()
    fleet.tick()
    if paused:
        fleet.store = commands.pause(fleet.store, "lunch", fleet.now)
    if end == "abort":
        fleet.store = commands.abort(fleet.store, "enough", fleet.now)
    else:
        fleet.store = commands.roll_back(fleet.store, fleet.facts(), "enough", fleet.now)
    fleet.finish()
    assert states(fleet)[1:] == ("inconclusive", "pending")
    assert fleet.store.waves[0].reason == "not judged: the rollout was ended"


def test_a_wave_that_was_judged_keeps_its_verdict(new_fleet: NewFleet) -> None:
    fleet = new_fleet(strategy=f"{STRATEGY}\non_failure: pause\n")
    fleet.in_wave(0)[0].behaves = "bad"
    fleet.finish()
    before = fleet.store.waves
    fleet.store = commands.abort(fleet.store, "enough", fleet.now)
    assert fleet.store.waves == before
    assert states(fleet) == ("aborted", "failed", "pending")


@pytest.mark.parametrize(
    ("command", "allowed"),
    [
        ("pause", {"running"}),
        ("resume", {"paused"}),
        ("abort", {"draft", "awaiting_approval", "scheduled", "running", "paused"}),
        ("roll_back", {"running", "paused", "succeeded", "aborted"}),
    ],
)
@pytest.mark.parametrize("state", list(RolloutState))
def test_each_command_is_refused_in_the_wrong_state(
    new_fleet: NewFleet, command: str, allowed: set[str], state: RolloutState
) -> None:
    fleet = new_fleet()
    fleet.tick()
    rollout = replace(fleet.store, state=state)
    act = {
        "pause": lambda: commands.pause(rollout, "", fleet.now),
        "resume": lambda: commands.resume(rollout, fleet.facts(), fleet.now),
        "abort": lambda: commands.abort(rollout, "", fleet.now),
        "roll_back": lambda: commands.roll_back(rollout, fleet.facts(), "", fleet.now),
    }[command]
    if state in allowed:
        act()
    else:
        with pytest.raises(ConflictError, match=f"is {state}"):
            act()


def test_a_receipt_of_another_generation_or_a_second_one_changes_nothing(
    new_fleet: NewFleet,
) -> None:
    fleet = new_fleet()
    fleet.finish()
    before = dict(fleet.store.members)
    fleet.receive("d0", UpdateResult(1, committed=False))
    fleet.receive("d1", UpdateResult(2, committed=False))
    assert fleet.store.members == before


@pytest.mark.parametrize("state", [MemberState.PENDING, MemberState.REVERTED])
def test_a_receipt_settles_only_a_device_that_is_expected_to_report(state: MemberState) -> None:
    member = Member(device_id="d", name="d", wave=0, state=state, generation=3)
    for interrupted in (False, True):
        result = UpdateResult(3, committed=False, interrupted=interrupted)
        assert settle(member, result, max_retries=5) == member


def test_a_member_begins_untouched() -> None:
    member = Member(device_id="d", name="d", wave=0)
    assert (member.state, member.succeeded, member.generation) == (MemberState.PENDING, None, 0)
    assert (member.reachable_at_assignment, member.sent_back, member.retries) == (False, False, 0)
    assert (member.bytes_downloaded, member.switch_seconds) == (0, 0.0)
    assert UpdateResult(1, committed=True).bytes_downloaded == 0
    assert UpdateResult(1, committed=True).switch_seconds == 0.0


def test_only_an_unfinished_rollout_retries() -> None:
    strategy = Strategy(max_retries=3)
    assert retries_allowed(RolloutState.RUNNING, strategy) == 3
    assert retries_allowed(RolloutState.ROLLING_BACK, strategy) == 3
    assert retries_allowed(RolloutState.SUCCEEDED, strategy) == 0
    assert retries_allowed(RolloutState.ABORTED, strategy) == 0
