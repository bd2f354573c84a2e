"""Steps of the update machine that end in an error."""

from collections.abc import Awaitable, Callable

import pytest

from agent.update.job import UpdateJob
from agent.update.machine import Event, State
from agent.update.steps import Steps

Step = Callable[[UpdateJob], Awaitable[Event]]


def fails_in(states: set[State], patch: pytest.MonkeyPatch, *, before: bool) -> None:
    """Make the steps of these states fail, before or after their effects."""
    real = Steps.of

    def of(steps: Steps, state: State) -> Step:
        async def work(job: UpdateJob) -> Event:
            if state in states and before:
                raise OSError("as if the disk had failed")
            event = await real(steps, state)(job)
            if state in states:
                raise OSError("as if the disk had failed")
            return event

        return work

    patch.setattr(Steps, "of", of)
