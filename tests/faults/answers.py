"""Expectations of the fault tests: chains of states, and a verified release that serves."""

import copy
import hashlib
from pathlib import Path

from agent.journal import Journal
from agent.update.machine import State
from runtimes.base import Sampling
from tests.agent.box import Life, World, eventually

ONE, TWO = "acme/assistant@1", "acme/assistant@2"
WORKING = [
    State.VERIFYING,
    State.PLANNING,
    State.FETCHING,
    State.STAGING,
    State.PROBATION,
    State.SWITCHING,
    State.SOAKING,
]
HAPPY = [*WORKING, State.COMMITTED, State.IDLE]
UNDONE = [State.ROLLING_BACK, State.ROLLED_BACK, State.IDLE]
# The chain of states after a restart in each stored state.
AFTER_RESTART = {
    State.IDLE: [],
    State.VERIFYING: HAPPY,
    State.PLANNING: HAPPY[1:],
    State.FETCHING: HAPPY[2:],
    State.STAGING: HAPPY[3:],
    State.PROBATION: HAPPY[3:],
    State.SWITCHING: UNDONE,
    State.SOAKING: UNDONE,
    State.ROLLING_BACK: UNDONE,
    State.COMMITTED: [State.IDLE],
    State.REJECTED: [State.IDLE],
    State.ROLLED_BACK: [State.IDLE],
    State.INCONSISTENT: [State.IDLE],
}


async def answer(life: Life) -> str:
    """Return the text that local programs receive from the route."""
    async with life.serving.lease("assistant") as worker:
        batches = worker.generate("hi", None, Sampling(max_tokens=17))
        return "".join([piece.text async for batch in batches for piece in batch])


async def check_serves(life: Life, reference: str) -> None:
    """Check that this release answers, is current, and that all its files have their digests."""
    assert life.serves == reference
    assert life.pointers[:2] == ("", reference)
    assert await answer(life) == f"This is release {reference.rpartition('@')[2]}"
    for path in (life.world.root / "store" / "files").iterdir():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name


async def resume(world: World, root: Path) -> tuple[State, list[State]]:
    """Restart the box at ``root`` and finish the second update; a verified release must serve.

    Returns the stored state and the following chain.
    """
    box = copy.copy(world)
    box.root = root
    journal = Journal(root / "journal.db")
    update = journal.update()
    journal.close()
    assert update is not None
    async with Life(box) as life:
        # An idle box is idle at once, while its release still loads.
        await eventually(lambda: life.serves)
        await life.until(State.IDLE, update.assignment.generation)
        chain = [State(each) for each in life.chain]
        undone = update.reason or UNDONE[0] in chain
        await check_serves(life, ONE if undone or update.assignment.generation == 1 else TWO)
        receipt = life.journal.receipts()[-1]
        assert receipt.current_release == life.serves
    return State(update.state), chain
