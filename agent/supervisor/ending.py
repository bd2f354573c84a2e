"""How a worker process ended, in words and in the reasons that others act on."""

import signal
from dataclasses import dataclass

from agent.errors import LoadFailedError
from runtimes.endings import ending_of

STDERR_TAIL_BYTES = 4096
OUT_OF_MEMORY_SIGNS = (b"bad_alloc", b"MemoryError", b"Cannot allocate memory", b"out of memory")


@dataclass(slots=True)
class Ending:
    """What is known of it; filled as it comes.

    ``return_code`` is negative for a signal, as in subprocess; ``over_limit_bytes`` is what it
    held when it was killed for holding more than ``limit_bytes``.
    """

    limit_bytes: int
    return_code: int | None = None
    over_limit_bytes: int = 0
    fell_silent: bool = False
    stderr_tail: bytes = b""

    def append_stderr(self, stderr: bytes) -> None:
        """Keeps the last of what the process said."""
        self.stderr_tail = (self.stderr_tail + stderr)[-STDERR_TAIL_BYTES:]

    @property
    def ran_out_of_memory(self) -> bool:
        """Whether it ended for want of memory, as far as one can tell from outside."""
        # Nobody but the kernel sends SIGKILL, unless it was killed for its size.
        killed = self.return_code == -signal.SIGKILL and not self.fell_silent
        return killed or any(sign in self.stderr_tail for sign in OUT_OF_MEMORY_SIGNS)

    def __str__(self) -> str:
        if self.over_limit_bytes:
            held, limit = self.over_limit_bytes / (1 << 20), self.limit_bytes / (1 << 20)
            return f"took {held:.1f} MiB beside its own code, limit {limit:.1f} MiB, and was killed"
        if self.fell_silent:
            return "fell silent and was killed"
        if self.return_code is None:
            return "closed its socket"
        last_line = self.stderr_tail.decode(errors="replace").strip().rpartition("\n")[2]
        words = f" ({last_line[-300:]!a})" if last_line else ""
        return f"{ending_of(self.return_code)}{words}"

    def on_load(self, name: str) -> LoadFailedError:
        """The error of a start during which the process ended."""
        return LoadFailedError(
            f"{name}: its worker {self} while loading",
            reason="out_of_memory" if self.ran_out_of_memory else "crashed",
            advice=(
                "Give the box more model memory, or publish a smaller variant."
                if self.ran_out_of_memory
                else "Check the variant's files; build it again with `flotilla model build`."
            ),
        )
