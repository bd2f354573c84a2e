"""A live model as its callers see it: it outlasts crashes, and lets in as many as it can take."""

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
# The command of an id to a process.
Make = Callable[[WorkerProcess, int], wire.AnyCommand]


class Generation:
    """An async iterator of the pieces that came together, never none of them.

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
        """Stops generating; safe at any time."""
        await self._events.aclose()


class Worker:
    """One model in its own process. It answers as many requests at once as its engine is good for.

    The others wait, first come, first served.

    When the process dies, a request that had nothing yet is tried once more in the next process;
    one that had is told by WorkerCrashedError. A model that leaves memory while nobody calls it is
    loaded again for the next request.
    """

    def __init__(self, spec: WorkerSpec, lifecycle: Lifecycle, timeouts: WorkerTimeouts) -> None:
        self.spec = spec
        self._lifecycle = lifecycle
        self._timeouts = timeouts
        self._places = asyncio.Semaphore(lifecycle.process.parallel)
        self._waiting = 0

    @property
    def pid(self) -> int:
        """Process id of its present lifecycle."""
        return self._lifecycle.process.pid

    @property
    def unsupervised(self) -> bool:
        """Whether nothing would restart it any more, though nobody stopped it."""
        return self._lifecycle.unsupervised

    @property
    def ran_out_of_memory(self) -> bool:
        """Whether a process of it ended for want of memory."""
        return self._lifecycle.ran_out_of_memory

    def generate(
        self,
        prompt: str | None,
        messages: Sequence[dict[str, str]] | None,
        sampling: Sampling,
    ) -> Generation:
        """Generates from a prompt or a conversation; errors are raised while iterating.

        Raises ModelRefusedError, WorkerCrashedError, WorkerUnavailableError, WorkerFailedError.
        """
        conversation = None if messages is None else list(messages)

        def command(_: WorkerProcess, command_id: int) -> wire.Generate:
            return wire.Generate(
                id=command_id, prompt=prompt, messages=conversation, sampling=sampling
            )

        return Generation(self._answers(command))

    async def score(self, text: str) -> Score:
        """The likelihood of a text."""
        event = await self._answer(lambda _, i: wire.ScoreText(id=i, text=text))
        if not isinstance(event, wire.Scored):
            raise _unexpected(event)
        return event.score

    async def embed(self, texts: Sequence[str]) -> tuple[Embeddings, Usage]:
        """The embeddings of texts, and what they cost."""
        event = await self._answer(lambda _, i: wire.Embed(id=i, texts=list(texts)))
        if not isinstance(event, wire.Embedded):
            raise _unexpected(event)
        embeddings = event.embeddings
        return embeddings, Usage(embeddings.prompt_tokens, 0, event.busy_seconds, 0.0)

    async def infer(self, inputs: Sequence[TensorValue | PlacedTensor]) -> list[TensorValue]:
        """Tensors in, tensors out."""
        event = await self._answer(lambda process, i: process.sharing.infer(i, inputs))
        if not isinstance(event, wire.Inferred):
            raise _unexpected(event)
        return [_value(output) for output in event.outputs]

    def region(self) -> Region | None:
        """Where to put tensors that go to it, if anywhere; the next process has another."""
        return self._lifecycle.process.sharing.region

    def tensors(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """Declared inputs and outputs; empty for text generation."""
        return self._lifecycle.process.tensors

    def stats(self) -> WorkerStats:
        """What it takes now, and took at most."""
        return self._lifecycle.stats(self._waiting)

    async def stop(self) -> None:
        """Ends it for good; requests that still run are told."""
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
                    if answered or attempt == ATTEMPTS or self._lifecycle.stopped:
                        raise self._crash(error) from error
                else:
                    return

    @asynccontextmanager
    async def _place(self) -> AsyncIterator[Callable[[], None]]:
        """A place in the engine; what is given leaves it, before its answer may have been read."""
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
