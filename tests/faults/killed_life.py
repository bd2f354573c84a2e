"""``python -m tests.faults.killed_life ROOT STATE``: an agent that is killed during a state.

It completes the effects of the state and kills itself before the next state is stored; in an
outcome, which has no effects, as soon as it is stored. The kernel ends its workers with it.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from agent.update.job import StepFailedError, UpdateJob
from agent.update.machine import Event, State
from agent.update.steps import Steps
from tests.agent.box import Life, World

Step = Callable[[UpdateJob], Awaitable[Event]]
real_step, real_clear = Steps.of, Steps.clear_store
# The state whose step must fail to reach each outcome.
FAILING = {
    State.REJECTED: {State.PROBATION},
    State.ROLLING_BACK: {State.SOAKING},
    State.ROLLED_BACK: {State.SOAKING},
    State.INCONSISTENT: {State.SOAKING, State.ROLLING_BACK},
}


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def dies_in(victim: State) -> Callable[[Steps, State], Step]:
    def of(steps: Steps, state: State) -> Step:
        async def work(job: UpdateJob) -> Event:
            event = await real_step(steps, state)(job)
            if state is victim:
                die()
            if state in FAILING.get(victim, ()):
                raise StepFailedError("crashed_in_soak", "as if its worker had crashed")
            return event

        return work

    return of


async def clear_and_die(steps: Steps) -> int:
    await real_clear(steps)
    die()
    return 0


async def main(root: Path, victim: State) -> None:
    Steps.of = dies_in(victim)  # type: ignore[method-assign, assignment]
    if victim in {State.COMMITTED, State.REJECTED}:
        Steps.clear_store = clear_and_die  # type: ignore[method-assign, assignment]
    world = World(root)
    async with Life(world) as life:
        if victim in {State.ROLLED_BACK, State.INCONSISTENT}:
            record = life.journal.record

            def record_and_die(**changes: Any) -> None:
                record(**changes)
                if changes["update"].state == victim:
                    die()

            life.journal.record = record_and_die  # type: ignore[method-assign]
        await life.do(world.publish("2"))
        if victim is State.IDLE:
            die()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), State(sys.argv[2])))
