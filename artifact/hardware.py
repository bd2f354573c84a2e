"""Hardware classes: devices alike enough that a measurement on one predicts another.

A device computes its own class and so does the control plane, from what the device reports; a
publisher may allow a release on some classes only.
"""

import hashlib
import re
from collections.abc import Sequence
from typing import Protocol

from artifact.manifest import canonical_json

CLASS_DIGITS = 12


class Facts(Protocol):
    """What of a device's facts decides its class. Memory in bytes."""

    @property
    def architecture(self) -> str: ...
    @property
    def cpu_model(self) -> str: ...
    @property
    def isa(self) -> Sequence[str]: ...
    @property
    def cores(self) -> int: ...
    @property
    def memory_bytes(self) -> int: ...
    @property
    def accelerators(self) -> Sequence[str]: ...
    @property
    def power_source(self) -> str: ...


def hardware_class(facts: Facts) -> str:
    """A digest of what decides speed and energy; equal for boxes of the same make.

    Left out on purpose: the operating system, measured rates (they jitter) and the owner's memory
    budget (it is a setting, not hardware).
    """
    normalised = {
        "architecture": words(facts.architecture),
        "cpu_model": cpu_model(facts.cpu_model),
        "isa": sorted({words(extension) for extension in facts.isa}),
        "cores": facts.cores,
        "memory": memory_bucket(facts.memory_bytes),
        "accelerators": sorted(words(accelerator) for accelerator in facts.accelerators),
        "power_source": words(facts.power_source),
    }
    return hashlib.sha256(canonical_json(normalised)).hexdigest()[:CLASS_DIGITS]


def memory_bucket(size: int) -> int:
    """The memory size that was bought, from what the kernel left of it, in bytes.

    Rounded up to a power of two or one and a half of it: 7.6 GiB is an 8 GiB box, 11.5 a 12 GiB
    one. Only zero gives zero.
    """
    if size <= 0:
        return 0
    power = 1 << (size - 1).bit_length()
    return power * 3 // 4 if size <= power * 3 // 4 else power


def cpu_model(name: str) -> str:
    """Without trademarks and clock rates, which differ between boards of the same processor."""
    name = re.sub(r"\((?:r|tm)\)", " ", name, flags=re.IGNORECASE)
    return words(re.sub(r"@.*$", "", name))


def words(text: str) -> str:
    """Lower case, single blanks."""
    return " ".join(text.lower().split())
