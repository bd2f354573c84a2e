"""Turns between generations and other commands, with a fake engine and an in-memory channel."""

import contextlib
from collections import deque
from collections.abc import Callable

import pytest

from agent.worker import messages
from agent.worker.command_loop import FLUSH_SECONDS, WORKING_SECONDS, CommandLoop, cancelled
from agent.worker.mapped import MappedRegion
from artifact.manifest import Task
from runtimes.base import Sampling, TensorValue, Usage
from runtimes.fake import FakeEngine, FakeModel, Faults


class NothingLeftError(Exception):
    """All commands are answered, and the loop would wait for the next one."""


class List:
    """A channel of queued commands that records the sent events."""

    def __init__(self) -> None:
        self.commands: deque[messages.AnyCommand] = deque()
        self.events: list[messages.AnyEvent] = []
        self.unwanted: set[int] = set()
        self.cancelled_meanwhile = 0
        self.begun: list[int] = []
        self.done: list[int] = []
        self.infer = MappedRegion().infer

    def next_command(self, *, wait: bool) -> messages.AnyCommand | None:
        if self.commands:
            return self.commands.popleft()
        if wait:
            raise NothingLeftError
        return None

    def send(self, event: messages.AnyEvent) -> None:
        messages.encode(event)
        self.events.append(event)

    def started(self, command_id: int) -> None:
        self.begun.append(command_id)

    def cancelled(self, command_id: int) -> bool:
        return command_id in self.unwanted

    def on_cancel(self, command_id: int, stop: Callable[[], None]) -> None:
        if self.cancelled_meanwhile == command_id:
            stop()

    def finished(self, command_id: int) -> None:
        self.done.append(command_id)


def desk(parallel: int = 3, **model: object) -> tuple[CommandLoop, List]:
    line = List()
    engine = FakeEngine(FakeModel(reply="abcdefgh", parallel=parallel, **model), 512)  # type: ignore[arg-type]
    now = iter(range(10**6))
    return CommandLoop(engine, line, clock=lambda: next(now) * FLUSH_SECONDS), line


def generate(command_id: int, tokens: int = 4) -> messages.Generate:
    sampling = Sampling(max_tokens=tokens)
    return messages.Generate(id=command_id, prompt="hi", messages=None, sampling=sampling)


def run(work: CommandLoop) -> None:
    """Run rounds until all commands are answered."""
    with contextlib.suppress(NothingLeftError):
        while True:
            work.round()


def order(line: List) -> list[int]:
    return [event.id for event in line.events]


def test_generations_take_turns_token_by_token() -> None:
    work, line = desk()
    line.commands += [generate(1), generate(2)]
    run(work)
    assert order(line) == [1, 1, 2, 1, 2, 1, 2, 1, 2, 2]
    assert [type(event).__name__ for event in line.events][-1] == "Generated"
    assert line.done == [1, 2]


def test_no_more_are_taken_in_than_the_engine_can_do() -> None:
    work, line = desk(parallel=2)
    line.commands += [generate(number, tokens=2) for number in (1, 2, 3)]
    for _ in range(3):
        work.round()
    assert (line.done, len(line.commands)) == ([1], 1)
    run(work)
    assert line.done == [1, 2, 3]


def test_another_command_is_answered_between_two_tokens() -> None:
    work, line = desk()
    line.commands += [generate(1, tokens=9), messages.ScoreText(id=2, text="hello")]
    for _ in range(3):
        work.round()
    assert order(line) == [1, 1, 1, 2]
    assert isinstance(line.events[3], messages.Scored)


def test_a_long_text_is_scored_between_the_tokens_of_another() -> None:
    work, line = desk()
    line.commands += [generate(1, tokens=4), messages.ScoreText(id=2, text="x" * 500)]
    run(work)
    assert order(line) == [1, 1, 1, 1, 1, 2]
    scored = line.events[-1]
    assert isinstance(scored, messages.Scored)
    assert scored.score.tokens == 499


def embed(command_id: int, count: int) -> messages.Embed:
    return messages.Embed(id=command_id, texts=["text"] * count)


def test_a_few_texts_do_not_wait_for_many() -> None:
    work, line = desk(task=Task.EMBEDDING)
    line.commands += [embed(1, 2000), embed(2, 3)]
    for _ in range(4):
        work.round()
    (event,) = line.events
    assert isinstance(event, messages.Embedded)
    assert (event.id, len(event.embeddings.vectors)) == (2, 3)
    # The clock ticks twice for each of its texts.
    assert event.busy_seconds == pytest.approx(3 * FLUSH_SECONDS)
    run(work)
    assert order(line)[-1] == 1


LONG = pytest.mark.parametrize(
    ("task", "command"),
    [
        (Task.EMBEDDING, embed(1, 2000)),
        (Task.TEXT_GENERATION, messages.ScoreText(id=1, text="x" * 64 * 2000)),
    ],
)


@LONG
def test_while_many_texts_are_read_it_says_that_it_works(
    task: Task, command: messages.AnyCommand
) -> None:
    work, line = desk(task=task)
    line.commands.append(command)
    run(work)
    *said, answer = line.events
    assert {type(event) for event in said} == {messages.Working}
    assert isinstance(answer, messages.FINAL)


@LONG
def test_what_nobody_waits_for_any_more_is_given_up_at_once(
    task: Task, command: messages.AnyCommand
) -> None:
    work, line = desk(task=task)
    line.commands.append(command)
    work.round()
    line.unwanted.add(1)
    work.round()
    assert (line.events, line.done) == ([cancelled(1)], [1])


def test_a_cancelled_generation_ends_between_two_tokens() -> None:
    work, line = desk()
    line.commands += [generate(1, tokens=100), generate(2, tokens=4)]
    work.round()
    work.round()
    line.unwanted.add(1)
    run(work)
    assert line.done == [1, 2]
    assert [event for event in line.events if event.id == 1][2:] == [cancelled(1)]


def test_a_command_cancelled_before_its_turn_is_not_begun() -> None:
    work, line = desk()
    line.commands += [generate(1)]
    line.unwanted.add(1)
    work.round()
    assert (line.events, line.done) == ([cancelled(1)], [1])


def test_a_generation_that_fails_fails_alone() -> None:
    work, line = desk(faults=Faults(fail_after_tokens=3))
    line.commands += [generate(1, tokens=9), generate(2, tokens=2)]
    run(work)
    finals = {event.id: event for event in line.events if isinstance(event, messages.FINAL)}
    failed = finals[1]
    assert isinstance(failed, messages.Failed)
    assert "staged failure" in failed.message
    assert isinstance(finals[2], messages.Generated)
    # Text generated before the error is still sent.
    assert len([e for e in line.events if isinstance(e, messages.Tokens) and e.id == 1]) == 3


def test_tokens_of_a_fast_model_go_out_together() -> None:
    line = List()
    engine = FakeEngine(FakeModel(reply="abcdefgh"), 512)
    work = CommandLoop(engine, line, clock=lambda: 0.0)
    line.commands.append(generate(1, tokens=6))
    run(work)
    frames = [event for event in line.events if isinstance(event, messages.Tokens)]
    assert [len(frame.pieces) for frame in frames] == [1, 5]
    assert "".join(piece[0] for frame in frames for piece in frame.pieces) == "abcdef"


def test_an_answer_too_large_to_send_is_refused_and_the_worker_lives_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(messages, "MAX_FRAME_BYTES", 1000)
    large = TensorValue("y", "INT8", (2000,), bytes(2000))
    monkeypatch.setattr(FakeEngine, "infer", lambda *_: [large])
    work, line = desk()
    line.commands += [messages.Infer(id=1, inputs=[]), generate(2)]
    run(work)
    refused = line.events[0]
    assert isinstance(refused, messages.Failed)
    assert (refused.id, refused.kind) == (1, "refused")
    assert line.done == [1, 2]


def test_a_call_that_nobody_waits_for_any_more_is_ended() -> None:
    work, line = desk(task=Task.TENSOR, row_seconds=3600)
    row = messages.WireTensor("input", "FP32", (1, 4), bytes(16))
    line.commands.append(messages.Infer(id=1, inputs=[row]))
    line.cancelled_meanwhile = 1
    run(work)
    assert line.done == [1]


class Reading:
    """A generation whose prefill takes many polls."""

    usage = Usage(0, 0, 0.0, 0.0)

    def __init__(self, polls: int) -> None:
        self._left = polls

    def poll(self) -> None:
        self._left -= 1
        if self._left == 0:
            raise StopIteration

    def close(self) -> None:
        pass


def test_while_a_long_prompt_is_read_it_says_that_it_works(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    polls = int(WORKING_SECONDS / FLUSH_SECONDS)
    monkeypatch.setattr(FakeEngine, "generate", lambda *_: Reading(polls))
    work, line = desk()
    line.commands.append(generate(1))
    run(work)
    # The clock ticks twice for each poll.
    assert [type(event).__name__ for event in line.events] == ["Working", "Generated"]
