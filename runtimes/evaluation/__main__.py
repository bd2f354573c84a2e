"""``python -m runtimes.evaluation``: evaluate the EvaluationJob that comes on standard input."""

import importlib
import os
import resource
import sys
from pathlib import Path
from typing import BinaryIO

import msgspec

from artifact.manifest import Task
from runtimes import registry
from runtimes.base import LoadSpec
from runtimes.confinement import confine_calls, confine_files
from runtimes.errors import BuildError, RuntimeFault
from runtimes.evaluation.frames import (
    MAX_WORDS,
    Ended,
    EvaluationJob,
    Failed,
    write_end,
    write_rows,
)
from runtimes.evaluation.quality import predict, read_evaluation
from runtimes.evaluation.trial import Trial


def main() -> int:
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=EvaluationJob)
    # Runtimes may print to standard output, which would corrupt the frames: that goes to stderr.
    with os.fdopen(os.dup(1), "wb") as pipe:
        os.dup2(2, 1)
        try:
            _evaluate(job, pipe)
        except RuntimeFault as error:
            write_end(pipe, Failed(str(error)[:MAX_WORDS], error.advice[:MAX_WORDS]))
        except MemoryError:
            write_end(pipe, Failed("evaluating the model ran out of memory", ""))
    return 0


def _evaluate(job: EvaluationJob, pipe: BinaryIO) -> None:
    runtime = registry.find(job.runtime)
    evaluation = read_evaluation(Path(job.evaluation), job.task) if job.evaluation else None
    files = {name: Path(path).resolve() for name, path in job.files.items()}
    # Opened before the files are confined, since Landlock decides when a file is opened.
    peak = _open_peak()
    # Models and their side files come from strangers: as on a device, native code sees them only
    # in a process that cannot write, connect or read other files.
    confine_files(files.values())
    runtime.prepare()
    # Imported before counting, so that NumPy does not count as the model's memory.
    importlib.import_module("runtimes.arrays")
    before = _begin_counting(peak)
    confine_calls()
    spec = LoadSpec(
        files=files,
        task=job.task,
        context_length=job.context_length if job.task is Task.TEXT_GENERATION else 0,
    )
    engine = runtime.load(spec)
    try:
        trial = Trial()
        if job.trial:
            predictions = trial.outputs(engine, job.task, evaluation, job.shapes)
        elif evaluation is not None:
            predictions = predict(engine, evaluation)
        else:
            raise BuildError("there are no evaluation data", advice="Give evaluation data.")
        for some in predictions:
            write_rows(pipe, some)
        memory_bytes = max(0, _status("VmHWM") - before) if before else 0
        write_end(pipe, Ended(memory_bytes, trial.shapes, trial.unmeasured[:MAX_WORDS]))
    finally:
        engine.close()


def _open_peak() -> int | None:
    """Open the file that resets the peak of resident memory; return None if there is none."""
    try:
        return os.open("/proc/self/clear_refs", os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return None


def _begin_counting(peak: int | None) -> int:
    """Reset the peak of resident memory and return the present bytes; 0 if the kernel cannot."""
    if peak is None:
        return 0
    try:
        # Writing 5 resets VmHWM, the peak that importing the engine had (proc(5)).
        os.write(peak, b"5")
        return _status("VmRSS")
    except OSError:
        return 0
    finally:
        os.close(peak)


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.exit(main())
