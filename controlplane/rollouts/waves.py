"""The order of devices: deterministic cohorts, stratified by hardware class."""

import hashlib
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from controlplane.rollouts.strategy import ALL_PERCENT, Strategy


@dataclass(frozen=True, slots=True)
class TargetDevice:
    """A device that the selector matched."""

    device_id: str
    hardware_class: str
    reachable: bool = True


def assign_waves(
    rollout_id: str, candidates: Sequence[TargetDevice], strategy: Strategy
) -> dict[str, int]:
    """Return the wave of every device, by device id.

    All devices are put in one order, of which each wave takes the next part. The order begins with
    one device of each hardware class, so that the first wave covers every class; after it the
    classes stay mixed in proportion. Within a class, devices are ordered by a hash of rollout and
    device, so that canaries differ between rollouts; unreachable devices come last, since they
    prove nothing.
    """
    order = _order(rollout_id, candidates)
    classes = len({candidate.hardware_class for candidate in candidates})
    waves: dict[str, int] = {}
    done = 0
    for index, spec in enumerate(strategy.waves):
        if spec.percent is not None:
            # Round up: a small percentage of a small fleet is at least one device.
            end = math.ceil(len(order) * spec.percent / ALL_PERCENT)
        else:
            end = done + (spec.count or 0)
        if index == 0:
            end = max(end, classes)
        end = min(max(end, done), len(order))
        waves.update((device_id, index) for device_id in order[done:end])
        done = end
    return waves


def _order(rollout_id: str, candidates: Sequence[TargetDevice]) -> list[str]:
    by_class: dict[str, list[TargetDevice]] = defaultdict(list)
    for candidate in candidates:
        by_class[candidate.hardware_class].append(candidate)
    keyed: list[tuple[tuple[float, str], str]] = []
    for members in by_class.values():
        members.sort(key=lambda one: (not one.reachable, _draw(rollout_id, one.device_id)))
        for rank, member in enumerate(members):
            # Midpoint of the member's share of its class, which interleaves classes in proportion.
            # The first of each class gets share 0, so that the order begins with all classes.
            share = 0.0 if rank == 0 else (rank + 0.5) / len(members)
            keyed.append(((share, _draw(rollout_id, member.device_id)), member.device_id))
    return [device_id for _, device_id in sorted(keyed)]


def _draw(rollout_id: str, device_id: str) -> str:
    return hashlib.sha256(f"{rollout_id}\0{device_id}".encode()).hexdigest()
