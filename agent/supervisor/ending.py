"""The end of a worker process: its text for people and its machine-readable reason."""

import signal
from dataclasses import dataclass

from agent.errors import LoadFailedError
from runtimes.endings import ending_of

STDERR_TAIL_BYTES = 4096
OUT_OF_MEMORY_SIGNS = (b"bad_alloc", b"MemoryError", b"Cannot allocate memory", b"out of memory")


@dataclass(slots=True)
class Ending:
    """Facts about the end of a process, filled in as they arrive.

    ``return_code`` is negative for a signal, as in subprocess. ``over_limit_bytes`` is the memory
    that the process held when it was killed for exceeding ``limit_bytes``; 0 otherwise.
    """

    limit_bytes: int
    return_code: int | None = None
    over_limit_bytes: int = 0
    fell_silent: bool = False
    stderr_tail: bytes = b""

    def append_stderr(self, stderr: bytes) -> None:
        """Keep the tail of the process's standard error."""
        self.stderr_tail = (self.stderr_tail + stderr)[-STDERR_TAIL_BYTES:]

    @property
    def ran_out_of_memory(self) -> bool:
        """True if it probably ended for lack of memory."""
        # A SIGKILL that the daemon did not send for silence comes from the kernel's OOM killer,
        # or from the daemon's own memory limit.
        killed = self.return_code == -signal.SIGKILL and not self.fell_silent
        return killed or any(sign in self.stderr_tail for sign in OUT_OF_MEMORY_SIGNS)

    def __str__(self) -> str:
        if self.over_limit_bytes:
            held, limit = self.over_limit_bytes / (1 << 20), self.limit_bytes / (1 << 20)
            return f"was killed: it held {held:.1f} MiB, limit {limit:.1f} MiB"
        if self.fell_silent:
            return "stopped responding and was killed"
        if self.return_code is None:
            return "closed its socket"
        last_line = self.stderr_tail.decode(errors="replace").strip().rpartition("\n")[2]
        words = f" ({last_line[-300:]!a})" if last_line else ""
        return f"{ending_of(self.return_code)}{words}"

    def on_load(self, name: str) -> LoadFailedError:
        """Return the error for a process that ended while loading its model."""
        return LoadFailedError(
            f"{name}: its worker {self} while loading",
            reason="out_of_memory" if self.ran_out_of_memory else "crashed",
            advice=(
                "Give the box more model memory, or publish a smaller variant."
                if self.ran_out_of_memory
                else "Check the variant's files; build it again with `flotilla model build`."
            ),
        )
