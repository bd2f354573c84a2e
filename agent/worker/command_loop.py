"""What is under way in a worker: commands in turn, each a bounded share of its work at a time.

A round takes at most one more command in and does one step of each, so that none holds the others
up, the daemon hears that work goes on, and a cancellation is heeded soon. All of it happens in one
thread: the engine is nobody else's.
"""

import time
from collections.abc import Callable
from contextlib import closing, suppress
from functools import partial
from typing import Protocol, TypeVar

from agent.errors import ProtocolError
from agent.worker import messages
from agent.worker.mapped import Run
from runtimes.base import Engine, Piece, Steps, Usage
from runtimes.errors import (
    ContextExceededError,
    InvalidInputError,
    RuntimeFault,
    UnsafeFileError,
    UnsupportedModelError,
)

# A fast model's tokens go out together, at most so often: each frame costs the daemon, and whoever
# reads, about as much as a small model's token, and no screen shows more. The first never waits.
FLUSH_SECONDS = 0.02
# A long prompt or many texts may take minutes to read, and who says nothing for minutes is taken
# for stuck. Only a single call of the engine has to be shorter than that.
WORKING_SECONDS = 10.0

T = TypeVar("T")


class UnknownRuntimeError(RuntimeFault):
    """This box has no such runtime."""


class CommandChannel(Protocol):
    """Where commands come from and events go to (agent.worker.__main__)."""

    def next_command(self, *, wait: bool) -> messages.AnyCommand | None:
        """The next command; None when there is none and nobody waits."""

    def send(self, event: messages.AnyEvent) -> None: ...

    def cancelled(self, command_id: int) -> bool:
        """Whether the daemon no longer wants this answer."""

    def on_cancel(self, command_id: int, stop: Callable[[], None]) -> None:
        """Has ``stop`` called, by another thread, as soon as ``cancelled`` is so."""

    def finished(self, command_id: int) -> None:
        """The command has been answered."""

    def infer(self, command: messages.Infer, run: Run) -> messages.Inferred:
        """Runs on the command's tensors (agent.worker.mapped)."""


class Outbox:
    """Pieces of a text on their way to the daemon."""

    def __init__(self, command_id: int, send: Callable[[messages.AnyEvent], None]) -> None:
        self._command_id = command_id
        self._send = send
        self._pieces: list[messages.WirePiece] = []
        self._sent_at = -FLUSH_SECONDS

    def put(self, piece: Piece | None, clock: float) -> None:
        """Takes a piece, if there is one, and sends what is due."""
        if piece is not None:
            self._pieces.append((piece.text, piece.token, piece.finish_reason, piece.logprob))
        if self._pieces and clock - self._sent_at >= FLUSH_SECONDS:
            self.flush()
            self._sent_at = clock

    def flush(self) -> None:
        """Sends what has come but was not due yet."""
        if self._pieces:
            self._send(messages.Tokens(id=self._command_id, pieces=self._pieces))
            self._pieces = []


class CommandLoop:
    """Answers commands with an engine."""

    def __init__(
        self,
        engine: Engine,
        channel: CommandChannel,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._engine = engine
        self._channel = channel
        self._clock = clock
        # By the commands' ids, in the order in which they came.
        self._running: dict[int, Steps[messages.AnyEvent]] = {}
        self._working_at = clock()

    def serve(self) -> None:
        """Answers commands for good."""
        while True:
            self.round()

    def round(self) -> None:
        """Takes a command in, waiting for one only when there is nothing else to do."""
        if len(self._running) < self._engine.parallel:
            command = self._channel.next_command(wait=not self._running)
            if command is not None:
                self._running[command.id] = self._answer(command)
        for command_id in tuple(self._running):
            self._advance(command_id)
        if self._running and self._clock() - self._working_at >= WORKING_SECONDS:
            self._channel.send(messages.Working(id=0))
            self._working_at = self._clock()

    def _advance(self, command_id: int) -> None:
        steps = self._running[command_id]
        try:
            if not self._channel.cancelled(command_id):
                next(steps)
                return
            steps.close()
            event: messages.AnyEvent = cancelled(command_id)
        except StopIteration as over:
            event = over.value
        except Exception as error:  # noqa: BLE001 - whatever an engine raises, the daemon is told
            event = failure(command_id, error)
        del self._running[command_id]
        self._channel.finished(command_id)
        self._send_last(event)

    def _send_last(self, event: messages.AnyEvent) -> None:
        try:
            self._channel.send(event)
        except ProtocolError as error:
            # Its inputs were small enough, and its outputs are not.
            self._channel.send(failure(event.id, error))

    def _answer(self, command: messages.AnyCommand) -> Steps[messages.AnyEvent]:
        """What is done for a command, and the event that ends it."""
        engine = self._engine
        match command:
            case messages.Generate():
                usage = yield from self._generate(command)
                return messages.Generated(id=command.id, usage=usage)
            case messages.ScoreText():
                score = yield from engine.score(command.text)
                return messages.Scored(id=command.id, score=score)
            case messages.Embed():
                embeddings, busy = yield from timed(engine.embed(command.texts), self._clock)
                return messages.Embedded(id=command.id, embeddings=embeddings, busy_seconds=busy)
            case messages.Infer():
                # One call: nobody else gets a turn during it.
                on_cancel = partial(self._channel.on_cancel, command.id)
                return self._channel.infer(command, lambda inputs: engine.infer(inputs, on_cancel))
            case _:
                return messages.Failed(
                    id=command.id, kind="failed", message="the model is already loaded", advice=""
                )

    def _generate(self, command: messages.Generate) -> Steps[Usage]:
        """Sends the text as it comes, and what was not due yet however it ends."""
        prompt = command.prompt
        if prompt is None:
            prompt = self._engine.render_chat(command.messages or [])
        outbox = Outbox(command.id, self._channel.send)
        with closing(self._engine.generate(prompt, command.sampling)) as generation:
            try:
                # Which poll raises after the last piece.
                with suppress(StopIteration):
                    while True:
                        outbox.put(generation.poll(), self._clock())
                        yield
            finally:
                outbox.flush()
        return generation.usage


def timed(steps: Steps[T], clock: Callable[[], float]) -> Steps[tuple[T, float]]:
    """The answer, and the seconds that its own steps took."""
    busy = 0.0
    with closing(steps):
        while True:
            started = clock()
            try:
                next(steps)
            except StopIteration as over:
                return over.value, busy + clock() - started
            busy += clock() - started
            yield


def cancelled(command_id: int) -> messages.Failed:
    """The end of a command that nobody waits for; its tensors may be forgotten."""
    return messages.Failed(id=command_id, kind="cancelled", message="cancelled", advice="")


def failure(command_id: int, error: Exception) -> messages.Failed:
    """An engine's exception in words that the daemon acts on."""
    match error:
        case ContextExceededError():
            kind = "context_exceeded"
        case InvalidInputError() | ProtocolError():
            kind = "refused"
        case UnsupportedModelError():
            kind = "unsupported"
        case UnsafeFileError():
            kind = "unsafe_file"
        case MemoryError():
            kind = "out_of_memory"
        case ImportError() | UnknownRuntimeError():
            kind = "no_runtime"
        case _:
            kind = "failed"
    message = str(error)
    advice = ""
    if isinstance(error, RuntimeFault | ProtocolError):
        advice = error.advice
    else:
        message = f"{type(error).__name__}: {message}".removesuffix(": ")
    return messages.Failed(id=command_id, kind=kind, message=message[:2000], advice=advice)
