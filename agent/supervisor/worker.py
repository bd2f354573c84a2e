"""A loaded model as its callers see it: it survives crashes and limits concurrency."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from functools import partial

from agent.errors import (
    ModelRefusedError,
    PromptTooLongError,
    WorkerCrashedError,
    WorkerFailedError,
    WorkerUnavailableError,
)
from agent.supervisor.lifecycle import Lifecycle
from agent.supervisor.process import ProcessGoneError, WorkerProcess
from agent.supervisor.sharing import PlacedTensor
from agent.supervisor.spec import WorkerSpec, WorkerStats, WorkerTimeouts
from agent.worker import messages as wire
from agent.worker.region import Region
from runtimes.base import Embeddings, Piece, Sampling, Score, TensorSpec, TensorValue, Usage

ATTEMPTS = 2
# Builds the command with the given id for a process.
Make = Callable[[WorkerProcess, int], wire.AnyCommand]


class Generation:
    """An async iterator over non-empty lists of pieces, one list per event of the worker.

    ``usage`` is set once it is exhausted. Close it (``aclose``, or ``contextlib.aclosing``) to stop
    generating early.
    """

    def __init__(self, events: AsyncGenerator[wire.AnyEvent]) -> None:
        self.usage: Usage | None = None
        self._events = events

    def __aiter__(self) -> "Generation":
        return self

    async def __anext__(self) -> list[Piece]:
        event = await anext(self._events)
        if isinstance(event, wire.Generated):
            self.usage = event.usage
            event = await anext(self._events)
        if not isinstance(event, wire.Tokens):
            raise _unexpected(event)
        return [Piece(*piece) for piece in event.pieces]

    async def aclose(self) -> None:
        """Stop generating; safe at any time."""
        await self._events.aclose()


class Worker:
    """One model in its own process. It runs as many requests at once as its engine supports.

    Further requests wait in order of arrival. When the process dies, a request without any output
    is tried once more in the next process; a request with output raises WorkerCrashedError. An
    unloaded model is loaded again for the next request.
    """

    def __init__(self, spec: WorkerSpec, lifecycle: Lifecycle, timeouts: WorkerTimeouts) -> None:
        self.spec = spec
        self._lifecycle = lifecycle
        self._timeouts = timeouts
        self._places = asyncio.Semaphore(lifecycle.process.parallel)
        self._waiting = 0

    @property
    def pid(self) -> int:
        """Process id of the present process."""
        return self._lifecycle.process.pid

    @property
    def unsupervised(self) -> bool:
        """True if the task that restarts the process has ended: a defect."""
        return self._lifecycle.unsupervised

    @property
    def ran_out_of_memory(self) -> bool:
        """True if any of its processes ended for lack of memory."""
        return self._lifecycle.ran_out_of_memory

    def generate(
        self,
        prompt: str | None,
        messages: Sequence[dict[str, str]] | None,
        sampling: Sampling,
    ) -> Generation:
        """Generate from a prompt or a conversation; errors are raised while iterating.

        Raises ModelRefusedError, WorkerCrashedError, WorkerUnavailableError, WorkerFailedError.
        """
        conversation = None if messages is None else list(messages)

        def command(_: WorkerProcess, command_id: int) -> wire.Generate:
            return wire.Generate(
                id=command_id, prompt=prompt, messages=conversation, sampling=sampling
            )

        return Generation(self._answers(command))

    async def score(self, text: str) -> Score:
        """Return the likelihood of a text."""
        event = await self._answer(lambda _, i: wire.ScoreText(id=i, text=text))
        if not isinstance(event, wire.Scored):
            raise _unexpected(event)
        return event.score

    async def embed(self, texts: Sequence[str]) -> tuple[Embeddings, Usage]:
        """Return the embeddings of texts, and their usage."""
        event = await self._answer(lambda _, i: wire.Embed(id=i, texts=list(texts)))
        if not isinstance(event, wire.Embedded):
            raise _unexpected(event)
        embeddings = event.embeddings
        return embeddings, Usage(embeddings.prompt_tokens, 0, event.busy_seconds, 0.0)

    async def infer(self, inputs: Sequence[TensorValue | PlacedTensor]) -> list[TensorValue]:
        """Run the model on input tensors and return its outputs."""
        event = await self._answer(lambda process, i: process.sharing.infer(i, inputs))
        if not isinstance(event, wire.Inferred):
            raise _unexpected(event)
        return [_value(output) for output in event.outputs]

    def region(self) -> Region | None:
        """Return the present process's shared memory for tensors; None if there is none."""
        return self._lifecycle.process.sharing.region

    def tensors(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """Return the declared inputs and outputs; empty for text generation."""
        return self._lifecycle.process.tensors

    def stats(self) -> WorkerStats:
        """Return present and peak figures."""
        return self._lifecycle.stats(self._waiting)

    async def stop(self) -> None:
        """Stop the worker for good; running requests raise WorkerUnavailableError."""
        await self._lifecycle.stop()

    async def _answer(self, make: Make) -> wire.AnyEvent:
        async with aclosing(self._answers(make)) as events:
            return await anext(events)

    async def _answers(self, make: Make) -> AsyncGenerator[wire.AnyEvent]:
        async with self._place() as leave:
            for attempt in range(1, ATTEMPTS + 1):
                process = await self._lifecycle.live_process()
                answered = False
                try:
                    async with aclosing(
                        process.ask(partial(make, process), self._timeouts.silence_seconds, leave)
                    ) as events:
                        async for event in events:
                            if isinstance(event, wire.Failed):
                                raise _refusal(event)
                            answered = True
                            yield event
                except ProcessGoneError as error:
                    # Output that the caller has seen cannot be taken back: no second attempt.
                    if answered or attempt == ATTEMPTS or self._lifecycle.stopped:
                        raise self._crash(error) from error
                else:
                    return

    @asynccontextmanager
    async def _place(self) -> AsyncIterator[Callable[[], None]]:
        """Wait for a place in the engine; yield a function that frees it.

        The place is freed when the final event arrives, even if the caller reads it later.
        """
        with self._lifecycle.idle_timer.caller():
            self._waiting += 1
            try:
                await self._places.acquire()
            finally:
                self._waiting -= 1
            with contextlib.ExitStack() as stack:
                stack.callback(self._places.release)
                yield stack.close

    def _crash(self, error: ProcessGoneError) -> Exception:
        if self._lifecycle.stopped:
            return WorkerUnavailableError(f"the worker of slot {self.spec.slot!r} was stopped")
        return WorkerCrashedError(
            f"the worker of slot {self.spec.slot!r} {error} during the request",
            advice="Send the request again; the worker is being restarted.",
        )


def _refusal(event: wire.Failed) -> Exception:
    match event.kind:
        case "context_exceeded":
            return PromptTooLongError(event.message, advice=event.advice)
        case "refused":
            return ModelRefusedError(event.message, advice=event.advice)
        case "unsupported":
            return ModelRefusedError(event.message, unsupported=True, advice=event.advice)
        case _:
            return WorkerFailedError(event.message, advice=event.advice)


def _value(tensor: wire.WireTensor) -> TensorValue:
    assert isinstance(tensor.data, bytes)  # noqa: S101 - Sharing copied it; narrows for mypy
    return TensorValue(tensor.name, tensor.datatype, tensor.shape, tensor.data)


def _unexpected(event: wire.AnyEvent) -> WorkerFailedError:
    return WorkerFailedError(f"the worker answered with {type(event).__name__}")
