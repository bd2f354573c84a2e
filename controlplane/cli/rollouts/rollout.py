"""`flotilla rollout`: move devices to a release, in waves."""

from datetime import UTC, datetime
from pathlib import Path

import click
from flotilla.v1 import rollout_pb2, rollout_pb2_grpc

from controlplane.cli.app import GlobalOptions, RefusedError, pass_settings
from controlplane.cli.client import TIMEOUT_SECONDS, connect, every_page, request_id
from controlplane.cli.confirmation import confirm, confirmed, counted, listed
from controlplane.cli.exit_codes import ExitCode
from controlplane.cli.output import ago, message_to_json, note, print_json, print_table
from controlplane.cli.parameters import DURATION, limit_option
from controlplane.cli.rollouts.outcome import continuing, require_end
from controlplane.cli.rollouts.view import follow, print_rollout, progress, state_name
from controlplane.rollouts.machine import RolloutState
from controlplane.rollouts.strategy import MAX_STRATEGY_BYTES

rollout_argument = click.argument("rollout_id", metavar="ID")
reason_option = click.option(
    "--reason", default="", metavar="TEXT", help="Why; kept with the rollout and in the audit log."
)
wait_option = click.option(
    "--wait",
    is_flag=True,
    help="Stay until it ends or pauses; exit with 0 only if it ends as requested.",
)
timeout_option = click.option(
    "--timeout",
    type=DURATION,
    metavar="DURATION",
    help="Stop waiting after this, with exit code 7; the rollout continues.",
)


@click.group()
def rollout() -> None:
    """Move devices to a release, in waves."""


@rollout.command()
@click.argument("release", metavar="PUBLISHER/NAME@VERSION")
@click.option(
    "--to",
    "selector",
    metavar="SELECTOR",
    help="Which devices, such as 'site=lab,tier!=canary,gpu,!retired'.",
)
@click.option("--all", "every", is_flag=True, help="All active devices, instead of --to.")
@click.option(
    "--strategy",
    "strategy_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="YAML or JSON; without it 10 % first, then all, and back if more than 10 % fail.",
)
@wait_option
@timeout_option
@pass_settings
def start(
    settings: GlobalOptions,
    release: str,
    *,
    selector: str | None,
    every: bool,
    strategy_file: Path | None,
    wait: bool,
    timeout: float | None,
) -> None:
    """Move the devices that match SELECTOR to a release.

    \b
    Example:
      flotilla rollout start acme/assistant@2.0.0 --to site=lab --wait

    \b
    A strategy file:
      waves:
        - {name: canary, count: 5, soak_seconds: 600}   # one per hardware class at least
        - {name: half, percent: 50, soak_seconds: 3600} # share of all devices after it
        - {name: full, percent: 100}
      gates:
        failure: {max_failure_percent: 5, min_executed: 3}  # or max_failures: 2
      on_failure: rollback          # or pause, abort
      silent_timeout_seconds: 900   # go on without a device that says nothing for so long
      max_unavailable: 50           # at most so many devices changing at once
      max_retries: 1                # more tries for a device that was interrupted
    """
    if every == bool(selector):
        # `--to "$SITE"` with an unset variable must not mean the whole fleet.
        empty = "--to is empty, as with an unset variable. " if selector == "" else ""
        raise click.UsageError(f"{empty}Give either --to SELECTOR, or --all for every device.")
    strategy = _read_strategy(strategy_file) if strategy_file else ""
    with connect(settings) as channel:
        answer = rollout_pb2_grpc.RolloutServiceStub(channel).StartRollout(
            rollout_pb2.StartRolloutRequest(
                request_id=request_id(), release=release, selector=selector or "", strategy=strategy
            ),
            timeout=TIMEOUT_SECONDS,
        )
    started = answer.rollout
    count = sum(wave.targeted for wave in started.waves)
    note(f"Rollout {started.id}: {release} to {count} device{'' if count == 1 else 's'}.")
    _finish(settings, started, wait=wait, timeout=timeout, wanted=RolloutState.SUCCEEDED)


def _read_strategy(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(MAX_STRATEGY_BYTES + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise RefusedError(
            f"cannot read the strategy {path}: {error}",
            advice="It must be a small UTF-8 text.",
            exit_code=ExitCode.USAGE,
        ) from error


@rollout.command("list")
@limit_option
@pass_settings
def list_(settings: GlobalOptions, *, limit: int) -> None:
    """Show rollouts and their progress."""
    with connect(settings) as channel:
        stub = rollout_pb2_grpc.RolloutServiceStub(channel)
        request = rollout_pb2.ListRolloutsRequest()
        found = list(every_page(stub.ListRollouts, request, "rollouts", limit))
    if settings.json:
        print_json({"rollouts": [message_to_json(one) for one in found]})
        return
    now = datetime.now(UTC)
    print_table(
        ("ID", "RELEASE", "TO", "STATE", "STARTED", "WAVES", "WHY"),
        [
            (
                one.id,
                one.release,
                one.selector or "all",
                state_name(one),
                ago(one.created_at, now),
                progress(one),
                one.reason,
            )
            for one in found
        ],
        empty="No rollouts; `flotilla rollout start --help` shows how.",
    )


@rollout.command()
@rollout_argument
@pass_settings
def show(settings: GlobalOptions, rollout_id: str) -> None:
    """Show one rollout: its waves, and every device."""
    with connect(settings) as channel:
        found = rollout_pb2_grpc.RolloutServiceStub(channel).GetRollout(
            rollout_pb2.GetRolloutRequest(id=rollout_id), timeout=TIMEOUT_SECONDS
        )
    _print(settings, found.rollout)


@rollout.command()
@rollout_argument
@timeout_option
@pass_settings
def watch(settings: GlobalOptions, rollout_id: str, *, timeout: float | None) -> None:
    """Print a rollout at every change until it ends; with --json one document per line.

    The exit code is 0 only if the rollout succeeded.
    """
    last = None
    with continuing(rollout_id, exists=lambda: last is not None):
        for seen in follow(settings, rollout_id, timeout):
            if settings.json:
                print_json(message_to_json(seen))
            else:
                click.echo(f"{datetime.now(UTC):%H:%M:%S} {state_name(seen):12} {progress(seen)}")
            last = seen
    if last is None:
        return
    if not settings.json:
        click.echo()
        print_rollout(last)
    require_end(last, RolloutState.SUCCEEDED)


@rollout.command()
@rollout_argument
@reason_option
@pass_settings
def pause(settings: GlobalOptions, rollout_id: str, *, reason: str) -> None:
    """Stop assigning the release; devices that have the assignment continue."""
    with connect(settings) as channel:
        answer = rollout_pb2_grpc.RolloutServiceStub(channel).PauseRollout(
            rollout_pb2.PauseRolloutRequest(request_id=request_id(), id=rollout_id, reason=reason),
            timeout=TIMEOUT_SECONDS,
        )
    _print(settings, answer.rollout)


@rollout.command()
@rollout_argument
@pass_settings
def resume(settings: GlobalOptions, rollout_id: str) -> None:
    """Continue, and accept the failures so far, or the lack of data."""
    with connect(settings) as channel:
        answer = rollout_pb2_grpc.RolloutServiceStub(channel).ResumeRollout(
            rollout_pb2.ResumeRolloutRequest(request_id=request_id(), id=rollout_id),
            timeout=TIMEOUT_SECONDS,
        )
    _print(settings, answer.rollout)


@rollout.command()
@rollout_argument
@reason_option
@pass_settings
def abort(settings: GlobalOptions, rollout_id: str, *, reason: str) -> None:
    """End the rollout and leave every device on its present release."""
    with connect(settings) as channel:
        answer = rollout_pb2_grpc.RolloutServiceStub(channel).AbortRollout(
            rollout_pb2.AbortRolloutRequest(request_id=request_id(), id=rollout_id, reason=reason),
            timeout=TIMEOUT_SECONDS,
        )
    _print(settings, answer.rollout)


@rollout.command()
@rollout_argument
@reason_option
@wait_option
@timeout_option
@confirmed
@pass_settings
def rollback(
    settings: GlobalOptions,
    rollout_id: str,
    *,
    reason: str,
    wait: bool,
    timeout: float | None,
    yes: bool,
    dry_run: bool,
) -> None:
    """Return every device that the rollout changed to its previous release.

    Works while the rollout runs and after it ended. Devices that a later rollout moved stay.
    """
    with connect(settings) as channel:
        stub = rollout_pb2_grpc.RolloutServiceStub(channel)
        request = rollout_pb2.GetRolloutRequest(id=rollout_id)
        preview = _preview_rollback(stub.GetRollout(request, timeout=TIMEOUT_SECONDS).rollout)
        if not confirm(settings, preview, yes=yes, dry_run=dry_run):
            return
        answer = stub.RollbackRollout(
            rollout_pb2.RollbackRolloutRequest(
                request_id=request_id(), id=rollout_id, reason=reason
            ),
            timeout=TIMEOUT_SECONDS,
        )
    _finish(settings, answer.rollout, wait=wait, timeout=timeout, wanted=RolloutState.ROLLED_BACK)


def _preview_rollback(rollout: rollout_pb2.Rollout) -> list[str]:
    """Describe the devices that a rollback sends back; some may have moved on since."""
    reached = [one for one in rollout.devices if one.generation and not one.sent_back]
    if not reached:
        return [f"Rollout {rollout.id} has assigned {rollout.release} to no device."]
    by_release: dict[str, list[str]] = {}
    for one in reached:
        by_release.setdefault(one.previous_release or "no release", []).append(one.name)
    return [
        f"{counted(len(reached), 'device')} will leave {rollout.release} if they still have it:",
        *(f"  back to {release}: {listed(names)}" for release, names in sorted(by_release.items())),
    ]


def _finish(
    settings: GlobalOptions,
    answer: rollout_pb2.Rollout,
    *,
    wait: bool,
    timeout: float | None,
    wanted: RolloutState,
) -> None:
    """Wait if requested, print the rollout, and fail unless it ended in ``wanted``."""
    if not wait:
        _print(settings, answer)
        return
    with continuing(answer.id):
        last = _wait(settings, answer, timeout)
    _print(settings, last)
    require_end(last, wanted)


def _wait(
    settings: GlobalOptions, answer: rollout_pb2.Rollout, timeout: float | None
) -> rollout_pb2.Rollout:
    """Follow the rollout until it ends, or pauses for an operator's decision."""
    last, shown = answer, ""
    for seen in follow(settings, answer.id, timeout):
        last = seen
        line = f"{state_name(seen):12} {progress(seen)}"
        if line != shown:
            note(line)
            shown = line
        if seen.state == rollout_pb2.ROLLOUT_STATE_PAUSED:
            break
    return last


def _print(settings: GlobalOptions, seen: rollout_pb2.Rollout) -> None:
    if settings.json:
        print_json(message_to_json(seen))
    else:
        print_rollout(seen)
