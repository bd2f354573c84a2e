"""Throttling is read from the kernel and the firmware."""

from pathlib import Path

import pytest
from boards import write

from agent.power.throttling import ThrottleMonitor, ThrottleReader

ZONE = "sys/class/thermal/thermal_zone0"
COOLING = "sys/class/thermal/cooling_device2"
POLICY = "sys/devices/system/cpu/cpufreq/policy0"
COUNT = "sys/devices/system/cpu/cpu0/thermal_throttle/package_throttle_count"
OVER_CURRENT = "sys/class/hwmon/hwmon5/oc1_event_cnt"
PI = "sys/devices/platform/soc/soc:firmware/get_throttled"

AT_EASE = {
    f"{ZONE}/temp": "45000",
    f"{ZONE}/trip_point_0_type": "active",
    f"{ZONE}/trip_point_0_temp": "40000",
    f"{ZONE}/trip_point_1_type": "passive",
    f"{ZONE}/trip_point_1_temp": "85000",
    f"{COOLING}/type": "Processor",
    f"{COOLING}/cur_state": "0",
    f"{POLICY}/scaling_max_freq": "1500000",
    COUNT: "7",
    OVER_CURRENT: "2",
    # Throttled earlier since the start, not now.
    PI: "50000",
}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({f"{ZONE}/temp": "85000"}, "thermal"),
        ({f"{COOLING}/cur_state": "3"}, "cpu_frequency_capped"),
        ({f"{POLICY}/scaling_max_freq": "600000"}, "cpu_frequency_capped"),
        ({COUNT: "9"}, "thermal"),
        ({OVER_CURRENT: "3"}, "over_current"),
        ({PI: "50001"}, "under_voltage"),
        ({PI: "4"}, "throttled"),
    ],
)
def test_each_sign_is_named_and_goes_away(
    tmp_path: Path, change: dict[str, str], reason: str
) -> None:
    watch = ThrottleReader(write(tmp_path, AT_EASE))
    assert watch.reasons() == frozenset()
    write(tmp_path, change)
    assert watch.reasons() == {reason}
    write(tmp_path, {name: AT_EASE[name] for name in change if name not in (COUNT, OVER_CURRENT)})
    assert watch.reasons() == frozenset()


def test_a_fan_at_work_is_no_throttling(tmp_path: Path) -> None:
    fan = {f"{COOLING}/type": "pwm-fan", f"{COOLING}/cur_state": "4"}
    assert ThrottleReader(write(tmp_path, AT_EASE | fan)).reasons() == frozenset()


def test_a_box_that_does_not_tell_is_not_throttled(tmp_path: Path) -> None:
    assert ThrottleReader(tmp_path).reasons() == frozenset()


def test_the_time_slowed_down_is_added_up(tmp_path: Path) -> None:
    monitor = ThrottleMonitor(ThrottleReader(write(tmp_path, AT_EASE)))
    monitor.poll(10)
    write(tmp_path, {f"{ZONE}/temp": "90000"})
    monitor.poll(10)
    assert (monitor.seconds, monitor.reasons) == (0, {"thermal"})
    monitor.poll(10)
    write(tmp_path, {f"{ZONE}/temp": "50000"})
    monitor.poll(10)
    monitor.poll(10)
    assert (monitor.seconds, monitor.reasons) == (20, frozenset())
