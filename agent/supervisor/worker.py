"""A loaded model as its callers see it: it survives crashes and limits concurrency."""

import random
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
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
from agent.supervisor.spec import WorkerSpec, WorkerStats
from agent.supervisor.turns import Turn, Turns
from agent.worker import messages as wire
from agent.worker.region import Region
from runtimes.base import Embeddings, Piece, Sampling, Score, TensorSpec, TensorValue, Usage

MAX_SEED = (1 << 31) - 1
# One beside others, one that starts alone, and two more if others end the process meanwhile.
ATTEMPTS = 4
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

    Further requests wait in order of arrival. An unloaded model is loaded again for the next
    request.

    When the process dies, any request in it may be the cause. A request that was alone raises
    WorkerCrashedError and is never sent again. Requests that ran beside others are sent once more,
    and each starts alone: until its first output, at which most crashes happen, no other request
    starts, so that the cause of a second crash is known. A generation repeats the output
    that its caller already has before it continues; if it does not repeat it exactly, it raises
    WorkerCrashedError too.
    """

    def __init__(self, spec: WorkerSpec, lifecycle: Lifecycle) -> None:
        self.spec = spec
        self._lifecycle = lifecycle
        self._turns = Turns(lifecycle.process.parallel)

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
        if sampling.temperature > 0 and sampling.seed is None:
            # After a crash the text can only be repeated with a known seed.
            sampling = replace(sampling, seed=random.randint(0, MAX_SEED))  # noqa: S311

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
        return self._lifecycle.stats(self._turns.waiting)

    async def stop(self) -> None:
        """Stop the worker for good; running requests raise WorkerUnavailableError."""
        await self._lifecycle.stop()

    async def _answer(self, make: Make) -> wire.AnyEvent:
        async with aclosing(self._answers(make)) as events:
            return await anext(events)

    async def _answers(self, make: Make) -> AsyncGenerator[wire.AnyEvent]:
        delivered = _Delivered()
        alone = False
        with self._lifecycle.idle_timer.caller():
            for attempt in range(1, ATTEMPTS + 1):
                delivered.restart()
                turn: Turn | None = None
                try:
                    async with self._turns.admitted(alone=alone) as turn:
                        process = await self._lifecycle.live_process()
                        make_command = partial(make, process)
                        async with aclosing(process.ask(make_command, turn.leave)) as events:
                            async for event in events:
                                turn.start()
                                if isinstance(event, wire.Failed):
                                    raise _refusal(event)
                                if (new := delivered.unseen(event)) is not None:
                                    yield new
                        return
                except ProcessGoneError as error:
                    if self._lifecycle.stopped:
                        raise self._stopped() from error
                    # Once it has output it may be the victim of another one that starts.
                    blamed = turn is not None and turn.left_starting_alone
                    is_cause = error.suspects == 1 or (blamed and error.suspects > 0)
                    if is_cause or attempt == ATTEMPTS:
                        raise self._crash(error, is_cause=is_cause) from error
                    alone = alone or error.suspects > 0
                except _DivergedError as error:
                    raise self._crash(error) from error

    def _stopped(self) -> WorkerUnavailableError:
        return WorkerUnavailableError(f"the worker of slot {self.spec.slot!r} was stopped")

    def _crash(self, error: Exception, *, is_cause: bool = False) -> WorkerCrashedError:
        slot = self.spec.slot
        if isinstance(error, _DivergedError):
            return WorkerCrashedError(
                f"the worker of slot {slot!r} crashed, and the text so far could not be repeated",
                advice="Send the request again; another one caused the crash.",
            )
        if not is_cause:
            return WorkerCrashedError(
                f"the worker of slot {slot!r} crashed {ATTEMPTS} times during this request",
                advice="Send the request again; other ones caused the crashes.",
            )
        return WorkerCrashedError(
            f"the worker of slot {slot!r} {error} while it answered this request alone",
            advice="Do not send the same request again; report it to the model's publisher.",
        )


class _DivergedError(Exception):
    """A repeated generation differs from the text that its caller already has."""


class _Delivered:
    """The pieces that a caller has received, to be left out when the generation is repeated."""

    def __init__(self) -> None:
        self._pieces: list[wire.WirePiece] = []
        self._repeated = 0

    def restart(self) -> None:
        """Expect the generation to repeat from its beginning."""
        self._repeated = 0

    def unseen(self, event: wire.AnyEvent) -> wire.AnyEvent | None:
        """Return the event without repeated pieces, None if all are; raises _DivergedError."""
        if not isinstance(event, wire.Tokens):
            if self._repeated < len(self._pieces):
                raise _DivergedError
            return event
        pieces = event.pieces
        skipped = min(len(pieces), len(self._pieces) - self._repeated)
        for piece in pieces[:skipped]:
            # Not the logprob: its last digits depend on what else was in the batch.
            if piece[:3] != self._pieces[self._repeated][:3]:
                raise _DivergedError
            self._repeated += 1
        if skipped == len(pieces):
            return None
        fresh = pieces[skipped:]
        self._pieces += fresh
        self._repeated += len(fresh)
        return wire.Tokens(id=event.id, pieces=fresh)


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
