"""Order of processing, on a simulated context."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from runtimes.base import Sampling
from runtimes.errors import RuntimeFault
from runtimes.llama_cpp.batch import Part
from runtimes.llama_cpp.pace import FEWEST_PROMPT_TOKENS, FIRST_PROMPT_TOKENS, SAMPLES
from runtimes.llama_cpp.scheduler import (
    SHORTEST_PREFIX,
    Scheduler,
)
from runtimes.llama_cpp.streams import Stream
from runtimes.text.sampling import Sampler

END = 999


class Cells:
    """A simulated context with cells, whose next token is the last one plus one."""

    keeps_prefixes = True

    def __init__(self, cells: int = 1000) -> None:
        self.cells = cells
        self.held: dict[int, list[int]] = {}
        self.batches: list[list[Part]] = []
        self.adapters: list[str] = []
        self.adapter = ""
        self.broken = False

    def cut(self, sequence: int, position: int) -> None:
        self.held[sequence] = self.held.get(sequence, [])[:position]

    def copy(self, source: int, target: int, length: int) -> None:
        assert not self.held.get(target)
        self.held[target] = self.held[source][:length]

    def forget(self) -> None:
        self.held.clear()

    def use_adapter(self, name: str) -> None:
        self.adapter = name

    def is_end(self, token: int) -> bool:
        return token == END

    def process(self, parts: Sequence[Part]) -> list[np.ndarray | None] | None:
        if self.broken:
            raise RuntimeFault("broken")
        count = sum(len(part.tokens) for part in parts)
        if sum(map(len, self.held.values())) + count > self.cells:
            return None
        rows: list[np.ndarray | None] = []
        for part in parts:
            held = self.held.setdefault(part.sequence, [])
            assert part.position == len(held)
            held += part.tokens
            logits = np.zeros(1000, np.float32)
            logits[(part.tokens[-1] + 1) % 1000] = 1
            rows.append(logits if part.logits == "last" else None)
        self.batches.append(list(parts))
        self.adapters.append(self.adapter)
        return rows


def ticks(seconds: float = 0.0) -> Iterator[float]:
    now = 0.0
    while True:
        yield now
        now += seconds


def scheduler(cells: Cells, parallel: int = 4, step_seconds: float = 0.0) -> Scheduler:
    clock = ticks(step_seconds)
    return Scheduler(cells, parallel, lambda: next(clock))


def opened(
    owner: Scheduler,
    prompt: Sequence[int],
    room: int = 50,
    adapter: str = "",
    cache_salt: str = "",
) -> Stream:
    return owner.open(prompt, room, Sampler(Sampling()), adapter, cache_salt)


def run(*streams: Stream, turns: int = 1000) -> list[list[int]]:
    """Poll streams in turn until all have ended, like a worker."""
    said: list[list[int]] = [[] for _ in streams]
    for _ in range(turns):
        for stream, tokens in zip(streams, said, strict=True):
            if stream.ended and not stream.ready and stream.error is None:
                stream.close()
            elif chosen := stream.poll():
                tokens.append(chosen.token)
    return said


def sizes(cells: Cells) -> list[list[int]]:
    return [[len(part.tokens) for part in parts] for parts in cells.batches]


def test_texts_that_run_at_once_are_those_that_run_alone() -> None:
    cells = Cells()
    owner = scheduler(cells)
    streams = [opened(owner, range(begin, begin + 10), room=20) for begin in (0, 100, 200, 300)]
    assert run(*streams) == [list(range(begin + 10, begin + 30)) for begin in (0, 100, 200, 300)]
    assert sizes(cells)[1 : SAMPLES + 1] == [[1, 1, 1, 1]] * SAMPLES


class Slow(Cells):
    """A context whose batches take time quadratic in their tokens, so batching never pays."""

    now = 0.0

    def process(self, parts: Sequence[Part]) -> list[np.ndarray | None] | None:
        self.now += sum(len(part.tokens) for part in parts) ** 2
        return super().process(parts)

    def clock(self) -> float:
        return self.now


def test_texts_take_turns_evenly_where_a_batch_is_no_faster() -> None:
    cells = Slow()
    owner = Scheduler(cells, 4, cells.clock)
    streams = [opened(owner, [begin], room=40) for begin in (0, 100, 200, 300)]
    for _ in range(60):
        for stream in streams:
            stream.poll()
    last = cells.batches[-100:]
    # All except the steps that measure three at once.
    alone = [parts[0].sequence for parts in last if len(parts) == 1]
    assert len(alone) >= 100 - SAMPLES
    turns = [alone.count(number) for number in range(4)]
    assert max(turns) - min(turns) <= SAMPLES
    # The reported time is what the caller waited, except for tokens not yet read.
    assert all(0.8 * cells.now < stream.decode_seconds < cells.now for stream in streams)


@pytest.mark.parametrize("newcomers", ["", "poet"])
def test_newcomers_without_end_hold_up_nobody(newcomers: str) -> None:
    cells = Slow(2000)
    owner = Scheduler(cells, 4, cells.clock)
    long = opened(owner, [1], room=1000)
    said = 0
    for _ in range(200):
        short = opened(owner, [500], room=1, adapter=newcomers)
        said += long.poll() is not None
        short.poll()
        short.close()
    assert said > 190


def test_who_has_waited_for_a_place_comes_behind_those_who_generate() -> None:
    owner = scheduler(Cells(), parallel=2)
    long, short = opened(owner, [1]), opened(owner, [500], room=1)
    late = opened(owner, [600], adapter="poet")
    assert long.poll()
    short.close()
    assert long.poll()
    assert long.poll() is None
    assert late.poll()


def test_a_text_alone_is_never_processed_further_than_it_is_read() -> None:
    cells = Cells()
    stream = opened(scheduler(cells), range(5))
    for _ in range(3):
        stream.poll()
    assert len(cells.batches) == 3


def test_a_reader_that_falls_behind_holds_up_nobody() -> None:
    cells = Cells()
    owner = scheduler(cells)
    idle, busy = opened(owner, range(5)), opened(owner, range(100, 105), room=30)
    assert run(busy) == [list(range(105, 135))]
    assert idle.poll().token == 5  # type: ignore[union-attr]


def test_a_long_prompt_is_read_in_shares_while_others_generate() -> None:
    cells = Cells()
    owner = scheduler(cells, step_seconds=0.5)
    first = opened(owner, range(5))
    first.poll()
    second = opened(owner, range(100, 400))
    said = 0
    while not second.ready:
        said += first.poll() is not None
        assert len(cells.batches) < 100
    shares = [max(batch) for batch in sizes(cells)[1:-1]]
    assert shares[0] == FIRST_PROMPT_TOKENS
    # A step of half a second is too long: the minimum share is read.
    assert set(shares[1:]) == {FEWEST_PROMPT_TOKENS}
    assert said >= len(shares) - 2


def test_a_long_prompt_alone_is_read_as_fast_as_it_goes() -> None:
    cells = Cells()
    stream = opened(scheduler(cells), range(900))
    while not stream.poll():
        pass
    assert sizes(cells) == [[512], [388]]


def test_the_beginning_of_a_prompt_that_is_held_is_not_read_again() -> None:
    cells = Cells()
    owner = scheduler(cells)
    run(opened(owner, range(100), room=3), turns=10)
    again = opened(owner, [*range(60), 500, 501], room=2)
    assert run(again, turns=10) == [[502, 503]]
    assert again.cached_tokens == 60
    assert sizes(cells)[-2] == [2]


def test_the_whole_prompt_again_is_read_but_for_its_last_token() -> None:
    cells = Cells()
    owner = scheduler(cells)
    for _ in range(2):
        stream = opened(owner, range(100), room=2)
        assert run(stream, turns=10) == [[100, 101]]
    assert stream.cached_tokens == 99


def test_a_live_texts_beginning_is_shared() -> None:
    cells = Cells()
    owner = scheduler(cells)
    first = opened(owner, range(100), room=10)
    first.poll()
    second = opened(owner, [*range(80), 700], room=10)
    assert run(first, second) == [list(range(101, 110)), list(range(701, 711))]
    assert second.cached_tokens == 80


@pytest.mark.parametrize("change", ["short", "adapter", "recurrent"])
def test_a_beginning_that_would_not_be_the_same_is_read(change: str) -> None:
    cells = Cells()
    cells.keeps_prefixes = change != "recurrent"
    owner = scheduler(cells)
    length = SHORTEST_PREFIX - 1 if change == "short" else 100
    run(opened(owner, range(length), room=3), turns=10)
    again = opened(owner, range(length), room=3, adapter="x" if change == "adapter" else "")
    assert run(again, turns=10) == [list(range(length, length + 3))]
    assert again.cached_tokens == 0


@pytest.mark.parametrize("taken", [False, True])
def test_prompts_with_different_salts_never_share(taken: bool) -> None:
    owner = scheduler(Cells(), parallel=8)

    def cached(salt: str) -> int:
        stream = opened(owner, range(100), room=50, cache_salt=salt)
        run(stream, turns=3 if taken else 60)
        return stream.cached_tokens

    assert [cached(salt) for salt in ("", "a", "b")] == [0, 0, 0]
    assert [cached(salt) for salt in ("a", "")] == [99, 99]


def test_when_the_cells_run_out_the_oldest_text_goes_on_and_the_others_come_back() -> None:
    cells = Cells(cells=300)
    owner = scheduler(cells)
    streams = [opened(owner, range(begin, begin + 20), room=200) for begin in (0, 250, 500)]
    assert run(*streams, turns=3000) == [
        list(range(begin + 20, begin + 220)) for begin in (0, 250, 500)
    ]


def test_one_text_may_fill_the_context() -> None:
    cells = Cells(cells=300)
    owner = scheduler(cells)
    run(opened(owner, range(500, 600), room=5), turns=10)
    assert len(run(opened(owner, range(200), room=100), turns=200)[0]) == 100


def test_a_prompt_that_does_not_fit_beside_others_waits_until_they_have_ended() -> None:
    cells = Cells(cells=300)
    owner = scheduler(cells)
    first, second = opened(owner, range(100), room=30), opened(owner, range(300, 500), room=5)
    assert run(first, second) == [list(range(100, 130)), list(range(500, 505))]
    assert all(len(batch) == 1 for batch in sizes(cells))


def test_texts_that_nobody_reads_give_their_places_up() -> None:
    owner = scheduler(Cells(), parallel=2)
    unread = [opened(owner, range(begin, begin + 5)) for begin in (0, 100)]
    for stream in unread:
        stream.poll()
    assert run(opened(owner, range(300, 305), room=5), turns=50) == [list(range(305, 310))]
    assert run(*unread)[0][-1] == 54


def test_adapters_take_turns_and_never_share_a_batch() -> None:
    cells = Cells()
    owner = scheduler(cells)
    streams = [
        opened(owner, range(begin, begin + 5), room=10, adapter=adapter)
        for begin, adapter in ((0, "a"), (100, "b"), (200, "a"), (300, ""))
    ]
    assert run(*streams) == [list(range(begin + 5, begin + 15)) for begin in (0, 100, 200, 300)]
    for adapter, parts in zip(cells.adapters, cells.batches, strict=True):
        begins = {part.tokens[0] // 100 for part in parts}
        assert begins <= {"a": {0, 2}, "b": {1}, "": {3}}[adapter]
    assert cells.adapters[:3] == ["a", "b", ""]


def test_an_ended_text_leaves_its_place() -> None:
    owner = scheduler(Cells(), parallel=1)
    first, second = opened(owner, range(5)), opened(owner, range(100, 105), room=5)
    first.poll()
    assert second.poll() is None
    first.close()
    first.close()
    assert run(second) == [list(range(105, 110))]


def test_the_model_ends_a_text() -> None:
    cells = Cells()
    assert run(opened(scheduler(cells), [995], room=50)) == [[996, 997, 998, END]]
    assert len(cells.batches) == 4


def test_a_batch_that_fails_fails_its_texts_alone() -> None:
    cells = Cells()
    owner = scheduler(cells)
    first, second = opened(owner, range(5)), opened(owner, range(100, 105))
    other = opened(owner, range(200, 205), room=3, adapter="x")
    for stream in (first, second, other):
        stream.poll()
    other.ready.clear()
    cells.broken = True
    with pytest.raises(RuntimeFault, match="broken"):
        [first.poll() for _ in range(3)]
    cells.broken = False
    with pytest.raises(RuntimeFault, match="broken"):
        [second.poll() for _ in range(3)]
    for stream in (first, second):
        stream.close()
    assert run(other) == [[206, 207]]
    assert run(opened(owner, range(5), room=3)) == [[5, 6, 7]]


def test_a_sampler_that_fails_fails_its_text_alone() -> None:
    class Broken(Sampler):
        def choose(self, logits: object) -> None:  # type: ignore[override]
            raise ValueError("no token")

    owner = scheduler(Cells())
    good = opened(owner, range(5), room=5)
    bad = owner.open(range(10), 5, Broken(Sampling()))
    with pytest.raises(ValueError, match="no token"):
        [bad.poll() for _ in range(3)]
    assert run(good) == [list(range(5, 10))]


def test_another_use_of_the_context_only_costs_reading_again() -> None:
    cells = Cells()
    owner = scheduler(cells)
    stream = opened(owner, range(50), room=20)
    stream.poll()
    with owner.alone():
        assert not any(cells.held.values())
        cells.held[0] = [1, 2, 3]
    assert run(stream) == [list(range(51, 70))]


def test_whoever_polls_beside_another_use_is_not_held_up() -> None:
    """Lend the context for many steps, closed by another thread."""
    cells = Cells()
    owner = scheduler(cells)
    stream = opened(owner, range(50), room=20)
    use = owner.alone()
    use.__enter__()
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(stream.poll).result(timeout=60) is None
        pool.submit(use.__exit__, None, None, None).result(timeout=60)
    assert run(stream) == [list(range(50, 70))]


def test_another_use_that_cannot_begin_holds_up_nobody() -> None:
    class NoChange(Cells):
        def use_adapter(self, name: str) -> None:
            if not name:
                raise RuntimeFault("cannot apply")

    owner = scheduler(NoChange())
    stream = owner.open(range(5), 3, Sampler(Sampling()), "x")
    stream.poll()
    with pytest.raises(RuntimeFault, match="cannot apply"), owner.alone():
        pass
    assert run(stream) == [[6, 7]]


def test_seconds_of_a_shared_step_count_for_each_of_its_texts() -> None:
    owner = scheduler(Cells(), step_seconds=0.5)
    streams = [opened(owner, range(begin, begin + 5), room=3) for begin in (0, 100)]
    run(*streams)
    for stream in streams:
        assert (stream.prefill_seconds, stream.decode_seconds) == (0.5, 1.0)
