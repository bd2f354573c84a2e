"""How a worker process is started, what it is told to load, and why it did not."""

import asyncio
import os
import sys
from asyncio.subprocess import Process

from agent.errors import LoadFailedError
from agent.host.oom import with_raised_oom_score
from agent.supervisor.spec import WorkerSpec
from agent.worker import messages
from agent.worker.region import Region
from runtimes.environment import engine_environment

# RLIMIT_DATA also counts thread stacks and the allocator pools of the maths libraries, touched or
# not; it is the backstop for an allocation too fast for who watches the memory.
DATA_ROOM_BYTES = 1 << 30
# Threads of a model this small wait longer than they compute: on two idle cores one thread of a
# 3 MB model was as fast as two, on busy ones hundreds of times faster.
SINGLE_THREAD_BYTES = 8 << 20
# Failures to load that are reasons of their own.
LOAD_FAILURE_REASONS = frozenset({"out_of_memory", "no_runtime", "unsafe_file"})


async def launch(descriptor: int, region: Region | None, limit_bytes: int) -> Process:
    """Starts a process that serves the socket ``descriptor``; OSError."""
    shared = [] if region is None else [region.descriptor]
    return await asyncio.create_subprocess_exec(
        *with_raised_oom_score(sys.executable, "-P", "-m", "agent.worker"),
        f"--socket={descriptor}",
        f"--parent={os.getpid()}",
        *(f"--region={mapped}" for mapped in shared),
        f"--data-limit={limit_bytes + DATA_ROOM_BYTES if limit_bytes else 0}",
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env=engine_environment(),
        pass_fds=(descriptor, *shared),
        start_new_session=True,
    )


def load_command(command_id: int, spec: WorkerSpec, threads: int) -> messages.Load:
    """Loads what the spec says; ``threads`` 0 lets the engine decide, if the model is not small."""
    if not threads and spec.variant.size_bytes < SINGLE_THREAD_BYTES:
        threads = 1
    return messages.Load(
        id=command_id,
        runtime=spec.variant.runtime,
        files={name: str(path) for name, path in spec.files.items()},
        task=spec.model.task,
        context_length=spec.context_length,
        threads=threads,
        adapters={name: str(path) for name, path in spec.adapters.items()},
        parallel=spec.max_concurrency,
    )


def load_failure(name: str, event: messages.Failed) -> LoadFailedError:
    """What the process says of a model that it could not load."""
    reason = event.kind if event.kind in LOAD_FAILURE_REASONS else "refused"
    return LoadFailedError(
        f"{name} did not load: {event.message}", reason=reason, advice=event.advice
    )
