"""File format of fake models: behaviour and staged faults."""

from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from artifact.manifest import Task
from runtimes.errors import UnsafeFileError

MAX_FILE_BYTES = 64 << 20

Count = Annotated[int, Meta(ge=0, le=1 << 40)]
Seconds = Annotated[float, Meta(ge=0, le=3600)]


class Faults(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """Staged faults. ``crash`` ends the process at once, as a segfault would."""

    on_load: Literal["", "error", "crash", "hang", "out_of_memory"] = ""
    # Counted within one generation; 0 is never.
    crash_after_tokens: Count = 0
    fail_after_tokens: Count = 0
    hang_after_tokens: Count = 0
    # Prompts and texts that contain these; empty is never.
    crash_on_text: str = ""
    hang_on_text: str = ""
    # Tensors with fewer rows are refused.
    min_rows: Count = 0
    # Text with a huge perplexity, tensors negated.
    wrong_outputs: bool = False


class FakeModel(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """Contents of the file. ``padding`` sets its size; ``allocate_bytes`` are taken on load."""

    fake: Literal[1] = 1
    task: Task = Task.TEXT_GENERATION
    quantization: str = "full"
    parameters: Count = 1000
    context_length: Annotated[int, Meta(ge=2, le=1 << 20)] = 512
    memory_bytes: Count = 1 << 20
    allocate_bytes: Count = 0
    load_seconds: Seconds = 0
    # For each generated token and each embedded text.
    token_seconds: Seconds = 0
    # For each row of a tensor; a cancellation ends the wait for all rows.
    row_seconds: Seconds = 0
    # Concurrent requests.
    parallel: Annotated[int, Meta(ge=1, le=256)] = 1
    reply: Annotated[str, Meta(min_length=1, max_length=65536)] = "All ships answer: grüß Gott. "
    # The model emits its end token after this many tokens; 0 is never.
    end_after_tokens: Count = 0
    perplexity: Annotated[float, Meta(ge=1)] = 8.0
    width: Annotated[int, Meta(ge=1, le=4096)] = 4
    # Jinja; empty renders each message as "role: content".
    chat_template: str = ""
    faults: Faults = Faults()
    padding: str = ""


def write_model(path: Path, model: FakeModel) -> Path:
    """Write a model file and return its path."""
    path.write_bytes(msgspec.json.encode(model))
    return path


def read_model(path: Path) -> FakeModel:
    """Read a model file; raise UnsafeFileError for anything else."""
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise UnsafeFileError(
            f"{path.name} is {size:,} bytes; the maximum is {MAX_FILE_BYTES:,}",
            advice="Write a smaller model with runtimes.fake.write_model.",
        )
    try:
        return msgspec.json.decode(path.read_bytes(), type=FakeModel)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UnsafeFileError(
            f"{path.name} is not a fake model: {error}",
            advice="Write it with runtimes.fake.write_model.",
        ) from error
