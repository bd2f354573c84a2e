"""The main loop of a worker: runs commands in turn, one bounded step of each per round.

A round accepts at most one more command and does one step of every running one. No command delays
the others for long, the daemon receives signs of life, and a cancellation takes effect soon. All of
it happens in one thread, because engines are not thread-safe.
"""

import time
from collections.abc import Callable
from contextlib import closing, suppress
from functools import partial
from typing import Final, Protocol, TypeVar

from agent.errors import ProtocolError
from agent.worker import messages
from agent.worker.mapped import Run
from runtimes.base import Engine, Piece, Steps, Usage
from runtimes.errors import (
    ContextExceededError,
    InvalidInputError,
    ModelFaultError,
    RuntimeFault,
    UnsafeFileError,
    UnsupportedModelError,
)

# Shortest interval between two frames of one text. A frame costs the daemon and the client about
# as much as a token of a small model, and faster updates are not visible. The first token is sent
# at once.
FLUSH_SECONDS = 0.02
# A long prompt or many texts may take minutes without an event, and the daemon kills a silent
# worker. A ``Working`` event is sent at this interval between the calls of the engine.
WORKING_SECONDS = 10.0

T = TypeVar("T")


class UnknownRuntimeError(RuntimeFault):
    """The runtime of the load command is not installed on this box."""


class CommandChannel(Protocol):
    """Source of commands and sink of events (agent.worker.__main__)."""

    def next_command(self, *, wait: bool) -> messages.AnyCommand | None:
        """Return the next command; None if there is none and ``wait`` is False."""

    def send(self, event: messages.AnyEvent) -> None: ...

    def started(self, command_id: int) -> None:
        """Record that the engine begins a command."""

    def cancelled(self, command_id: int) -> bool:
        """Return True if the daemon has cancelled this command."""

    def on_cancel(self, command_id: int, stop: Callable[[], None]) -> None:
        """Register ``stop``, which another thread calls as soon as the command is cancelled."""

    def finished(self, command_id: int) -> None:
        """Forget an answered command."""

    def infer(self, command: messages.Infer, run: Run) -> messages.Inferred:
        """Run on the command's tensors (agent.worker.mapped)."""


# Conversations that every working chat template renders, one of them at least.
PLAIN_CONVERSATIONS: Final = (
    [{"role": "user", "content": "Hello"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}],
)


class Outbox:
    """Collects the pieces of a text and sends them in batches."""

    def __init__(self, command_id: int, send: Callable[[messages.AnyEvent], None]) -> None:
        self._command_id = command_id
        self._send = send
        self._pieces: list[messages.WirePiece] = []
        self._sent_at = -FLUSH_SECONDS

    def put(self, piece: Piece | None, clock: float) -> None:
        """Add a piece, if there is one, and send the batch if it is due."""
        if piece is not None:
            self._pieces.append((piece.text, piece.token, piece.finish_reason, piece.logprob))
        if self._pieces and clock - self._sent_at >= FLUSH_SECONDS:
            self.flush()
            self._sent_at = clock

    def flush(self) -> None:
        """Send the collected pieces now."""
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
        # By command id, in order of arrival.
        self._running: dict[int, Steps[messages.AnyEvent]] = {}
        self._working_at = clock()
        # Unknown until a conversation fails to render.
        self._template_works: bool | None = None

    def serve(self) -> None:
        """Answer commands until the process ends."""
        while True:
            self.round()

    def round(self) -> None:
        """Accept a command, waiting for one only if none is running, and advance all."""
        if len(self._running) < self._engine.parallel:
            command = self._channel.next_command(wait=not self._running)
            if command is not None:
                # Before the engine sees it: after a crash only started commands are suspects.
                self._channel.started(command.id)
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
        except Exception as error:  # noqa: BLE001 - any error of an engine becomes a Failed event
            event = failure(command_id, error)
        del self._running[command_id]
        self._channel.finished(command_id)
        self._send_last(event)

    def _send_last(self, event: messages.AnyEvent) -> None:
        try:
            self._channel.send(event)
        except ProtocolError as error:
            # The outputs exceed the frame length.
            self._channel.send(failure(event.id, error))

    def _answer(self, command: messages.AnyCommand) -> Steps[messages.AnyEvent]:
        """Start a command; the generator's value is its final event."""
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
                # A single call of the engine: other commands wait for it.
                on_cancel = partial(self._channel.on_cancel, command.id)
                return self._channel.infer(command, lambda inputs: engine.infer(inputs, on_cancel))
            case _:
                return messages.Failed(
                    id=command.id, kind="failed", message="the model is already loaded", advice=""
                )

    def _generate(self, command: messages.Generate) -> Steps[Usage]:
        """Generate and send text; flush the last batch even after an error."""
        prompt = command.prompt
        if prompt is None:
            prompt = self._render(command.messages or [])
        outbox = Outbox(command.id, self._channel.send)
        with closing(self._engine.generate(prompt, command.sampling)) as generation:
            try:
                # ``poll`` raises StopIteration after the last piece.
                with suppress(StopIteration):
                    while True:
                        outbox.put(generation.poll(), self._clock())
                        yield
            finally:
                outbox.flush()
        return generation.usage

    def _render(self, messages: list[dict[str, str]]) -> str:
        """Render a conversation; raise ModelFaultError if the template fails for every one."""
        try:
            return self._engine.render_chat(messages)
        except InvalidInputError as error:
            if self._template_works is None:
                self._template_works = any(map(self._renders, PLAIN_CONVERSATIONS))
            if self._template_works:
                raise
            raise ModelFaultError(
                str(error), advice="Publish the model with a chat template that works."
            ) from error

    def _renders(self, messages: list[dict[str, str]]) -> bool:
        try:
            self._engine.render_chat(messages)
        except InvalidInputError:
            return False
        return True


def timed(steps: Steps[T], clock: Callable[[], float]) -> Steps[tuple[T, float]]:
    """Run ``steps``; return their result and the seconds spent in them."""
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
    """Return the final event of a cancelled command, after which its tensors are released."""
    return messages.Failed(id=command_id, kind="cancelled", message="cancelled", advice="")


def failure(command_id: int, error: Exception) -> messages.Failed:
    """Translate an engine's exception into a ``Failed`` event."""
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
