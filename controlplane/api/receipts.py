"""Conversion of receipts and their decisions between wire and store."""

from typing import Final, Literal

from flotilla.v1 import device_pb2, selection_pb2
from google.protobuf.message import DecodeError

from controlplane.api.translate import (
    count,
    finite,
    moment,
    timestamp,
    update_state_from_wire,
    update_state_to_wire,
    word,
)
from controlplane.errors import InvalidInputError
from controlplane.store.receipts import CandidateRecord, DecisionRecord, ProbationCheck, Receipt

MAX_RECEIPT_BYTES: Final = 1 << 20
MAX_DETAIL_CHARACTERS: Final = 4096
MAX_DECISIONS: Final = 32
MAX_CANDIDATES: Final = 64
MAX_CHECKS: Final = 256

_Optional = Literal[
    "measured_joules_per_token",
    "predicted_joules_per_token",
    "predicted_ttft_seconds",
    "measured_ttft_seconds",
]


def receipt_from_wire(signed: bytes) -> Receipt:
    """Decode a receipt from the signed bytes; raise InvalidInputError if malformed."""
    if len(signed) > MAX_RECEIPT_BYTES:
        raise InvalidInputError(
            f"a receipt of {len(signed)} bytes is more than {MAX_RECEIPT_BYTES}",
            advice="Update the agent.",
        )
    try:
        receipt = device_pb2.Receipt.FromString(signed)
    except DecodeError as error:
        raise InvalidInputError("the receipt cannot be read", advice="Update the agent.") from error
    return Receipt(
        generation=count(receipt.generation, "generation"),
        release=word(receipt.release),
        outcome=update_state_from_wire(receipt.outcome),
        reason=word(receipt.reason)[:128],
        detail=detail(receipt.detail),
        bytes_downloaded=count(receipt.bytes_downloaded, "bytes_downloaded"),
        switch_seconds=finite(receipt.switch_seconds, "switch_seconds"),
        decisions=tuple(_decision(one) for one in receipt.decisions[:MAX_DECISIONS]),
        checks=tuple(
            ProbationCheck(
                slot=word(check.slot),
                name=word(check.name),
                outcome=word(check.outcome),
                detail=detail(check.detail),
            )
            for check in receipt.checks[:MAX_CHECKS]
        ),
        finished_at=moment(receipt.finished_at),
        current_release=word(receipt.current_release),
        last_good_release=word(receipt.last_good_release),
    )


def detail(text: str) -> str:
    """Cut a device's free text to the stored length."""
    return text.replace("\x00", "")[:MAX_DETAIL_CHARACTERS]


def _decision(decision: selection_pb2.SelectionDecision) -> DecisionRecord:
    return DecisionRecord(
        slot=word(decision.slot),
        model=word(decision.model),
        chosen_variant=word(decision.chosen_variant),
        objective=word(decision.objective),
        reason=detail(decision.reason),
        memory_budget_bytes=count(decision.memory_budget_bytes, "memory_budget_bytes"),
        candidates=tuple(_candidate(one) for one in decision.candidates[:MAX_CANDIDATES]),
        rate_unit=word(decision.rate_unit),
    )


def _candidate(candidate: selection_pb2.SelectionCandidate) -> CandidateRecord:
    return CandidateRecord(
        variant=word(candidate.variant),
        runtime=word(candidate.runtime),
        quantization=word(candidate.quantization),
        bucket=word(candidate.bucket),
        reason=detail(candidate.reason),
        predicted_memory_bytes=count(candidate.predicted_memory_bytes, "predicted memory"),
        measured_memory_bytes=count(candidate.measured_memory_bytes, "measured memory"),
        predicted_tokens_per_second=finite(candidate.predicted_tokens_per_second, "tokens/s"),
        measured_tokens_per_second=finite(candidate.measured_tokens_per_second, "tokens/s"),
        measured_joules_per_token=_optional(candidate, "measured_joules_per_token"),
        quality=word(candidate.quality),
        prediction_source=word(candidate.prediction_source),
        predicted_joules_per_token=_optional(candidate, "predicted_joules_per_token"),
        predicted_ttft_seconds=_optional(candidate, "predicted_ttft_seconds"),
        measured_ttft_seconds=_optional(candidate, "measured_ttft_seconds"),
        context_length=candidate.context_length,
    )


def _optional(candidate: selection_pb2.SelectionCandidate, field: _Optional) -> float | None:
    return finite(getattr(candidate, field), field) if candidate.HasField(field) else None


def receipt_to_wire(receipt: Receipt) -> device_pb2.Receipt:
    return device_pb2.Receipt(
        generation=receipt.generation,
        release=receipt.release,
        outcome=update_state_to_wire(receipt.outcome),
        reason=receipt.reason,
        detail=receipt.detail,
        bytes_downloaded=receipt.bytes_downloaded,
        switch_seconds=receipt.switch_seconds,
        decisions=[decision_to_wire(decision) for decision in receipt.decisions],
        checks=[check_to_wire(check) for check in receipt.checks],
        finished_at=timestamp(receipt.finished_at),
        current_release=receipt.current_release,
        last_good_release=receipt.last_good_release,
    )


def check_to_wire(check: ProbationCheck) -> device_pb2.ProbationCheck:
    return device_pb2.ProbationCheck(
        slot=check.slot, name=check.name, outcome=check.outcome, detail=check.detail
    )


def decision_to_wire(decision: DecisionRecord) -> selection_pb2.SelectionDecision:
    return selection_pb2.SelectionDecision(
        slot=decision.slot,
        model=decision.model,
        chosen_variant=decision.chosen_variant,
        objective=decision.objective,
        reason=decision.reason,
        memory_budget_bytes=decision.memory_budget_bytes,
        candidates=[
            selection_pb2.SelectionCandidate(
                variant=one.variant,
                runtime=one.runtime,
                quantization=one.quantization,
                bucket=one.bucket,
                reason=one.reason,
                predicted_memory_bytes=one.predicted_memory_bytes,
                measured_memory_bytes=one.measured_memory_bytes,
                predicted_tokens_per_second=one.predicted_tokens_per_second,
                measured_tokens_per_second=one.measured_tokens_per_second,
                measured_joules_per_token=one.measured_joules_per_token,
                quality=one.quality,
                prediction_source=one.prediction_source,
                predicted_joules_per_token=one.predicted_joules_per_token,
                predicted_ttft_seconds=one.predicted_ttft_seconds,
                measured_ttft_seconds=one.measured_ttft_seconds,
                context_length=one.context_length,
            )
            for one in decision.candidates
        ],
        rate_unit=decision.rate_unit,
    )
