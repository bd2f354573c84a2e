"""Conversion between the agent's records and protobuf messages."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any, Final

import grpc.aio
from flotilla.v1 import (
    device_pb2,
    hardware_pb2,
    selection_pb2,
    server_keys_pb2,
    telemetry_window_pb2,
)
from google.protobuf.timestamp_pb2 import Timestamp

from agent.journal import Assignment, CheckResult, Receipt
from agent.selection import Candidate, Decision, Prior
from agent.selection.figures import CANDIDATE_FIGURES
from agent.telemetry import QueuedWindow
from agent.update.engine import Status
from agent.update.faults import is_device_fault
from agent.update.measurements import MAX_PRIORS
from artifact.device_facts import CpuTopology, DeviceFacts
from artifact.health import ReleaseHealth
from artifact.sketch import Sketch
from artifact.trust.statements import MAX_ROOTS, Authorities, DirectorMetadata
from artifact.window import FIGURES, LABELS, SKETCHES, Energy, Window

MAX_DETAIL_CHARACTERS: Final = 1000
MAX_NAME_CHARACTERS: Final = 256
MAX_METADATA_VERSIONS: Final = 64
# As in artifact.trust, whose import (python-tuf) would cost the idle daemon 14 MiB.
IMAGE_FLOORS: Final = "image/"
SIGNED_AT: Final = "signed_at"
# Above any real figure, in tokens per second as in joules per token.
MAX_FIGURE: Final = 1e9
MAX_RETRY_AFTER_SECONDS: Final = 600.0
# Trailing metadata of the control plane's refusals.
ADVICE_KEY: Final = "flotilla-advice"
RETRY_AFTER_KEY: Final = "flotilla-retry-after-ms"


def facts_to_wire(facts: DeviceFacts) -> hardware_pb2.HardwareFacts:
    """Convert hardware facts."""
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
        topology=_topology_to_wire(facts.topology),
        cpu_quota=facts.cpu_quota,
        threads=facts.threads,
        gpus=facts.gpus,
    )


def _topology_to_wire(topology: CpuTopology) -> hardware_pb2.CpuTopology:
    return hardware_pb2.CpuTopology(
        sockets=topology.sockets,
        physical_cores=topology.physical_cores,
        threads_per_core=topology.threads_per_core,
        clusters=[
            hardware_pb2.CoreCluster(cores=each.cores, max_megahertz=each.max_megahertz)
            for each in topology.clusters
        ],
    )


def assignment_from_wire(message: device_pb2.Assignment) -> Assignment:
    """Convert an assignment; at most MAX_ROOTS of its roots are kept."""
    signed = message.director
    return Assignment(
        generation=message.generation,
        release=message.release,
        manifest_sha256=message.manifest_sha256,
        director=DirectorMetadata(
            signed.timestamp, signed.snapshot, signed.targets, tuple(signed.roots[:MAX_ROOTS])
        ),
    )


def priors_from_wire(
    found: Sequence[device_pb2.ClassMeasurement],
) -> list[tuple[str, str, Prior]]:
    """Convert class measurements to (model version, variant, figures), without invalid ones."""
    return [
        (
            one.model,
            one.variant,
            Prior(
                tokens_per_second=one.tokens_per_second,
                joules_per_token=one.joules_per_token if _is_valid(one.joules_per_token) else None,
                memory_bytes=one.memory_bytes,
                devices=one.devices,
            ),
        )
        for one in found[:MAX_PRIORS]
        if _is_valid(one.tokens_per_second)
        and max(len(one.model), len(one.variant)) <= MAX_NAME_CHARACTERS
    ]


def _is_valid(figure: float) -> bool:
    return 0 < figure < MAX_FIGURE


def authorities_from_wire(message: server_keys_pb2.Authorities) -> Authorities:
    """Convert the certificate authorities that the server lists."""
    return Authorities(
        current=message.current_pem,
        previous=message.previous_pem,
        new_with_old=message.new_with_old_pem,
        old_with_new=message.old_with_new_pem,
    )


def state_to_wire(state: str) -> device_pb2.UpdateState.ValueType:
    """Convert the name of a state of agent.update.machine."""
    return device_pb2.UpdateState.Value(f"UPDATE_STATE_{state.upper()}")


def metadata_versions(floors: Mapping[str, int]) -> dict[str, int]:
    """Select the versions of the image repository's roles from the journal's floors."""
    versions = {
        name.removeprefix(IMAGE_FLOORS): version
        for name, version in sorted(floors.items())
        if name.startswith(IMAGE_FLOORS)
    }
    # Other floors of the repository: the lowest releases by name, and the time of signatures.
    roles = [name for name in versions if "/" not in name and not name.startswith(SIGNED_AT)]
    return {name: versions[name] for name in roles[:MAX_METADATA_VERSIONS]}


def status_to_wire(
    status: Status, health: ReleaseHealth, warnings: Sequence[str] = ()
) -> device_pb2.UpdateStatus:
    """Convert the state of the update, the live release's health and the device's warnings."""
    return device_pb2.UpdateStatus(
        generation=status.generation,
        state=state_to_wire(status.state),
        detail=status.detail[:MAX_DETAIL_CHARACTERS],
        bytes_done=status.bytes_done,
        bytes_total=status.bytes_total,
        current_release=status.current_release,
        last_good_release=status.last_good_release,
        health=device_pb2.ReleaseHealth(
            release=health.release,
            slots=[device_pb2.SlotHealth(**asdict(slot)) for slot in health.slots],
        ),
        warnings=[text[:MAX_DETAIL_CHARACTERS] for text in warnings],
        device_faults=status.device_faults,
    )


def receipt_to_wire(receipt: Receipt) -> device_pb2.Receipt:
    """Convert a receipt; long texts are cut."""
    return device_pb2.Receipt(
        generation=receipt.generation,
        release=receipt.release,
        outcome=state_to_wire(receipt.outcome),
        reason=receipt.reason,
        detail=receipt.detail[:MAX_DETAIL_CHARACTERS],
        bytes_downloaded=receipt.received_bytes,
        switch_seconds=receipt.switch_seconds,
        decisions=[decision_to_wire(decision) for decision in receipt.decisions],
        checks=[_check_to_wire(check) for check in receipt.checks],
        finished_at=_timestamp(receipt.finished_at),
        current_release=receipt.current_release,
        last_good_release=receipt.last_good_release,
        fault=_fault_to_wire(receipt.reason),
        device_faults=receipt.device_faults,
    )


def _fault_to_wire(reason: str) -> device_pb2.Fault.ValueType:
    if not reason:
        return device_pb2.FAULT_UNSPECIFIED
    return device_pb2.FAULT_DEVICE if is_device_fault(reason) else device_pb2.FAULT_RELEASE


def _check_to_wire(check: CheckResult) -> device_pb2.ProbationCheck:
    return device_pb2.ProbationCheck(
        slot=check.slot,
        name=check.name,
        outcome=check.outcome,
        detail=check.detail[:MAX_DETAIL_CHARACTERS],
    )


def decision_to_wire(decision: Decision) -> selection_pb2.SelectionDecision:
    """Convert the decision which variant a slot runs."""
    return selection_pb2.SelectionDecision(
        slot=decision.slot,
        model=decision.model,
        chosen_variant=decision.chosen_variant,
        objective=decision.objective.value,
        reason=decision.reason[:MAX_DETAIL_CHARACTERS],
        memory_budget_bytes=decision.memory_budget_bytes,
        candidates=[_candidate_to_wire(candidate) for candidate in decision.candidates],
        rate_unit=decision.rate_unit,
    )


def _candidate_to_wire(candidate: Candidate) -> selection_pb2.SelectionCandidate:
    figures: dict[str, Any] = {name: getattr(candidate, name) for name in CANDIDATE_FIGURES}
    return selection_pb2.SelectionCandidate(
        variant=candidate.variant,
        runtime=candidate.runtime,
        quantization=candidate.quantization,
        bucket=candidate.bucket,
        reason=candidate.reason[:MAX_DETAIL_CHARACTERS],
        quality=candidate.quality,
        prediction_source=candidate.source,
        context_length=candidate.context_length,
        **figures,
    )


def window_to_wire(window: Window) -> telemetry_window_pb2.TelemetryWindow:
    """Convert a telemetry window; the queue assigns its sequence later."""
    same_names: dict[str, Any] = {
        **{name: getattr(window, name) for name in (*LABELS, *FIGURES)},
        **{name: _sketch_to_wire(getattr(window, name)) for name in SKETCHES},
    }
    return telemetry_window_pb2.TelemetryWindow(
        started_at=_timestamp(window.started_at),
        energy=None if window.energy is None else _energy_to_wire(window.energy),
        **same_names,
    )


def queued_to_wire(queued: QueuedWindow) -> telemetry_window_pb2.TelemetryWindow:
    """Decode a queued window and set its sequence; raise DecodeError if it is damaged."""
    window = telemetry_window_pb2.TelemetryWindow.FromString(queued.window)
    window.sequence = queued.sequence
    return window


def _sketch_to_wire(sketch: Sketch) -> telemetry_window_pb2.Sketch:
    return telemetry_window_pb2.Sketch(
        relative_accuracy=sketch.relative_accuracy,
        bins=sketch.bins,
        zeros=sketch.zeros,
        sum=sketch.sum,
    )


def _energy_to_wire(energy: Energy) -> telemetry_window_pb2.Energy:
    return telemetry_window_pb2.Energy(
        joules=energy.joules,
        source=energy.provenance.source,
        scope=energy.provenance.scope,
        method=energy.provenance.method,
    )


def _timestamp(moment: datetime) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromDatetime(moment)
    return timestamp


def refusal_text(error: grpc.aio.AioRpcError) -> str:
    """Format an error's status and message, escaped and cut."""
    details = ascii(error.details() or "")[1:-1][:MAX_DETAIL_CHARACTERS]
    return f"{error.code().name}: {details}"


def trailing(error: grpc.aio.AioRpcError, key: str) -> str:
    """Read a text from an error's trailing metadata; empty if it is absent."""
    for name, value in error.trailing_metadata() or ():
        if name == key and isinstance(value, str):
            return value[:MAX_DETAIL_CHARACTERS]
    return ""


def retry_after_seconds(error: grpc.aio.AioRpcError) -> float:
    """Return the wait that the server asks for, at most MAX_RETRY_AFTER_SECONDS; 0 if absent."""
    text = trailing(error, RETRY_AFTER_KEY)
    return min(int(text) / 1000, MAX_RETRY_AFTER_SECONDS) if text.isdecimal() else 0.0
