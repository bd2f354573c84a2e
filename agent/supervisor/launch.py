"""Start a worker process, build its load command and translate its load failure."""

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
from runtimes.processor.threads import threads_for_model

# RLIMIT_DATA also counts untouched thread stacks and allocator pools, hence this allowance. The
# limit is a backstop for an allocation that is too fast for the periodic memory check.
DATA_ROOM_BYTES = 1 << 30
# Failure kinds of the worker that LoadFailedError passes on as its reason.
LOAD_FAILURE_REASONS = frozenset({"out_of_memory", "no_runtime", "unsafe_file"})


async def launch(descriptor: int, region: Region | None, limit_bytes: int) -> Process:
    """Start a worker process that serves the socket ``descriptor``; OSError."""
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
    """Build the load command; ``threads`` is the number for one large model on this box."""
    return messages.Load(
        id=command_id,
        runtime=spec.variant.runtime,
        files={name: str(path) for name, path in spec.files.items()},
        task=spec.model.task,
        context_length=spec.context_length,
        threads=threads_for_model(threads, spec.variant.size_bytes, spec.large_models),
        adapters={name: str(path) for name, path in spec.adapters.items()},
        parallel=spec.max_concurrency,
    )


def load_failure(name: str, event: messages.Failed) -> LoadFailedError:
    """Translate the worker's answer about a model that it could not load."""
    reason = event.kind if event.kind in LOAD_FAILURE_REASONS else "refused"
    return LoadFailedError(
        f"{name} did not load: {event.message}", reason=reason, advice=event.advice
    )
