"""The daemon's end: starts the notary's process for a question, and ends it when it rests."""

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
from agent.host.oom import first_to_go
from agent.notary.frames import HEADER, check_length, decode_answer, encode
from agent.notary.questions import Answer, Question, Refused
from artifact import errors as artifact_errors
from artifact.errors import ArtifactError

log = logging.getLogger(__name__)

# An update asks several times within seconds; starting anew takes about half of one.
REST_SECONDS: Final = 10.0
# Far more than any question takes; on a box that swaps it may need some.
ANSWER_SECONDS: Final = 120.0
ATTEMPTS: Final = 2

A = TypeVar("A", bound=Answer)
Ask: TypeAlias = Callable[[Question], Awaitable[Answer]]
"""Notary.ask, or what answers in its place."""


class Notary:
    """One per daemon. Answers one question at a time; belongs to one event loop."""

    def __init__(self, data_dir: DataDir, *, rest_seconds: float = REST_SECONDS) -> None:
        self._data_dir = data_dir
        self._rest_seconds = rest_seconds
        self._turn = asyncio.Lock()
        self._process: Process | None = None
        self._resting: asyncio.TimerHandle | None = None

    @property
    def pid(self) -> int:
        """Of its process; 0 while there is none."""
        return self._process.pid if self._process else 0

    async def ask(self, question: Question) -> Answer:
        """The answer, whatever it is; NotaryLostError."""
        async with self._turn:
            self._stay()
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
                    # Half an answer may be on its way: the next question goes to a new process.
                    await asyncio.shield(self._end())
                    raise
                else:
                    self._rest()
                    return answer
        raise AssertionError  # pragma: no cover - the last attempt returns or raises

    async def close(self) -> None:
        """Ends its process."""
        async with self._turn:
            self._stay()
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
        return await asyncio.create_subprocess_exec(
            *first_to_go(sys.executable, "-P", "-m", "agent.notary"),
            f"--parent={os.getpid()}",
            f"--data-dir={self._data_dir.root}",
            stdin=PIPE,
            stdout=PIPE,
        )

    def _stay(self) -> None:
        if self._resting is not None:
            self._resting.cancel()
            self._resting = None

    def _rest(self) -> None:
        loop = asyncio.get_running_loop()
        self._resting = loop.call_later(self._rest_seconds, self._dismiss)

    def _dismiss(self) -> None:
        """It ends by itself when nothing more can be asked."""
        process, self._process, self._resting = self._process, None, None
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
    """The answer as what it must be; the error that it stands for, or NotaryLostError."""
    if isinstance(answer, Refused):
        raise _KINDS.get(answer.kind, ArtifactError)(answer.message, advice=answer.advice)
    if not isinstance(answer, kind):
        raise NotaryLostError(f"the notary answered with {type(answer).__name__}")
    return answer


def _kinds() -> Mapping[str, type[ArtifactError] | type[AgentError]]:
    return {
        name: kind
        for module, base in ((artifact_errors, ArtifactError), (agent_errors, AgentError))
        for name, kind in vars(module).items()
        if isinstance(kind, type) and issubclass(kind, base) and kind.__init__ is base.__init__
    }


_KINDS: Final = _kinds()
