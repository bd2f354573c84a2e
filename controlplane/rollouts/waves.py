"""Who goes when: deterministic cohorts, stratified by hardware class."""

import hashlib
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from controlplane.rollouts.strategy import ALL_PERCENT, Strategy


@dataclass(frozen=True, slots=True)
class Candidate:
    """A device that the selector found."""

    device_id: str
    hardware_class: str
    reachable: bool = True


def assign_waves(
    rollout_id: str, candidates: Sequence[Candidate], strategy: Strategy
) -> dict[str, int]:
    """The wave of every device, by device id.

    One order over all devices, of which each wave takes the next stretch. Its head has one device
    of each hardware class, so the canary meets every class that the rest has; after it the classes
    stay mixed in proportion. Within a class the order is by a hash of rollout and device, so that
    no device is everybody's canary; those that cannot hear us come last, as they prove nothing.
    """
    order = _order(rollout_id, candidates)
    classes = len({candidate.hardware_class for candidate in candidates})
    waves: dict[str, int] = {}
    done = 0
    for index, spec in enumerate(strategy.waves):
        if spec.percent is not None:
            end = math.ceil(len(order) * spec.percent / ALL_PERCENT)
        else:
            end = done + (spec.count or 0)
        if index == 0:
            end = max(end, classes)
        end = min(max(end, done), len(order))
        waves.update((device_id, index) for device_id in order[done:end])
        done = end
    return waves


def _order(rollout_id: str, candidates: Sequence[Candidate]) -> list[str]:
    by_class: dict[str, list[Candidate]] = defaultdict(list)
    for candidate in candidates:
        by_class[candidate.hardware_class].append(candidate)
    keyed: list[tuple[tuple[float, str], str]] = []
    for members in by_class.values():
        members.sort(key=lambda one: (not one.reachable, _draw(rollout_id, one.device_id)))
        for rank, member in enumerate(members):
            share = 0.0 if rank == 0 else (rank + 0.5) / len(members)
            keyed.append(((share, _draw(rollout_id, member.device_id)), member.device_id))
    return [device_id for _, device_id in sorted(keyed)]


def _draw(rollout_id: str, device_id: str) -> str:
    return hashlib.sha256(f"{rollout_id}\0{device_id}".encode()).hexdigest()
