"""Sysfs trees as boards show them: the files that a meter reads.

Layouts follow the kernel's documentation and drivers and the vendors' manuals; no tree was recorded
on a board, and the readings are only plausible.
"""

from pathlib import Path

HWMON = "sys/class/hwmon"


def write(root: Path, files: dict[str, str]) -> Path:
    """Lays the files under ``root``, over what lies there."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root


def package(number: int, energy: int, most: int = 262_143_328_850) -> dict[str, str]:
    """A CPU package in the powercap tree: Intel's, and AMD's under the same name."""
    zone = f"sys/class/powercap/intel-rapl:{number}"
    return {
        f"{zone}/name": f"package-{number}",
        f"{zone}/energy_uj": str(energy),
        f"{zone}/max_energy_range_uj": str(most),
    }


# Zen through intel_rapl_msr: 32 bits of 2^-16 J, no psys, dram or uncore, and a core zone that is
# one core's own counter.
AMD_RANGE = 65_532_610_987


def amd_zen(energy: int) -> dict[str, str]:
    """One socket whose package has counted so many microjoules."""
    core = "sys/class/powercap/intel-rapl:0:0"
    return package(0, energy, AMD_RANGE) | {
        "sys/class/powercap/intel-rapl/enabled": "0",
        f"{core}/name": "core",
        f"{core}/energy_uj": str(energy // 20),
        f"{core}/max_energy_range_uj": str(AMD_RANGE),
    }


def rails(chip: str, name: str, **channels: tuple[int, int]) -> dict[str, str]:
    """An INA chip: millivolts and milliamperes by the rails' labels, channels from 1."""
    files = {f"{HWMON}/{chip}/name": name}
    for number, (label, (millivolts, milliamperes)) in enumerate(channels.items(), 1):
        files[f"{HWMON}/{chip}/in{number}_label"] = label
        files[f"{HWMON}/{chip}/in{number}_input"] = str(millivolts)
        files[f"{HWMON}/{chip}/curr{number}_input"] = str(milliamperes)
    return files


# The sums that an INA3221 shows beside its channels, and the shunt voltages in microvolts.
INA3221_SUMS = {
    "in4_input": "2000",
    "in5_input": "900",
    "in6_input": "400",
    "in7_input": "3300",
    "in7_label": "sum of shunt voltages",
    "curr4_input": "3300",
}

JETSON_ORIN_NANO = rails(
    "hwmon1", "ina3221", VDD_IN=(5000, 2000), VDD_CPU_GPU_CV=(5000, 800), VDD_SOC=(5000, 400)
) | {f"{HWMON}/hwmon1/{name}": text for name, text in INA3221_SUMS.items()}

JETSON_AGX_ORIN = (
    rails(
        "hwmon3",
        "ina3221",
        VDD_GPU_SOC=(19000, 200),
        VDD_CPU_CV=(19000, 100),
        VIN_SYS_5V0=(5000, 900),
    )
    | {f"{HWMON}/hwmon3/{name}": text for name, text in INA3221_SUMS.items()}
    # Fed by VIN_SYS_5V0, so not counted again; its other channels are switched off.
    | rails("hwmon4", "ina3221", VDDQ_VDD2_1V8AO=(5000, 300))
    | {f"{HWMON}/hwmon4/in2_label": "NC", f"{HWMON}/hwmon4/curr2_input": ""}
    | {f"{HWMON}/hwmon0/name": "tmp451"}
)

JETSON_THOR = rails(
    "hwmon2", "ina3221", VDD_GPU=(19000, 300), VDD_CPU_SOC_MSS=(19000, 200), VIN_SYS_5V0=(5000, 500)
) | {
    f"{HWMON}/hwmon1/name": "ina238",
    f"{HWMON}/hwmon1/in0_input": "12",
    f"{HWMON}/hwmon1/in1_input": "20000",
    f"{HWMON}/hwmon1/curr1_input": "1210",
    f"{HWMON}/hwmon1/power1_input": "24200000",
}

# An APU's graphics: its power is that of the whole package.
AMD_APU = {
    f"{HWMON}/hwmon0/name": "k10temp",
    f"{HWMON}/hwmon0/temp1_input": "48250",
    f"{HWMON}/hwmon4/name": "amdgpu",
    f"{HWMON}/hwmon4/in0_label": "vddgfx",
    f"{HWMON}/hwmon4/in0_input": "1100",
    f"{HWMON}/hwmon4/in1_label": "vddnb",
    f"{HWMON}/hwmon4/in1_input": "900",
    f"{HWMON}/hwmon4/power1_label": "PPT",
    f"{HWMON}/hwmon4/power1_average": "14050000",
    f"{HWMON}/hwmon4/freq1_label": "sclk",
}

# A card of a kind that gives no average.
AMD_CARD = {
    f"{HWMON}/hwmon5/name": "amdgpu",
    f"{HWMON}/hwmon5/in0_label": "vddgfx",
    f"{HWMON}/hwmon5/in0_input": "870",
    f"{HWMON}/hwmon5/power1_label": "PPT",
    f"{HWMON}/hwmon5/power1_input": "96000000",
    f"{HWMON}/hwmon5/power1_cap": "200000000",
    f"{HWMON}/hwmon5/device/power/runtime_status": "active",
}

PI_5 = """\
  3V7_WL_SW_A current(0)=0.10000000A
    3V3_SYS_A current(1)=0.20000000A
     VDD_CORE_A current(7)=2.00000000A
  3V7_WL_SW_V volt(8)=3.70000000V
    3V3_SYS_V volt(9)=3.30000000V
     VDD_CORE_V volt(15)=0.75000000V
      EXT5V_V volt(24)=5.10000000V
       BATT_V volt(25)=0.00000000V
"""
PI_5_WATTS = 0.1 * 3.7 + 0.2 * 3.3 + 2.0 * 0.75

SUPPLY = "sys/class/power_supply"
LAPTOP = {
    f"{SUPPLY}/AC/type": "Mains",
    f"{SUPPLY}/AC/online": "0",
    f"{SUPPLY}/BAT0/type": "Battery",
    f"{SUPPLY}/BAT0/status": "Discharging",
    f"{SUPPLY}/BAT0/power_now": "8400000",
    f"{SUPPLY}/hidpp_battery_0/type": "Battery",
    f"{SUPPLY}/hidpp_battery_0/scope": "Device",
    f"{SUPPLY}/hidpp_battery_0/status": "Discharging",
    f"{SUPPLY}/hidpp_battery_0/power_now": "100000",
}
