"""Ends of a rollout as exit codes, and interrupted waits for them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from flotilla.v1 import rollout_pb2

from controlplane.cli.app import RefusedError
from controlplane.cli.exit_codes import ExitCode
from controlplane.cli.rollouts.view import explain_commands, state_name
from controlplane.rollouts.machine import MemberState, RolloutState

MAX_NAMED = 5
# The wait ended, and the rollout did not.
_UNDECIDED = frozenset((ExitCode.UNREACHABLE, ExitCode.TIMED_OUT))


def require_end(rollout: rollout_pb2.Rollout, wanted: RolloutState) -> None:
    """Raise RefusedError with code FAILED unless the rollout ended in ``wanted``, completely."""
    state = RolloutState(state_name(rollout))
    if state is not wanted:
        verb = "is" if state is RolloutState.PAUSED else "ended"
        raise RefusedError(
            f"rollout {rollout.id} {verb} {state}: {rollout.reason or 'no reason was given'}",
            advice=_next_step(rollout),
            exit_code=ExitCode.FAILED,
        )
    remaining = _not_back(rollout) if state is RolloutState.ROLLED_BACK else []
    if remaining:
        shown = ", ".join(remaining[:MAX_NAMED])
        more = f" and {len(remaining) - MAX_NAMED} more" if len(remaining) > MAX_NAMED else ""
        raise RefusedError(
            f"rollout {rollout.id} is rolled back, but not on every device: {shown}{more}",
            advice="Devices that were away go back when they connect; `flotilla rollout show "
            f"{rollout.id}` names the reason of each.",
            exit_code=ExitCode.FAILED,
        )


def _not_back(rollout: rollout_pb2.Rollout) -> list[str]:
    """Return the devices that should run their previous release again and do not."""
    return [
        f"{one.name} ({'could not go back' if one.state == MemberState.FAILED else 'not yet back'})"
        for one in rollout.devices
        if one.sent_back and one.state != MemberState.REVERTED
    ]


def _next_step(rollout: rollout_pb2.Rollout) -> str:
    """Return a command that shows the receipt of a device that failed, or the devices."""
    for command in explain_commands(rollout):
        return f"`{command}` shows why; `flotilla rollout show {rollout.id}` lists all devices."
    return f"`flotilla rollout show {rollout.id}` lists the devices."


@contextmanager
def continuing(rollout_id: str, exists: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """Add to an error that ends a wait that the rollout itself continues, if it ``exists``."""
    advice = (
        f"`flotilla rollout watch {rollout_id}` follows it; `flotilla rollout pause`, `abort` and "
        "`rollback` steer it."
    )
    try:
        yield
    except KeyboardInterrupt as error:
        raise RefusedError(
            f"interrupted; rollout {rollout_id} continues on the server",
            advice=advice,
            exit_code=ExitCode.INTERRUPTED,
        ) from error
    except RefusedError as error:
        if error.code not in _UNDECIDED or not exists():
            raise
        raise RefusedError(
            f"{error.message}; rollout {rollout_id} continues on the server",
            advice=advice,
            exit_code=error.code,
        ) from error
