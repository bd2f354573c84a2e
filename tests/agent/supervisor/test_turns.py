"""The order in which requests are admitted to a worker."""

import asyncio

from agent.supervisor.turns import Turn, Turns


class Visits:
    """Requests that hold a place until they are ended by name."""

    def __init__(self, places: int) -> None:
        self.turns = Turns(places)
        self.inside: list[str] = []
        self._ends: dict[str, asyncio.Event] = {}
        self._turns: dict[str, Turn] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def come(self, name: str, *, alone: bool = False) -> None:
        self._ends[name] = asyncio.Event()
        self._tasks[name] = asyncio.create_task(self._visit(name, alone=alone))
        await settle()

    async def go(self, name: str) -> None:
        self._ends[name].set()
        await settle()

    async def output(self, name: str) -> Turn:
        self._turns[name].start()
        await settle()
        return self._turns[name]

    async def cancel(self, name: str) -> None:
        self._tasks[name].cancel()
        await settle()

    async def _visit(self, name: str, *, alone: bool) -> None:
        async with self.turns.admitted(alone=alone) as turn:
            self.inside.append(name)
            self._turns[name] = turn
            try:
                await self._ends[name].wait()
            finally:
                self.inside.remove(name)


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_places_are_given_in_order_of_arrival() -> None:
    visits = Visits(2)
    for name in "abcd":
        await visits.come(name)
    assert (visits.inside, visits.turns.waiting) == (["a", "b"], 2)
    await visits.go("b")
    assert (visits.inside, visits.turns.waiting) == (["a", "c"], 1)
    await visits.go("a")
    assert visits.inside == ["c", "d"]


async def test_one_that_starts_alone_waits_for_others_to_start_and_keeps_all_out() -> None:
    visits = Visits(4)
    for name in "ab":
        await visits.come(name)
    await visits.come("alone", alone=True)
    await visits.come("later")
    await visits.output("a")
    assert visits.inside == ["a", "b"]
    await visits.output("b")
    assert visits.inside == ["a", "b", "alone"]
    assert not (await visits.output("alone")).left_starting_alone
    assert visits.inside == ["a", "b", "alone", "later"]
    await visits.go("alone")
    assert not visits._turns["alone"].left_starting_alone


async def test_one_that_leaves_before_its_first_output_lets_the_next_start() -> None:
    visits = Visits(4)
    await visits.come("one", alone=True)
    await visits.come("two", alone=True)
    await visits.come("later")
    assert visits.inside == ["one"]
    await visits.go("one")
    assert visits._turns["one"].left_starting_alone
    assert visits.inside == ["two"]
    await visits.go("two")
    assert visits.inside == ["later"]


async def test_one_that_starts_alone_needs_a_place_too() -> None:
    visits = Visits(1)
    await visits.come("a")
    await visits.output("a")
    await visits.come("alone", alone=True)
    assert visits.inside == ["a"]
    await visits.go("a")
    assert visits.inside == ["alone"]


async def test_one_that_gives_up_its_wait_lets_the_others_in() -> None:
    visits = Visits(2)
    await visits.come("a")
    await visits.come("alone", alone=True)
    await visits.come("b")
    assert visits.inside == ["a"]
    await visits.cancel("alone")
    assert visits.inside == ["a", "b"]


async def test_one_that_is_cancelled_inside_leaves() -> None:
    visits = Visits(1)
    await visits.come("alone", alone=True)
    await visits.come("b")
    await visits.cancel("alone")
    assert visits.inside == ["b"]


async def test_one_that_is_cancelled_as_it_is_admitted_leaves() -> None:
    turns = Turns(1)

    async def visit(entered: list[Turn]) -> None:
        async with turns.admitted() as turn:
            entered.append(turn)
            await asyncio.sleep(3600)

    first: list[Turn] = []
    second: list[Turn] = []
    tasks = [asyncio.create_task(visit(each)) for each in (first, second)]
    await settle()
    # Freed and cancelled in one turn of the loop: the place must not be lost.
    first[0].leave()
    tasks[1].cancel()
    await asyncio.gather(tasks[1], return_exceptions=True)
    async with asyncio.timeout(5), turns.admitted():
        pass
    tasks[0].cancel()
    await asyncio.gather(tasks[0], return_exceptions=True)


async def test_a_waiter_cancelled_in_the_moment_of_its_turn_loses_no_place() -> None:
    """Cancelling marks its future at once, but the task leaves the queue only in the next step."""
    turns = Turns(1)
    entered: list[str] = []

    async def enter(name: str) -> None:
        async with turns.admitted():
            entered.append(name)

    async with turns.admitted() as turn:
        first = asyncio.create_task(enter("first"))
        second = asyncio.create_task(enter("second"))
        await asyncio.sleep(0)
        first.cancel()
        turn.leave()
        await asyncio.wait([first, second])
    assert first.cancelled()
    assert entered == ["second"]
    async with asyncio.timeout(5), turns.admitted():
        assert turns.waiting == 0
