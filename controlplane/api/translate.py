"""Conversions between protobuf messages and dataclasses that several servicers need.

Every incoming value is bounded here or by the pure check that receives it.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Final

from flotilla.v1 import device_pb2, hardware_pb2, server_keys_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from artifact.device_facts import CoreCluster, CpuTopology, DeviceFacts, MicroBenchmark
from artifact.health import ReleaseHealth
from artifact.trust.statements import Authorities
from controlplane.errors import InvalidInputError
from controlplane.fleet import (
    UpdateState,
)

MAX_WORD_CHARACTERS: Final = 256
MAX_WORDS: Final = 128
MAX_UINT: Final = (1 << 63) - 1


def timestamp(moment: datetime | None) -> Timestamp | None:
    if moment is None:
        return None
    made = Timestamp()
    made.FromDatetime(moment)
    return made


def moment(stamp: Timestamp) -> datetime:
    """Convert a timestamp; raise InvalidInputError if it is out of range."""
    try:
        return stamp.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        raise InvalidInputError(
            f"{stamp.seconds} s since 1970 is not a time", advice="Check the sender's clock."
        ) from error


def count(value: int, what: str) -> int:
    """Check an unsigned figure against the database's range."""
    if value > MAX_UINT:
        raise InvalidInputError(f"{what} {value} is out of bounds", advice="Update the sender.")
    return value


def word(text: str) -> str:
    """Cut a name from outside to the stored length."""
    return text.replace("\x00", "")[:MAX_WORD_CHARACTERS]


def facts_from_wire(facts: hardware_pb2.HardwareFacts) -> DeviceFacts:
    benchmark = facts.benchmark
    return DeviceFacts(
        architecture=word(facts.architecture),
        cpu_model=word(facts.cpu_model),
        isa=tuple(word(extension) for extension in facts.isa[:MAX_WORDS]),
        cores=facts.cores,
        memory_bytes=count(facts.memory_bytes, "memory_bytes"),
        accelerators=tuple(word(name) for name in facts.accelerators[:MAX_WORDS]),
        power_source=word(facts.power_source),
        os=word(facts.os),
        kernel=word(facts.kernel),
        model_memory_bytes=count(facts.model_memory_bytes, "model_memory_bytes"),
        benchmark=MicroBenchmark(
            finite(benchmark.memory_bytes_per_second, "memory bandwidth"),
            finite(benchmark.matmul_flops_per_second, "matrix throughput"),
            finite(benchmark.storage_bytes_per_second, "storage bandwidth"),
            finite(benchmark.int8_operations_per_second, "int8 throughput"),
            _figures(benchmark.weight_bytes_per_second),
            _figures(benchmark.spreads),
        ),
        runtimes={
            word(name): word(version)
            for name, version in sorted(facts.runtimes.items())[:MAX_WORDS]
        },
        topology=CpuTopology(
            facts.topology.sockets,
            facts.topology.physical_cores,
            facts.topology.threads_per_core,
            tuple(
                CoreCluster(each.cores, each.max_megahertz)
                for each in facts.topology.clusters[:MAX_WORDS]
            ),
        ),
        cpu_quota=finite(facts.cpu_quota, "CPU quota"),
        threads=facts.threads,
        gpus=tuple(word(name) for name in facts.gpus[:MAX_WORDS]),
    )


def _figures(found: Mapping[str, float]) -> dict[str, float]:
    return {
        word(name): finite(value, "a rate") for name, value in sorted(found.items())[:MAX_WORDS]
    }


def finite(value: float, what: str) -> float:
    """Check that a figure is finite and not negative."""
    if not 0 <= value < math.inf:
        raise InvalidInputError(f"{what} {value!r} is out of bounds", advice="Update the sender.")
    return value


def health_to_wire(health: ReleaseHealth) -> device_pb2.ReleaseHealth:
    return device_pb2.ReleaseHealth(
        release=health.release,
        slots=[device_pb2.SlotHealth(**asdict(slot)) for slot in health.slots],
    )


def facts_to_wire(facts: DeviceFacts) -> hardware_pb2.HardwareFacts:
    benchmark = facts.benchmark
    return hardware_pb2.HardwareFacts(
        architecture=facts.architecture,
        cpu_model=facts.cpu_model,
        isa=facts.isa,
        cores=facts.cores,
        memory_bytes=facts.memory_bytes,
        accelerators=facts.accelerators,
        power_source=facts.power_source,
        os=facts.os,
        kernel=facts.kernel,
        model_memory_bytes=facts.model_memory_bytes,
        benchmark=hardware_pb2.MicroBenchmark(
            memory_bytes_per_second=benchmark.memory_bytes_per_second,
            matmul_flops_per_second=benchmark.matmul_flops_per_second,
            storage_bytes_per_second=benchmark.storage_bytes_per_second,
            int8_operations_per_second=benchmark.int8_operations_per_second,
            weight_bytes_per_second=benchmark.weight_bytes_per_second,
            spreads=benchmark.spreads,
        ),
        runtimes=facts.runtimes,
        topology=hardware_pb2.CpuTopology(
            sockets=facts.topology.sockets,
            physical_cores=facts.topology.physical_cores,
            threads_per_core=facts.topology.threads_per_core,
            clusters=[
                hardware_pb2.CoreCluster(cores=each.cores, max_megahertz=each.max_megahertz)
                for each in facts.topology.clusters
            ],
        ),
        cpu_quota=facts.cpu_quota,
        threads=facts.threads,
        gpus=facts.gpus,
    )


def update_state_from_wire(state: device_pb2.UpdateState.ValueType) -> UpdateState:
    known = state in device_pb2.UpdateState.values()
    name = device_pb2.UpdateState.Name(state) if known else ""
    try:
        return UpdateState(name.removeprefix("UPDATE_STATE_").lower())
    except ValueError:
        raise InvalidInputError(
            f"{state} is not a state of an update", advice="Update this server before its agents."
        ) from None


def update_state_to_wire(state: UpdateState) -> device_pb2.UpdateState.ValueType:
    return device_pb2.UpdateState.Value(f"UPDATE_STATE_{state.upper()}")


def authorities_to_wire(authorities: Authorities) -> server_keys_pb2.Authorities:
    return server_keys_pb2.Authorities(
        current_pem=authorities.current,
        previous_pem=authorities.previous,
        new_with_old_pem=authorities.new_with_old,
        old_with_new_pem=authorities.old_with_new,
    )
