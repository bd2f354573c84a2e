"""The specification of a worker, its statistics and its timeouts."""

from dataclasses import dataclass, field
from pathlib import Path

from artifact.manifest import ModelVersion, Variant


@dataclass(frozen=True)
class WorkerSpec:
    """One model to run in one process.

    ``release`` is a reference; ``files`` maps the variant's manifest names to digest-checked
    paths. ``memory_limit_bytes`` bounds the process's memory (0: no limit).
    """

    slot: str
    release: str
    model: ModelVersion
    variant: Variant
    files: dict[str, Path]
    context_length: int
    memory_limit_bytes: int
    # Unload the model after so long without a caller; 0: never.
    idle_unload_seconds: float = 0.0
    # LoRA files by the adapter name in requests.
    adapters: dict[str, Path] = field(default_factory=dict)
    # Concurrent requests; 0: the engine's own choice.
    max_concurrency: int = 0
    # Models of the release that compute with several threads, this one included.
    large_models: int = 1
    # Requests without a cache salt may reuse each other's cached prompts.
    share_prefixes: bool = True


@dataclass(frozen=True, slots=True)
class WorkerStats:
    """Figures of a worker; the peak spans restarts.

    Memory is the resident memory of the whole process. ``live``: the worker answers, possibly after
    a reload. ``loads`` counts the first load and reloads after an unload, without restarts.
    """

    memory_bytes: int
    peak_memory_bytes: int
    restarts: int
    waiting: int
    live: bool
    loaded: bool
    loads: int


@dataclass(frozen=True, slots=True)
class WorkerTimeouts:
    """Time limits of a worker, and the spacing of its restarts (full jitter, doubling)."""

    # A load may take ``load_seconds`` and, beside them, the time to read its files at the rate of a
    # slow SD card: a load sends no sign of progress.
    load_seconds: float = 300.0
    load_bytes_per_second: float = 4 << 20
    # A worker that sends no event for so long while it owes an answer, also to a caller that has
    # given up, is stuck and is killed.
    silence_seconds: float = 300.0
    # Longest wait of a request for a worker that is being restarted.
    restart_wait_seconds: float = 60.0
    backoff_first_seconds: float = 0.2
    backoff_most_seconds: float = 30.0
    # A process that ran for so long resets the backoff.
    stable_after_seconds: float = 60.0

    def load_limit_seconds(self, size_bytes: int) -> float:
        """Return the longest time that loading files of this size may take."""
        return self.load_seconds + size_bytes / self.load_bytes_per_second
