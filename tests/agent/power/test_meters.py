"""Power meters over recorded sysfs trees, and test doubles for NVML."""

from dataclasses import dataclass
from pathlib import Path

import boards
import pytest
from boards import JETSON_ORIN_NANO, LAPTOP, PI_5, PI_5_WATTS, SUPPLY, package, write

from agent.errors import MeterLostError
from agent.power import discover
from agent.power.amdgpu import open_amdgpu
from agent.power.battery import open_battery
from agent.power.hwmon import open_ina
from agent.power.integral import IntegratedMeter
from agent.power.load_model import open_load_model
from agent.power.nvml import meter_over, open_nvml
from agent.power.pmic import open_pmic
from agent.power.rapl import open_rapl
from artifact.window import Provenance


@dataclass
class Clock:
    seconds: float = 0.0

    def __call__(self) -> float:
        return self.seconds


def watts_of(meter: IntegratedMeter | None) -> float:
    assert meter is not None
    return meter.watts()


def test_rapl_adds_up_the_packages_only(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            **package(0, 5_000_000),
            **package(1, 7_000_000),
            "sys/class/powercap/intel-rapl:2/name": "psys",
            "sys/class/powercap/intel-rapl:0:0/name": "core",
            "sys/class/powercap/intel-rapl:0:0/energy_uj": "1",
        },
    )
    meter = open_rapl(root)
    assert meter is not None
    assert meter.read_joules() == 0
    write(root, {**package(0, 6_500_000), **package(1, 7_250_000)})
    assert meter.read_joules() == 1.75
    assert str(meter.provenance) == "rapl/package/counter"


def test_rapl_counts_across_a_wrap(tmp_path: Path) -> None:
    most = 262_143_328_850
    root = write(tmp_path, package(0, most - 1_000_000))
    meter = open_rapl(root)
    assert meter is not None
    write(root, package(0, 500_000))
    assert meter.read_joules() == 1.5
    write(root, package(0, 900_000))
    assert meter.read_joules() == pytest.approx(1.9)


def test_a_small_range_must_be_read_more_often(tmp_path: Path) -> None:
    meter = open_rapl(write(tmp_path, package(0, 1, most=65_532_610_987)))
    assert meter is not None
    # 65.5 kJ at no more than 1 kW wrap after 65.5 s at the soonest.
    assert meter.sample_interval_seconds == pytest.approx(32.77, abs=0.01)


def test_an_unreadable_counter_is_no_meter(tmp_path: Path) -> None:
    root = write(tmp_path, package(0, 1))
    (root / "sys/class/powercap/intel-rapl:0/energy_uj").unlink()
    assert open_rapl(root) is None


CHIP = "sys/class/hwmon/hwmon1"


def test_the_boards_total_channel_is_integrated(tmp_path: Path) -> None:
    root, clock = write(tmp_path, JETSON_ORIN_NANO), Clock()
    meter = open_ina(root, clock)
    assert meter is not None
    clock.seconds = 2
    write(root, {f"{CHIP}/curr1_input": "4000"})
    # From 10 W to 20 W within two seconds.
    assert meter.read_joules() == pytest.approx(30)
    assert str(meter.provenance) == "ina3221/board/integrated"


@pytest.mark.parametrize(
    ("board", "watts", "source"),
    [
        (boards.JETSON_ORIN_NANO, 10.0, "ina3221"),
        (boards.JETSON_AGX_ORIN, 3.8 + 1.9 + 4.5, "ina3221"),
        (boards.JETSON_THOR, 24.2, "ina238"),
        # An unknown carrier board: one chip without a label of a supply rail.
        (boards.rails("hwmon0", "ina3221", A=(5000, 100), B=(3300, 100)), 0.83, "ina3221"),
    ],
    ids=["orin nano", "agx orin", "thor", "unknown"],
)
def test_what_feeds_the_whole_board_is_measured_once(
    tmp_path: Path, board: dict[str, str], watts: float, source: str
) -> None:
    meter = open_ina(boards.write(tmp_path, board))
    assert watts_of(meter) == pytest.approx(watts)
    assert meter is not None
    assert meter.provenance == Provenance(source, "board", "integrated")


def test_a_gap_or_an_impossible_reading_makes_no_energy(tmp_path: Path) -> None:
    root, clock = write(tmp_path, JETSON_ORIN_NANO), Clock()
    meter = open_ina(root, clock)
    assert meter is not None
    # After a suspend the power in between is unknown.
    clock.seconds = 3600
    assert meter.read_joules() == 0
    clock.seconds += 1
    assert meter.read_joules() == pytest.approx(10)
    write(root, {f"{CHIP}/curr1_input": "900000000"})
    with pytest.raises(MeterLostError, match="expected 0 to"):
        meter.read_joules()


def test_an_amd_package_is_counted_once(tmp_path: Path) -> None:
    """The core zone lies within the package zone."""
    root = write(tmp_path, boards.amd_zen(boards.AMD_RANGE - 2_000_000))
    meter = open_rapl(root)
    assert meter is not None
    write(root, boards.amd_zen(4_000_000))
    assert meter.read_joules() == 6
    assert meter.provenance == Provenance("rapl", "package", "counter")


@pytest.mark.parametrize(
    ("box", "watts", "scope"),
    [
        (boards.AMD_APU, 14.05, "package"),
        (boards.AMD_CARD, 96.0, "gpu"),
        # Figures of different scopes must not be added.
        (boards.AMD_APU | boards.AMD_CARD, 14.05, "package"),
    ],
    ids=["apu", "card", "both"],
)
def test_amd_graphics_give_their_power(
    tmp_path: Path, box: dict[str, str], watts: float, scope: str
) -> None:
    clock = Clock()
    meter = open_amdgpu(write(tmp_path, box), clock)
    assert meter is not None
    clock.seconds = 2
    assert meter.read_joules() == pytest.approx(2 * watts)
    assert meter.provenance == Provenance("amdgpu", scope, "integrated")


def test_a_card_that_sleeps_is_not_woken(tmp_path: Path) -> None:
    """Reading the power would wake a suspended card."""
    root, clock = write(tmp_path, boards.AMD_CARD), Clock()
    meter = open_amdgpu(root, clock)
    write(root, {f"{boards.HWMON}/hwmon5/device/power/runtime_status": "suspended"})
    assert watts_of(meter) == 0


def test_other_chips_are_no_amd_graphics(tmp_path: Path) -> None:
    assert open_amdgpu(write(tmp_path, {f"{CHIP}/name": "k10temp"})) is None
    assert open_ina(write(tmp_path, boards.AMD_APU)) is None


def vcgencmd(root: Path, script: str) -> Path:
    command = write(root, {"usr/bin/vcgencmd": f"#!/bin/sh\n{script}"}) / "usr/bin/vcgencmd"
    command.chmod(0o755)
    return command


def test_the_pi_5_rails_are_added_up(tmp_path: Path) -> None:
    command = vcgencmd(tmp_path, f"[ $1 = pmic_read_adc ] && cat <<'END'\n{PI_5}END")
    meter = open_pmic(tmp_path)
    assert watts_of(meter) == pytest.approx(PI_5_WATTS)
    assert meter is not None
    assert meter.provenance == Provenance("pmic", "board", "integrated")
    command.unlink()
    with pytest.raises(MeterLostError):
        meter.read_joules()


@pytest.mark.parametrize(
    "script",
    ["echo 'VCHI initialization failed'; exit 1", "echo nonsense", "echo 'A_A current(1)=9e99A'"],
)
def test_firmware_without_rails_is_no_meter(tmp_path: Path, script: str) -> None:
    vcgencmd(tmp_path, script)
    assert open_pmic(tmp_path) is None


def test_a_battery_measures_only_while_it_feeds_the_box(tmp_path: Path) -> None:
    root, clock = write(tmp_path, LAPTOP), Clock()
    meter = open_battery(root, clock)
    assert watts_of(meter) == pytest.approx(8.4)
    assert meter is not None
    assert meter.provenance == Provenance("battery", "board", "integrated")
    write(root, {f"{SUPPLY}/BAT0/status": "Charging"})
    with pytest.raises(MeterLostError, match="not discharging"):
        meter.read_joules()
    assert open_battery(root) is None


def test_a_battery_without_power_gives_current_and_voltage(tmp_path: Path) -> None:
    root = write(tmp_path, LAPTOP)
    (root / SUPPLY / "BAT0/power_now").unlink()
    write(root, {f"{SUPPLY}/BAT0/voltage_now": "12000000", f"{SUPPLY}/BAT0/current_now": "-500000"})
    assert watts_of(open_battery(root)) == pytest.approx(6)


class Nvml:
    """Test double of pynvml."""

    class NVMLError(Exception):
        pass

    def __init__(self, *, counters: list[int] | None, milliwatts: int = 0) -> None:
        self.counters = counters
        self.milliwatts = milliwatts

    def nvmlInit(self) -> None:  # noqa: N802 - NVML's name
        pass

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.counters) if self.counters is not None else 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:  # noqa: N802
        if self.counters is None:
            raise self.NVMLError("not supported")
        return self.counters[handle]

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:  # noqa: N802
        return self.milliwatts


def test_the_gpus_counters_are_added_up() -> None:
    nvml = Nvml(counters=[5_000, 7_000])
    meter = meter_over(nvml, Clock())
    assert meter is not None
    nvml.counters = [6_500, 7_250]
    assert meter.read_joules() == 1.75
    assert meter.provenance == Provenance("nvml", "gpu", "counter")
    nvml.counters = None
    with pytest.raises(MeterLostError):
        meter.read_joules()


def test_an_older_gpu_gives_its_power() -> None:
    clock = Clock()
    meter = meter_over(Nvml(counters=None, milliwatts=20_000), clock)
    assert meter is not None
    clock.seconds = 2
    assert meter.read_joules() == pytest.approx(40)
    assert meter.provenance.method == "integrated"


def test_a_box_without_a_gpu_has_no_gpu_meter(tmp_path: Path) -> None:
    assert meter_over(Nvml(counters=[]), Clock()) is None
    assert open_nvml(tmp_path) is None


def test_a_load_model_is_labelled_an_estimate(tmp_path: Path) -> None:
    root, clock = write(tmp_path, {"proc/stat": "cpu 100 0 0 900 0 0 0 0 0 0\ncpu0 1"}), Clock()
    meter = open_load_model(root, 4.0, 12.0, clock)
    assert meter is not None
    assert meter.provenance == Provenance("model", "board", "estimated")
    # Half busy for two seconds, from idle before: 4 W to 8 W.
    write(root, {"proc/stat": "cpu 200 0 0 1000 0 0 0 0 0 0"})
    clock.seconds = 2
    assert meter.read_joules() == pytest.approx(12)
    assert open_load_model(tmp_path / "nothing", 4.0, 12.0) is None


def test_a_meter_that_goes_away_says_so(tmp_path: Path) -> None:
    root = write(tmp_path, {**JETSON_ORIN_NANO, **package(0, 1)})
    ina, rapl = open_ina(root), open_rapl(root)
    assert ina is not None
    assert rapl is not None
    (root / CHIP / "curr1_input").write_text("")
    (root / "sys/class/powercap/intel-rapl:0/energy_uj").unlink()
    with pytest.raises(MeterLostError):
        ina.read_joules()
    with pytest.raises(MeterLostError):
        rapl.read_joules()


def test_discovery_takes_only_what_moves(tmp_path: Path) -> None:
    root = write(tmp_path, package(0, 1_000_000))

    def spend(seconds: float) -> None:
        write(root, package(0, 3_000_000))

    assert discover(root, pause=lambda seconds: None) is None
    meter = discover(root, pause=spend)
    assert meter is not None
    assert meter.provenance.source == "rapl"


def test_an_amd_box_gives_its_counter_where_it_may_be_read(tmp_path: Path) -> None:
    root = write(tmp_path, boards.AMD_APU | boards.amd_zen(1_000_000))

    def spend(seconds: float) -> None:
        write(root, boards.amd_zen(3_000_000))

    meter = discover(root, pause=spend)
    assert meter is not None
    assert meter.provenance.source == "rapl"
    (root / "sys/class/powercap/intel-rapl:0/energy_uj").unlink()
    meter = discover(root, pause=lambda seconds: None)
    assert meter is not None
    assert str(meter.provenance) == "amdgpu/package/integrated"


def test_a_box_without_sensors_is_unmeasured(tmp_path: Path) -> None:
    assert discover(tmp_path, pause=lambda seconds: None) is None


def test_an_estimate_stands_in_only_where_nothing_measures(tmp_path: Path) -> None:
    root = write(tmp_path, {"proc/stat": "cpu 100 0 0 900 0 0 0 0 0 0", **package(0, 1_000_000)})

    def spend(seconds: float) -> None:
        write(root, package(0, 3_000_000))

    guessed = discover(root, estimate=(4, 12), pause=lambda seconds: None)
    measured = discover(root, estimate=(4, 12), pause=spend)
    assert guessed is not None
    assert measured is not None
    assert (guessed.provenance.method, measured.provenance.method) == ("estimated", "counter")
