"""Text of a device's selection for readers new to it."""

from collections.abc import Callable

import click
from flotilla.v1 import device_pb2, fleet_pb2, selection_pb2

from artifact.sizes import in_bytes
from controlplane.cli.output import MAX_FIELD, clean, enum_name, print_table


def print_explanation(found: fleet_pb2.ExplainDeviceResponse) -> None:
    """Print a summary, then per slot the candidates with their reasons, then the checks."""
    name = clean(found.device.name)
    attempt = _attempt(found)
    if not found.decisions:
        reported = "has not reported on a release"
        click.echo(clean(f"{name}: {attempt}" if attempt else f"{name} {reported}.", MAX_FIELD))
        return
    running = found.device.current_release
    verb = "runs" if running == found.release else f"runs {clean(running) or 'nothing'}; it tried"
    chosen = [
        f"{decision.chosen_variant} in slot {decision.slot}"
        for decision in found.decisions
        if decision.chosen_variant
    ]
    what = f" with {', '.join(chosen)}" if chosen else ", of which nothing fits"
    click.echo(f"{name} {verb} {clean(found.release)}{clean(what)}.")
    if attempt:
        click.echo(clean(attempt, MAX_FIELD))
    for decision in found.decisions:
        _print_decision(decision)
    if found.checks:
        click.echo()
        print_table(
            ("CHECK", "SLOT", "OUTCOME", "DETAIL"),
            [(one.name, one.slot, one.outcome, one.detail) for one in found.checks],
            empty="",
        )


def _attempt(found: fleet_pb2.ExplainDeviceResponse) -> str:
    """Describe a receipt that did not end with the release in service; empty for others."""
    outcome = enum_name("UpdateState", device_pb2.UpdateState.Name(found.outcome))
    if not found.generation or outcome == "committed":
        return ""
    why = ": ".join(part for part in (found.reason, found.detail) if part)
    return (
        f"Generation {found.generation} of {found.release or 'no release'} ended {outcome}: {why}"
    )


def _print_decision(decision: selection_pb2.SelectionDecision) -> None:
    click.echo()
    chosen = decision.chosen_variant or "nothing"
    click.echo(clean(f"{decision.slot}: {chosen} of {decision.model}, {decision.reason}", 1000))
    click.echo(
        clean(
            f"  ranked by {decision.objective.replace('_', ' ')}, "
            f"within {in_bytes(decision.memory_budget_bytes)} of memory"
        )
    )
    rate = (decision.rate_unit or "tokens/s").upper()
    print_table(
        (
            "VARIANT",
            "RUNTIME",
            "VERDICT",
            "MEMORY",
            rate,
            "J/TOKEN",
            "QUALITY",
            "PREDICTED BY",
            "WHY",
        ),
        [_row(one) for one in decision.candidates],
        empty="  No candidates.",
    )
    click.echo(
        "  ~ marks a prediction. Memory, speed and energy without it were measured on this device, "
        "in probation; quality by the publisher."
    )


def _row(one: selection_pb2.SelectionCandidate) -> tuple[str, ...]:
    return (
        one.variant,
        one.runtime,
        _verdict(one),
        _both(one.measured_memory_bytes, one.predicted_memory_bytes, in_bytes),
        _both(
            one.measured_tokens_per_second,
            one.predicted_tokens_per_second,
            lambda rate: f"{rate:.1f}",
        ),
        _both(
            one.measured_joules_per_token,
            one.predicted_joules_per_token,
            lambda joules: f"{joules:.3g}",
        ),
        one.quality or "unmeasured",
        one.prediction_source or "-",
        one.reason,
    )


def _verdict(one: selection_pb2.SelectionCandidate) -> str:
    """Describe the bucket of a candidate."""
    if one.bucket != "ranked":
        return {"excluded": "ruled out"}.get(one.bucket, one.bucket)
    return "not the best" if one.measured_tokens_per_second else "fits, not tried"


def _both(measured: float, predicted: float, show: Callable[[float], str]) -> str:
    """Format a measurement, a prediction marked as one, or both."""
    if measured and predicted:
        return f"{show(measured)} (~{show(predicted)})"
    if measured:
        return show(measured)
    return f"~{show(predicted)}" if predicted else "unmeasured"
