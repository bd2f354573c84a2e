"""The daemon's side: starts the notary's process for a question, and ends it when idle."""

import asyncio
import contextlib
import logging
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, TypeAlias, TypeVar

from agent import errors as agent_errors
from agent.config import DataDir
from agent.errors import AgentError, NotaryLostError
from agent.host.oom import with_raised_oom_score
from agent.notary.frames import HEADER, check_length, decode_answer, encode
from agent.notary.questions import Answer, Question, Refused
from artifact import errors as artifact_errors
from artifact.errors import ArtifactError

log = logging.getLogger(__name__)

# An update asks several questions within seconds; starting the process takes half a second.
IDLE_SECONDS: Final = 10.0
# Far more than any question takes, for boxes that swap.
ANSWER_SECONDS: Final = 120.0
# A second process, since the first may have been killed for memory or closed by an upgrade.
ATTEMPTS: Final = 2

A = TypeVar("A", bound=Answer)
Ask: TypeAlias = Callable[[Question], Awaitable[Answer]]
"""The type of Notary.ask, for those who need only answers."""


class Notary:
    """The daemon's notary: one question at a time, on one event loop."""

    def __init__(self, data_dir: DataDir, *, idle_seconds: float = IDLE_SECONDS) -> None:
        self._data_dir = data_dir
        self._idle_seconds = idle_seconds
        self._turn = asyncio.Lock()
        self._process: Process | None = None
        self._dismissal: asyncio.TimerHandle | None = None

    @property
    def pid(self) -> int:
        """Process id; 0 while no process runs."""
        return self._process.pid if self._process else 0

    async def ask(self, question: Question) -> Answer:
        """Ask a question and return its answer, Refused included; NotaryLostError."""
        # Frames carry no ids, so that answers can only be matched by their order.
        async with self._turn:
            self._cancel_dismissal()
            for attempt in range(1, ATTEMPTS + 1):
                try:
                    answer = await self._exchange(question)
                except (OSError, EOFError, TimeoutError) as error:
                    await self._end()
                    log.warning("notary_lost attempt=%d error=%r", attempt, error)
                    if attempt == ATTEMPTS:
                        raise NotaryLostError(
                            f"the process that checks signatures was lost: {error!r}",
                            advice="Free memory or processes on the box; its log may say more.",
                        ) from error
                except BaseException:
                    # The answer may still be in the pipe, where the next question would read it:
                    # end the process.
                    await asyncio.shield(self._end())
                    raise
                else:
                    self._schedule_dismissal()
                    return answer
        raise AssertionError  # pragma: no cover - the last attempt returns or raises

    async def close(self) -> None:
        """End the process."""
        async with self._turn:
            self._cancel_dismissal()
            await self._end()

    async def _exchange(self, question: Question) -> Answer:
        async with asyncio.timeout(ANSWER_SECONDS):
            if self._process is None:
                self._process = await self._start()
            stdin, stdout = self._process.stdin, self._process.stdout
            assert stdin is not None  # noqa: S101 - they are pipes
            assert stdout is not None  # noqa: S101 - likewise
            stdin.write(encode(question))
            await stdin.drain()
            (length,) = HEADER.unpack(await stdout.readexactly(HEADER.size))
            check_length(length)
            return decode_answer(await stdout.readexactly(length))

    async def _start(self) -> Process:
        # -P: a module in the working directory must not replace one of ours.
        return await asyncio.create_subprocess_exec(
            *with_raised_oom_score(sys.executable, "-P", "-m", "agent.notary"),
            f"--parent={os.getpid()}",
            f"--data-dir={self._data_dir.root}",
            stdin=PIPE,
            stdout=PIPE,
        )

    def _cancel_dismissal(self) -> None:
        if self._dismissal is not None:
            self._dismissal.cancel()
            self._dismissal = None

    def _schedule_dismissal(self) -> None:
        loop = asyncio.get_running_loop()
        self._dismissal = loop.call_later(self._idle_seconds, self._dismiss)

    def _dismiss(self) -> None:
        """Close the process's input, at whose end it exits."""
        # It reads the end of its input and exits; asyncio's child watcher reaps it.
        process, self._process, self._dismissal = self._process, None, None
        if process is not None and process.stdin is not None:
            process.stdin.close()

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def expect(kind: type[A], answer: Answer) -> A:
    """Return the answer if it is of ``kind``; raise the error that Refused carries otherwise."""
    if isinstance(answer, Refused):
        raise _KINDS.get(answer.kind, ArtifactError)(answer.message, advice=answer.advice)
    if not isinstance(answer, kind):
        raise NotaryLostError(f"the notary answered with {type(answer).__name__}")
    return answer


def _kinds() -> Mapping[str, type[ArtifactError] | type[AgentError]]:
    return {
        name: kind
        for module, base in ((artifact_errors, ArtifactError), (agent_errors, AgentError))
        # Errors with arguments of their own cannot be rebuilt from a message and advice.
        for name, kind in vars(module).items()
        if isinstance(kind, type) and issubclass(kind, base) and kind.__init__ is base.__init__
    }


_KINDS: Final = _kinds()
