"""Whole rollouts over simulated devices, on a clock that the test advances."""

import pytest

from controlplane.rollouts import commands
from controlplane.rollouts.machine import MemberState, RolloutState, WaveState

from .conftest import NEW, OLD, STRATEGY, NewFleet, SimulatedDevice, make_fleet, states


def test_a_good_release_reaches_everyone_wave_by_wave(new_fleet: NewFleet) -> None:
    fleet = new_fleet()
    fleet.tick()
    assert states(fleet) == ("running", "running", "pending")
    assert fleet.assigned == [(device.id, NEW) for device in fleet.in_wave(0)]
    fleet.work()
    fleet.tick()
    assert states(fleet) == ("running", "soaking", "pending")
    fleet.pass_time(4.9)
    assert states(fleet) == ("running", "soaking", "pending")
    fleet.pass_time(0.1)
    assert states(fleet) == ("running", "passed", "running")
    assert len(fleet.assigned) == 4
    fleet.work()
    fleet.tick()
    assert states(fleet) == ("succeeded", "passed", "passed")
    assert {device.current for device in fleet.devices.values()} == {NEW}
    assert fleet.store.reason == ""
    counts = fleet.store.counts(1, fleet.facts())
    assert (counts.targeted, counts.reachable, counts.reported, counts.succeeded) == (3, 3, 3, 3)


def test_receipts_leave_their_figures(new_fleet: NewFleet) -> None:
    fleet = new_fleet()
    fleet.finish()
    for member in fleet.store.members.values():
        assert (member.previous_release, member.generation) == (OLD, 2)
        assert (member.bytes_downloaded, member.switch_seconds) == (7, 0.5)


@pytest.mark.parametrize(("policy", "state"), [("pause", "paused"), ("abort", "aborted")])
def test_on_failure_pause_and_abort_leave_devices_alone(
    new_fleet: NewFleet, policy: str, state: str
) -> None:
    fleet = new_fleet(strategy=f"{STRATEGY}\non_failure: {policy}\n", behaves="bad")
    fleet.finish()
    assert states(fleet) == (state, "failed", "pending")
    assert [release for _, release in fleet.assigned] == [NEW]


def test_an_offline_device_holds_nobody_and_catches_up(new_fleet: NewFleet) -> None:
    fleet = new_fleet()
    away = fleet.in_wave(1)[0]
    away.online = False
    fleet.finish()
    assert states(fleet) == ("succeeded", "passed", "passed")
    assert fleet.store.reason == "1 device has not reported; each gets it when it comes back"
    assert (away.wanted, away.current) == (NEW, OLD)
    away.online = True
    fleet.work()
    assert away.current == NEW
    assert fleet.member(away.id).state is MemberState.SUCCEEDED


def test_a_device_that_falls_silent_holds_its_wave_until_the_timeout(new_fleet: NewFleet) -> None:
    fleet = new_fleet()
    hanging = fleet.in_wave(1)[0]
    hanging.behaves = "silent"
    fleet.finish(rounds=20)
    assert states(fleet) == ("running", "passed", "running")
    hanging.online = False
    fleet.finish(rounds=5)
    assert states(fleet) == ("running", "passed", "running")
    fleet.finish(rounds=60)
    assert states(fleet) == ("succeeded", "passed", "passed")


def test_a_silent_canary_is_inconclusive_and_pauses(new_fleet: NewFleet) -> None:
    fleet = new_fleet(behaves="silent")
    fleet.tick()
    fleet.pass_time(59)
    assert states(fleet) == ("running", "running", "pending")
    fleet.pass_time(1)
    fleet.pass_time(5)
    assert states(fleet) == ("paused", "inconclusive", "pending")
    assert "0 of 1 devices reported" in fleet.store.reason
    fleet.store = commands.resume(fleet.store, fleet.facts(), fleet.now)
    assert fleet.store.waves[0].state is WaveState.PASSED
    assert "accepted by an operator" in fleet.store.waves[0].reason


def test_a_wave_of_offline_devices_waits_for_the_timeout_before_it_gives_up(
    new_fleet: NewFleet,
) -> None:
    fleet = new_fleet(online=False)
    fleet.tick()
    fleet.pass_time(30)
    assert states(fleet) == ("running", "running", "pending")
    fleet.in_wave(0)[0].online = True
    fleet.work()
    fleet.pass_time(1)
    assert states(fleet) == ("running", "soaking", "pending")


def test_an_interrupted_update_is_given_again_and_counts_as_no_failure(
    new_fleet: NewFleet,
) -> None:
    fleet = new_fleet(behaves="shaky")
    fleet.finish()
    assert fleet.store.state is RolloutState.SUCCEEDED
    for member in fleet.store.members.values():
        assert (member.retries, member.generation, member.previous_release) == (1, 3, OLD)
        assert member.succeeded is True


def test_an_update_that_is_interrupted_too_often_has_failed(new_fleet: NewFleet) -> None:
    fleet = new_fleet(strategy=f"{STRATEGY}\nmax_retries: 0\n", behaves="shaky")
    fleet.finish()
    assert fleet.store.state is RolloutState.ROLLED_BACK
    assert fleet.assigned[1:] == [(fleet.in_wave(0)[0].id, OLD)]


def test_max_unavailable_bounds_how_many_change_at_once(new_fleet: NewFleet) -> None:
    fleet = new_fleet(count=7, strategy=f"{STRATEGY}\nmax_unavailable: 2\n")
    most = 0
    for _ in range(60):
        fleet.pass_time(1)
        changing = [
            member
            for member in fleet.store.members.values()
            if member.state is MemberState.ASSIGNED
        ]
        most = max(most, len(changing))
        for member in changing[:1]:
            fleet.work(only=[member.device_id])
    assert most == 2
    assert fleet.store.state is RolloutState.SUCCEEDED


def test_a_quarantined_device_is_told_nothing_and_holds_nobody(new_fleet: NewFleet) -> None:
    fleet = new_fleet()
    locked = fleet.in_wave(1)[0]
    locked.quarantined = True
    fleet.finish()
    assert fleet.store.state is RolloutState.SUCCEEDED
    assert fleet.member(locked.id).state is MemberState.PENDING


def test_the_canary_meets_every_class() -> None:
    fleet = make_fleet(SimulatedDevice(f"d{n}", "abc"[n % 3]) for n in range(12))
    fleet.tick()
    assert {fleet.devices[name].hardware_class for name, _ in fleet.assigned} == {"a", "b", "c"}
    assert fleet.finish().state is RolloutState.SUCCEEDED
