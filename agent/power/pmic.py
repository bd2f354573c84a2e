"""The Raspberry Pi 5's power management chip, read through the firmware's ``vcgencmd``.

``vcgencmd pmic_read_adc`` prints a line per reading, such as ``VDD_CORE_A current(7)=0.62A`` and
``VDD_CORE_V volt(15)=0.72V``. The sum over the rails excludes consumers on the 5 V rail itself
(USB, HATs) and the chip's own loss.
"""

import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from agent.power.integral import IntegratedMeter
from artifact.window import Provenance

COMMAND: Final = "usr/bin/vcgencmd"
# Each reading starts a process, which costs about as much as a hundred file reads.
SAMPLE_SECONDS: Final = 2.0
TIMEOUT_SECONDS: Final = 2.0
MAX_OUTPUT: Final = 8192
MAX_RAILS: Final = 64
_READING: Final = re.compile(
    r"^\s*(?P<rail>[A-Z0-9_]{1,32})_(?P<unit>[AV])\s+(?:current|volt)\([0-9]{1,3}\)="
    r"(?P<value>[0-9]{1,3}\.[0-9]{1,12})[AV]\s*\Z"
)


def open_pmic(root: Path, clock: Callable[[], float] = time.monotonic) -> IntegratedMeter | None:
    """Open a meter over the rails; None if the firmware has no such command."""
    command = root / COMMAND
    if not command.exists():
        return None
    try:
        return IntegratedMeter(
            lambda: watts(_read_adc(command)),
            Provenance("pmic", "board", "integrated"),
            clock,
            SAMPLE_SECONDS,
        )
    except (OSError, ValueError):
        return None


def watts(readings: str) -> float:
    """Sum the power of the rails that have voltage and current; ValueError if there is no such."""
    rails: dict[str, dict[str, float]] = {}
    for line in readings.splitlines()[: 2 * MAX_RAILS]:
        if match := _READING.match(line):
            rails.setdefault(match["rail"], {})[match["unit"]] = float(match["value"])
    powers = [rail["A"] * rail["V"] for rail in rails.values() if rail.keys() == {"A", "V"}]
    if not powers:
        raise ValueError("no rail has both voltage and current")
    return sum(powers)


def _read_adc(command: Path) -> str:
    try:
        done = subprocess.run(
            [command, "pmic_read_adc"],
            capture_output=True,
            timeout=TIMEOUT_SECONDS,
            check=True,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.SubprocessError as error:
        raise OSError(f"vcgencmd: {error}") from error
    return done.stdout[:MAX_OUTPUT].decode(errors="replace")
