"""Views of a rollout: its state, and following its changes."""

import math
import random
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

import click
import grpc
from flotilla.v1 import rollout_pb2, rollout_pb2_grpc

from artifact.sizes import in_bytes
from controlplane.cli.app import GlobalOptions, RefusedError
from controlplane.cli.client import connect
from controlplane.cli.exit_codes import ExitCode
from controlplane.cli.output import (
    ago,
    clean,
    duration,
    enum_name,
    note,
    print_fields,
    print_pairs,
    print_table,
)
from controlplane.rollouts.machine import MemberState, RolloutState

# A server that restarts is back within this time.
PATIENCE_SECONDS = 60.0
MAX_PAUSE_SECONDS = 5.0
MAX_RECEIPTS_NAMED = 5
LOST = frozenset((grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED))


def state_name(rollout: rollout_pb2.Rollout) -> str:
    return enum_name("RolloutState", rollout_pb2.RolloutState.Name(rollout.state))


def progress(rollout: rollout_pb2.Rollout) -> str:
    """Format every wave with its devices that succeeded."""
    return ", ".join(
        f"{wave.name} {_wave_state(wave)} {wave.succeeded}/{wave.targeted}"
        + (f" ({wave.failed} failed)" if wave.failed else "")
        for wave in rollout.waves
    )


def _wave_state(wave: rollout_pb2.Wave) -> str:
    return enum_name("WaveState", rollout_pb2.WaveState.Name(wave.state))


def follow(
    settings: GlobalOptions, rollout_id: str, timeout: float | None = None
) -> Iterator[rollout_pb2.Rollout]:
    """Yield the rollout now and at every change until it ends, across restarts of the server.

    Raises RefusedError with code TIMED_OUT after ``timeout`` seconds.
    """
    request = rollout_pb2.WatchRolloutRequest(id=rollout_id)
    ends_at = math.inf if timeout is None else time.monotonic() + timeout
    with connect(settings) as channel:
        stub = rollout_pb2_grpc.RolloutServiceStub(channel)
        heard_at: float | None = None
        attempt = 0
        while True:
            remaining = ends_at - time.monotonic()
            if remaining <= 0:
                raise RefusedError(
                    f"it did not end within {duration(timeout or 0)}", exit_code=ExitCode.TIMED_OUT
                )
            try:
                # The deadline of the call is that of the whole wait: a quiet stream ends with it.
                limit = None if timeout is None else remaining
                for answer in stub.WatchRollout(request, timeout=limit):
                    heard_at, attempt = time.monotonic(), 0
                    yield answer.rollout
                    if RolloutState(state_name(answer.rollout)).finished:
                        return
            except grpc.RpcError as error:
                if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED and timeout is not None:
                    continue
                # Fail if the server was never reached; once it was, it may be restarting.
                patient = heard_at is not None and time.monotonic() - heard_at < PATIENCE_SECONDS
                if error.code() not in LOST or not patient:
                    raise
            if attempt == 0:
                note("The server went away; waiting for it to come back.")
            attempt += 1
            pause = min(MAX_PAUSE_SECONDS, 0.2 * 2**attempt, max(0.0, ends_at - time.monotonic()))
            time.sleep(random.uniform(0, pause))  # noqa: S311 - jitter, not a secret


def print_rollout(rollout: rollout_pb2.Rollout) -> None:
    """Print the rollout, then its waves, then its devices."""
    now = datetime.now(UTC)
    print_fields(
        {
            "rollout": rollout.id,
            "release": rollout.release,
            "to": rollout.selector or "all devices",
            "state": state_name(rollout),
            "why": rollout.reason,
            "started": f"{ago(rollout.created_at, now)} by {rollout.created_by}",
            "changed": ago(rollout.updated_at, now),
        }
    )
    click.echo()
    print_table(
        ("WAVE", "STATE", "TARGETED", "REACHABLE", "REPORTED", "SUCCEEDED", "FAILED"),
        [
            (
                wave.name,
                _wave_state(wave),
                *(str(count) for count in (wave.targeted, wave.reachable, wave.reported)),
                *(str(count) for count in (wave.succeeded, wave.failed)),
            )
            for wave in rollout.waves
        ],
        empty="No waves.",
    )
    _print_reasons([(wave.name, wave.reason) for wave in rollout.waves])
    click.echo()
    print_table(
        ("DEVICE", "WAVE", "STATE", "BEFORE", "DOWNLOADED", "SWITCH"),
        [
            (
                device.name,
                rollout.waves[device.wave].name,
                device.state,
                device.previous_release or "nothing" if device.generation else "-",
                in_bytes(device.bytes_downloaded),
                f"{device.switch_seconds * 1000:.0f} ms" if device.switch_seconds else "-",
            )
            for device in rollout.devices
        ],
        empty="No devices.",
    )
    _print_reasons([(device.name, device.detail) for device in rollout.devices])
    commands = explain_commands(rollout)
    if commands:
        click.echo()
        click.echo("The receipts of devices that failed:")
    for command in commands:
        click.echo(clean(f"  {command}"))


def explain_commands(rollout: rollout_pb2.Rollout) -> list[str]:
    """Return the commands that show the receipts of devices on which the release failed."""
    commands = []
    for device in rollout.devices:
        if device.sent_back and device.detail:
            # The generation is now that of its way back.
            commands.append(f"flotilla device explain {device.name} --release {rollout.release}")
        elif device.state == MemberState.FAILED and device.generation:
            number = device.generation
            commands.append(f"flotilla device explain {device.name} --generation {number}")
    return commands[:MAX_RECEIPTS_NAMED]


def _print_reasons(reasons: Sequence[tuple[str, str]]) -> None:
    """Print reasons below the table, since they are too long for a column."""
    if any(reason for _, reason in reasons):
        click.echo()
        print_pairs(reasons)
