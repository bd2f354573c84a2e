"""What a worker runs, what it may take, and what it took."""

from dataclasses import dataclass, field
from pathlib import Path

from artifact.manifest import ModelVersion, Variant


@dataclass(frozen=True)
class WorkerSpec:
    """One model to hold in one process.

    ``release`` is a reference; ``files`` maps the variant's manifest names to digest-checked
    paths. ``memory_limit_bytes`` is what the model may take (0: no limit).
    """

    slot: str
    release: str
    model: ModelVersion
    variant: Variant
    files: dict[str, Path]
    context_length: int
    memory_limit_bytes: int
    # Without a caller for so long it leaves memory; 0: never.
    idle_unload_seconds: float = 0.0
    # LoRA files by the name that requests choose by.
    adapters: dict[str, Path] = field(default_factory=dict)
    # Requests that it answers at once; 0: as many as the engine thinks good.
    max_concurrency: int = 0


@dataclass(frozen=True, slots=True)
class WorkerStats:
    """A worker now; its peak spans restarts.

    Memory is the process's resident memory, ``model_memory_bytes`` the engine's own account of
    weights, caches and buffers. ``live``: it answers, though it may have to be loaded first.
    ``loads`` counts how often it came into memory, but for restarts.
    """

    memory_bytes: int
    peak_memory_bytes: int
    model_memory_bytes: int
    restarts: int
    waiting: int
    live: bool
    loaded: bool
    loads: int


@dataclass(frozen=True, slots=True)
class WorkerTimeouts:
    """How long things may take, and how restarts are spaced (full jitter, doubling)."""

    load_seconds: float = 300.0
    # A worker that says nothing for so long while it owes an answer is stuck, and is killed.
    silence_seconds: float = 300.0
    # A request waits so long for a worker that is being restarted.
    restart_wait_seconds: float = 60.0
    backoff_first_seconds: float = 0.2
    backoff_most_seconds: float = 30.0
    # After so long a life the next restart starts over with the first backoff.
    stable_after_seconds: float = 60.0
