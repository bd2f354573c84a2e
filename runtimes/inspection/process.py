"""Parent of the inspecting process: starts it, bounds its time, and checks its answer."""

import os
import selectors
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import msgspec

from runtimes.base import Inspection
from runtimes.endings import ending_of
from runtimes.errors import InspectionDiedError, UnsafeFileError
from runtimes.inspection.answer import MAX_ANSWER_BYTES, Refused, decode

MAX_STDERR_BYTES: Final = 64 << 10
# Readers do not map larger files.
MAX_MAPPED_BYTES: Final = 1 << 31
# The child gets no passphrase, token or proxy, only what Python needs to find itself.
_PASSED_ON: Final = ("LD_LIBRARY_PATH", "PATH", "PYTHONHOME", "PYTHONPATH")
_ADVICE: Final = "Do not load it with anything else; export it again from a source that you trust."


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one inspection. Memory counts without the file itself, which may be mapped."""

    seconds: float = 60.0
    memory_bytes: int = 512 << 20


DEFAULT_LIMITS: Final = Limits()


@dataclass(frozen=True, slots=True)
class Inspected:
    """Findings, and the confinement of the process that made them (runtimes.confinement)."""

    inspection: Inspection
    confinement: str


def inspect_apart(location: str, path: Path, limits: Limits = DEFAULT_LIMITS) -> Inspected:
    """Inspect a file with the runtime at ``MODULE:ATTRIBUTE``, in a separate process.

    Raises UnsafeFileError; its subclass InspectionDiedError means that the process crashed or was
    killed.
    """
    try:
        size = path.stat().st_size
    except OSError as error:
        raise UnsafeFileError(f"{path.name} cannot be read: {error.strerror}") from error
    output = _run(location, path, size, limits)
    try:
        answer = decode(output)
    except msgspec.MsgspecError as error:
        raise _died(path, f"gave an invalid answer: {error}") from error
    if isinstance(answer, Refused):
        raise UnsafeFileError(_plain(answer.message), advice=_plain(answer.advice) or _ADVICE)
    for tensor in answer.inspection.tensors:
        least = min(tensor.offset, tensor.size, *tensor.shape)
        if least < 0 or (not tensor.file and tensor.offset + tensor.size > size):
            raise _died(path, f"reported the impossible tensor {tensor.name[:64]!a}")
    return Inspected(answer.inspection, answer.confinement)


def _run(location: str, path: Path, size: int, limits: Limits) -> bytes:
    """Return the output of the process, which has ended successfully then."""
    deadline = time.monotonic() + limits.seconds
    memory = str(limits.memory_bytes + min(size, MAX_MAPPED_BYTES))
    with subprocess.Popen(
        [
            *(sys.executable, "-P", "-m", "runtimes.inspection"),
            *(location, str(path.absolute()), str(limits.seconds), memory),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={name: os.environ[name] for name in _PASSED_ON if name in os.environ},
        start_new_session=True,
    ) as process:
        try:
            output, stderr = _collect(process, deadline)
            code = process.wait(max(0.0, deadline - time.monotonic()))
        except (TimeoutError, subprocess.TimeoutExpired):
            raise _died(path, f"took longer than {limits.seconds:g} s and was killed") from None
        except OverflowError:
            raise _died(path, "printed too much and was killed") from None
        finally:
            process.kill()
    if code != 0:
        raise _died(path, _ending(code, stderr))
    return output


def _collect(process: subprocess.Popen[bytes], deadline: float) -> tuple[bytes, bytes]:
    """Read both pipes to their ends; raises TimeoutError, or OverflowError for too much output."""
    assert process.stdout is not None  # noqa: S101 - it is a pipe
    assert process.stderr is not None  # noqa: S101 - it is a pipe
    limits = {process.stdout: MAX_ANSWER_BYTES, process.stderr: MAX_STDERR_BYTES}
    received: dict[IO[bytes], bytearray] = {pipe: bytearray() for pipe in limits}
    with selectors.DefaultSelector() as selector:
        for pipe in limits:
            selector.register(pipe, selectors.EVENT_READ, pipe)
        while selector.get_map():
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError
            for key, _ in ready:
                pipe = key.data
                data = os.read(key.fd, 1 << 16)
                received[pipe] += data
                if not data:
                    selector.unregister(pipe)
                elif len(received[pipe]) > limits[pipe]:
                    raise OverflowError
    return bytes(received[process.stdout]), bytes(received[process.stderr])


def _plain(text: str) -> str:
    """Remove terminal control characters: a subverted process may print anything."""
    return "".join(each if each.isprintable() else "?" for each in text)


def _ending(code: int, stderr: bytes) -> str:
    last_line = stderr.decode(errors="replace").strip().rpartition("\n")[2]
    words = f" ({last_line[-300:]!a})" if last_line else ""
    return f"{ending_of(code)}{words}"


def _died(path: Path, how: str) -> InspectionDiedError:
    return InspectionDiedError(
        f"{path.name} is not safe to read: the process that inspected it {how}", advice=_ADVICE
    )
