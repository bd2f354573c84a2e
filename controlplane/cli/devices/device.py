"""`flotilla device`: enrolled devices, and the reasons for what they run."""

from datetime import UTC, datetime

import click
from flotilla.v1 import device_pb2, fleet_pb2, fleet_pb2_grpc

from artifact.sizes import in_bytes
from controlplane.cli.app import GlobalOptions, pass_settings
from controlplane.cli.client import MAX_LISTED, TIMEOUT_SECONDS, connect, every_page, request_id
from controlplane.cli.confirmation import confirm, confirmed
from controlplane.cli.devices.explanation import print_explanation
from controlplane.cli.output import (
    ago,
    enum_name,
    message_to_json,
    print_fields,
    print_json,
    print_table,
)
from controlplane.cli.parameters import LABEL, REFERENCE

REASON = click.option(
    "--reason", default="", help="Why; kept with the device and in the audit log."
)


@click.group()
def device() -> None:
    """Enrolled devices, and the reasons for what they run."""


@device.command("list")
@click.option(
    "--to",
    "--selector",
    "selector",
    default="",
    metavar="SELECTOR",
    help="Only devices whose labels match, such as 'site=lab,tier!=canary,gpu,!retired'.",
)
@pass_settings
def list_(settings: GlobalOptions, *, selector: str) -> None:
    """Show the devices, their connections and their releases.

    \b
    Example:
      flotilla device list --to 'site in (lab,attic),gpu'
    """
    with connect(settings) as channel:
        stub = fleet_pb2_grpc.FleetServiceStub(channel)
        request = fleet_pb2.ListDevicesRequest(selector=selector)
        found = list(every_page(stub.ListDevices, request, "devices", MAX_LISTED))
    if settings.json:
        print_json({"devices": [message_to_json(one) for one in found]})
        return
    now = datetime.now(UTC)
    print_table(
        ("NAME", "STATE", "CONNECTED", "RELEASE", "UPDATE", "VARIANTS", "LABELS"),
        [
            (
                one.name,
                one.state,
                "yes" if one.connected else f"seen {ago(one.last_seen_at, now)}",
                one.current_release or "nothing",
                _update(one),
                _pairs(one.variants.items()),
                _pairs(one.labels.items()),
            )
            for one in found
        ],
        empty="No devices match." if selector else "No devices; see `flotilla token create`.",
    )


@device.command()
@click.argument("name")
@pass_settings
def show(settings: GlobalOptions, name: str) -> None:
    """Show one device, by name or id: its hardware, its state, its latest receipts."""
    with connect(settings) as channel:
        found = fleet_pb2_grpc.FleetServiceStub(channel).GetDevice(
            fleet_pb2.GetDeviceRequest(device=name), timeout=TIMEOUT_SECONDS
        )
    if settings.json:
        print_json(message_to_json(found))
        return
    _print_device(found.device, datetime.now(UTC))
    click.echo()
    print_table(
        ("GENERATION", "RELEASE", "OUTCOME", "DOWNLOADED", "SWITCH", "WHY"),
        [
            (
                str(one.generation),
                one.release or "nothing",
                _state_name(one.outcome),
                in_bytes(one.bytes_downloaded),
                f"{one.switch_seconds * 1000:.0f} ms" if one.switch_seconds else "-",
                ": ".join(part for part in (one.reason, one.detail) if part),
            )
            for one in found.receipts
        ],
        empty="No receipts yet: it was given nothing, or has not reported.",
    )


@device.command()
@click.argument("name")
@click.option(
    "--release",
    "reference",
    type=REFERENCE,
    default="",
    metavar="PUBLISHER/NAME@VERSION",
    help="Explain the newest attempt at this release; by default the release that serves.",
)
@click.option(
    "--generation",
    type=click.IntRange(1, (1 << 63) - 1),
    metavar="NUMBER",
    help="Explain the attempt of this generation; `device show` and `rollout show` list them.",
)
@pass_settings
def explain(settings: GlobalOptions, name: str, *, reference: str, generation: int | None) -> None:
    """Explain why a device runs its variants, or why it rejected a release.

    Every variant of the release is listed with the reason for or against it, and then what the
    chosen ones had to prove.
    """
    with connect(settings) as channel:
        found = fleet_pb2_grpc.FleetServiceStub(channel).ExplainDevice(
            fleet_pb2.ExplainDeviceRequest(
                device=name, release=reference, generation=generation or 0
            ),
            timeout=TIMEOUT_SECONDS,
        )
    if settings.json:
        print_json(message_to_json(found))
        return
    print_explanation(found)


@device.command()
@click.argument("name")
@click.argument("labels", nargs=-1, metavar="[KEY=VALUE]...", type=LABEL)
@click.option("--remove", multiple=True, metavar="KEY", help="Take this label off. Repeatable.")
@pass_settings
def label(
    settings: GlobalOptions,
    name: str,
    labels: tuple[tuple[str, str], ...],
    *,
    remove: tuple[str, ...],
) -> None:
    """Set and remove labels of a device.

    \b
    Example:
      flotilla device label lab-1 tier=canary rack=a2 --remove spare
    """
    if not labels and not remove:
        raise click.UsageError("Give a KEY=VALUE to set, or --remove KEY.")
    with connect(settings) as channel:
        changed = fleet_pb2_grpc.FleetServiceStub(channel).UpdateDeviceLabels(
            fleet_pb2.UpdateDeviceLabelsRequest(
                request_id=request_id(), device=name, set=dict(labels), remove=remove
            ),
            timeout=TIMEOUT_SECONDS,
        )
    if settings.json:
        print_json(message_to_json(changed.device))
        return
    shown = _pairs(changed.device.labels.items()) or "no labels"
    click.echo(f"{changed.device.name}: {shown}")


@device.command()
@click.argument("name")
@REASON
@pass_settings
def quarantine(settings: GlobalOptions, name: str, *, reason: str) -> None:
    """Disconnect a suspicious device until it is released; its models keep running."""
    _set_state(settings, name, "quarantined", reason)


@device.command()
@click.argument("name")
@REASON
@pass_settings
def release(settings: GlobalOptions, name: str, *, reason: str) -> None:
    """Readmit a quarantined or banned device."""
    _set_state(settings, name, "active", reason)


@device.command()
@click.argument("name")
@REASON
@confirmed
@pass_settings
def ban(settings: GlobalOptions, name: str, *, reason: str, yes: bool, dry_run: bool) -> None:
    """Disconnect a hostile device for good; its key and its name cannot enrol again."""
    preview = _preview(settings, name, "is cut off; its key and its name cannot enrol again")
    if confirm(settings, preview, yes=yes, dry_run=dry_run):
        _set_state(settings, name, "banned", reason)


@device.command()
@click.argument("name")
@REASON
@confirmed
@pass_settings
def retire(settings: GlobalOptions, name: str, *, reason: str, yes: bool, dry_run: bool) -> None:
    """Remove a device for good; its name becomes free for another."""
    preview = _preview(settings, name, "is removed for good; to come back it must enrol anew")
    if confirm(settings, preview, yes=yes, dry_run=dry_run):
        _set_state(settings, name, "retired", reason)


def _preview(settings: GlobalOptions, name: str, effect: str) -> list[str]:
    """Describe a device and the effect on it."""
    with connect(settings) as channel:
        one = (
            fleet_pb2_grpc.FleetServiceStub(channel)
            .GetDevice(fleet_pb2.GetDeviceRequest(device=name), timeout=TIMEOUT_SECONDS)
            .device
        )
    seen = "connected" if one.connected else f"last seen {ago(one.last_seen_at, datetime.now(UTC))}"
    runs = one.current_release or "nothing"
    return [f"The device {one.name} (id {one.id}, {one.state}, {seen}, runs {runs}) {effect}."]


def _set_state(settings: GlobalOptions, name: str, state: str, reason: str) -> None:
    with connect(settings) as channel:
        changed = fleet_pb2_grpc.FleetServiceStub(channel).SetDeviceState(
            fleet_pb2.SetDeviceStateRequest(
                request_id=request_id(), device=name, state=state, reason=reason
            ),
            timeout=TIMEOUT_SECONDS,
        )
    if settings.json:
        print_json(message_to_json(changed.device))
        return
    click.echo(f"{changed.device.name} is {changed.device.state}")


def _health(one: fleet_pb2.Device, now: datetime) -> str:
    """Describe the newest health report; empty if there is none."""
    if not one.HasField("health"):
        return ""
    slots = []
    for slot in one.health.slots:
        parts = ["ready" if slot.ready else "not ready"]
        if slot.worker_restarts:
            parts.append(f"{slot.worker_restarts} worker restarts")
        if slot.requests:
            parts.append(f"{slot.errors} of {slot.requests} requests failed")
        slots.append(f"{slot.slot} {', '.join(parts)}")
    return f"{'; '.join(slots) or 'serves nothing'} ({ago(one.health_at, now)})"


def _print_device(one: fleet_pb2.Device, now: datetime) -> None:
    facts = one.facts
    seen = "connected" if one.connected else f"last seen {ago(one.last_seen_at, now)}"
    accelerators = ", ".join(facts.accelerators)
    print_fields(
        {
            "name": one.name,
            "id": one.id,
            "state": f"{one.state}, {seen}",
            "because": one.state_reason,
            "labels": _pairs(one.labels.items()),
            "runs": one.current_release or "nothing",
            "health": _health(one, now),
            "variants": _pairs(one.variants.items()),
            "falls back to": one.last_good_release,
            "assigned": f"{one.assigned_release or 'nothing'} (generation "
            f"{one.assigned_generation})",
            "update": _update(one),
            "hardware": f"{facts.cpu_model or facts.architecture}, {facts.cores} cores, "
            f"{in_bytes(facts.memory_bytes)}{', ' + accelerators if accelerators else ''}",
            "model memory": in_bytes(facts.model_memory_bytes),
            "runtimes": _pairs(facts.runtimes.items()),
            "hardware class": one.hardware_class,
            "agent": one.agent_version,
            "certificate": f"expires {ago(one.certificate_expires_at, now)}",
        }
    )


def _update(one: fleet_pb2.Device) -> str:
    state = _state_name(one.update_state) or "idle"
    return f"{state}: {one.update_detail}" if one.update_detail else state


def _state_name(state: device_pb2.UpdateState.ValueType) -> str:
    return enum_name("UpdateState", device_pb2.UpdateState.Name(state))


def _pairs(items: object) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted(items))  # type: ignore[call-overload]
