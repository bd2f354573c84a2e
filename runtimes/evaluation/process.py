"""Start evaluating processes and read their predictions."""

import contextlib
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import IO, BinaryIO, Final, cast

import msgspec

from runtimes.endings import ending_of
from runtimes.environment import engine_environment
from runtimes.errors import BuildError, EvaluationKilledError
from runtimes.evaluation.frames import Ended, EvaluationJob, Failed, read
from runtimes.predictions import Predictions

_MAX_COMPLAINT_BYTES: Final = 4096


class Evaluating:
    """Predictions of a running process; ``ended`` is set once they are exhausted."""

    def __init__(self, process: subprocess.Popen[bytes], complaints: IO[bytes], what: str) -> None:
        self._process = process
        self._complaints = complaints
        self._what = what
        self.ended = Ended(0)

    @property
    def memory_bytes(self) -> int:
        """Peak memory of loading and evaluating; 0 if unknown."""
        return self.ended.memory_bytes

    def __iter__(self) -> Iterator[Predictions]:
        pipe = cast("BinaryIO", self._process.stdout)
        while True:
            try:
                frame = read(pipe)
            except (EOFError, ValueError, msgspec.MsgspecError) as error:
                raise self._died(error) from error
            if isinstance(frame, Failed):
                raise BuildError(f"{self._what}: {frame.message}", advice=frame.advice)
            if isinstance(frame, Ended):
                self.ended = frame
                return
            yield frame

    def _died(self, error: Exception) -> BuildError:
        code = self._process.wait()
        self._complaints.seek(0)
        last = self._complaints.read()[-_MAX_COMPLAINT_BYTES:].decode(errors="replace").strip()
        how = ending_of(code)
        kind = EvaluationKilledError if code == -signal.SIGKILL else BuildError
        return kind(
            f"{self._what}: the process that evaluated it {how}: {last[-500:]!a} {error}",
            advice="Check whether memory ran out; evaluate with less context or a smaller model.",
        )


@contextlib.contextmanager
def evaluating(job: EvaluationJob, what: str) -> Iterator[Evaluating]:
    """Start an evaluating process and kill it at the end of the context."""
    with (
        tempfile.TemporaryFile() as complaints,
        subprocess.Popen(
            # -P: modules in the working folder must not shadow the engine's.
            [sys.executable, "-P", "-m", "runtimes.evaluation"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            env=engine_environment(),
        ) as process,
    ):
        try:
            stdin = cast("BinaryIO", process.stdin)
            # A process that died early breaks the pipe; reading its frames reports why.
            with contextlib.suppress(BrokenPipeError), stdin:
                stdin.write(msgspec.json.encode(job))
            yield Evaluating(process, complaints, what)
        finally:
            process.kill()
