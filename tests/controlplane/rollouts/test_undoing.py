"""Devices go back to their previous releases, also those that were away."""

import pytest

from controlplane.errors import ConflictError
from controlplane.rollouts import commands
from controlplane.rollouts.machine import MemberState, RolloutState

from .conftest import NEW, OLD, NewFleet, states


def test_a_broken_release_stops_at_the_canary_and_is_undone(new_fleet: NewFleet) -> None:
    fleet = new_fleet(behaves="bad")
    fleet.finish()
    assert states(fleet) == ("rolled_back", "failed", "pending")
    assert fleet.store.reason == "wave canary failed: failed devices: 1, allowed: 0"
    (canary,) = fleet.in_wave(0)
    assert fleet.assigned == [(canary.id, NEW), (canary.id, OLD)]
    member = fleet.member(canary.id)
    assert member.state is MemberState.REVERTED
    assert member.succeeded is False
    assert "probation_failed" in member.detail
    assert {device.current for device in fleet.devices.values()} == {OLD}


def test_rollback_reaches_devices_that_succeeded_too(new_fleet: NewFleet) -> None:
    fleet = new_fleet()
    fleet.tick()
    fleet.work()
    fleet.pass_time(1)
    fleet.pass_time(5)
    late = fleet.in_wave(1)[0]
    late.behaves = "bad"
    fleet.finish()
    assert states(fleet) == ("rolled_back", "passed", "failed")
    assert {device.current for device in fleet.devices.values()} == {OLD}


def test_a_device_that_ran_nothing_goes_back_to_nothing(new_fleet: NewFleet) -> None:
    fleet = new_fleet(count=1, current="", behaves="bad", generation=0, wanted="", seen=0)
    fleet.finish()
    (device,) = fleet.devices.values()
    assert (device.wanted, device.generation) == ("", 2)
    assert fleet.store.state is RolloutState.ROLLED_BACK


def test_an_operator_undoes_a_success(new_fleet: NewFleet) -> None:
    fleet = new_fleet()
    fleet.finish()
    fleet.store = commands.roll_back(fleet.store, fleet.facts(), "slower", fleet.now)
    fleet.finish()
    assert fleet.store.state is RolloutState.ROLLED_BACK
    assert fleet.store.reason == "slower"
    assert {device.current for device in fleet.devices.values()} == {OLD}
    assert all(one.state is MemberState.REVERTED for one in fleet.store.members.values())


def test_rollback_leaves_alone_what_a_later_rollout_moved(new_fleet: NewFleet) -> None:
    fleet = new_fleet()
    fleet.finish()
    moved = fleet.devices["d0"]
    moved.generation, moved.wanted, moved.current, moved.seen = 3, "acme/other@3", "acme/other@3", 3
    fleet.store = commands.roll_back(fleet.store, fleet.facts(), "", fleet.now)
    fleet.finish()
    assert fleet.store.state is RolloutState.ROLLED_BACK
    assert moved.current == "acme/other@3"
    assert {fleet.devices[name].current for name in ("d1", "d2", "d3")} == {OLD}


def test_rollback_reaches_what_a_later_rollout_gave_this_release_again(
    new_fleet: NewFleet,
) -> None:
    fleet = new_fleet()
    fleet.finish()
    canary = fleet.devices["d0"]
    # A later rollout failed and assigned this one's release again: two generations more.
    canary.generation, canary.seen = canary.generation + 2, canary.seen + 2
    fleet.store = commands.roll_back(fleet.store, fleet.facts(), "", fleet.now)
    fleet.finish()
    assert fleet.store.state is RolloutState.ROLLED_BACK
    assert {device.current for device in fleet.devices.values()} == {OLD}


def test_rollback_with_nothing_to_send_back_is_refused(new_fleet: NewFleet) -> None:
    fleet = new_fleet()
    fleet.finish()
    for device in fleet.devices.values():
        device.generation, device.wanted = device.generation + 1, "acme/other@3"
    with pytest.raises(ConflictError, match="no device left"):
        commands.roll_back(fleet.store, fleet.facts(), "", fleet.now)


def test_rollback_ends_though_a_device_is_away_and_reverts_it_later(new_fleet: NewFleet) -> None:
    fleet = new_fleet()
    fleet.finish()
    away = fleet.devices["d1"]
    away.online = False
    fleet.store = commands.roll_back(fleet.store, fleet.facts(), "bad", fleet.now)
    fleet.finish()
    assert fleet.store.state is RolloutState.ROLLED_BACK
    assert fleet.store.reason == "bad; 1 device has not reported; each goes back when it comes back"
    away.online = True
    fleet.work()
    assert away.current == OLD
    assert fleet.member("d1").state is MemberState.REVERTED


def test_a_device_that_cannot_go_back_is_told_of(new_fleet: NewFleet) -> None:
    fleet = new_fleet()
    fleet.finish()
    fleet.devices["d1"].behaves = "bad"
    fleet.store = commands.roll_back(fleet.store, fleet.facts(), "bad", fleet.now)
    fleet.finish()
    assert fleet.store.state is RolloutState.ROLLED_BACK
    assert "devices that could not go back: 1" in fleet.store.reason
    assert fleet.member("d1").state is MemberState.FAILED
    assert fleet.member("d1").detail.startswith("could not go back")


def test_an_interrupted_revert_is_given_again(new_fleet: NewFleet) -> None:
    fleet = new_fleet()
    fleet.finish()
    fleet.devices["d1"].behaves = "shaky"
    fleet.store = commands.roll_back(fleet.store, fleet.facts(), "bad", fleet.now)
    fleet.finish()
    assert fleet.store.state is RolloutState.ROLLED_BACK
    assert fleet.store.reason == "bad"
    assert fleet.devices["d1"].current == OLD


def test_a_device_between_two_tries_goes_back_with_the_rest(new_fleet: NewFleet) -> None:
    fleet = new_fleet()
    fleet.tick()
    (canary,) = fleet.in_wave(0)
    canary.behaves = "shaky"
    fleet.work()
    assert fleet.member(canary.id).state is MemberState.PENDING
    fleet.store = commands.roll_back(fleet.store, fleet.facts(), "bad", fleet.now)
    fleet.finish()
    assert fleet.store.state is RolloutState.ROLLED_BACK
    assert fleet.assigned == [(canary.id, NEW), (canary.id, OLD)]
