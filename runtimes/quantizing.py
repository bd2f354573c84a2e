"""Checks and file handling shared by the quantizers of all runtimes."""

import contextlib
import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final, TypeVar

import msgspec
from msgspec import Struct

from runtimes.base import Progress, Scheme
from runtimes.errors import QuantizeError

# Names of weights that were not quantized before, in the terms of all runtimes.
UNQUANTIZED: Final = frozenset({"f32", "f16", "bf16", "fp32", "fp16", "fp64", "full", "none"})
# Where repositories keep model files below the folder with their tokenizer and configuration.
INNER_FOLDER: Final = "onnx"
MAX_CALIBRATION_BYTES: Final = 64 << 20
JSON_LINES: Final = ".jsonl"

T = TypeVar("T")


class _TextLine(Struct, frozen=True):
    """A line of a calibration file; other fields are ignored."""

    text: str


def check_scheme(
    runtime: str, scheme: Scheme, schemes: Collection[str], options: Collection[str] = ()
) -> None:
    """Raise QuantizeError if the runtime lacks the scheme or one of its options."""
    if scheme.name not in schemes:
        raise QuantizeError(
            f"{runtime} has no scheme {scheme.name!r}",
            advice=f"Use one of: {', '.join(schemes)}.",
        )
    given = {
        "calibration": scheme.calibration is not None,
        "prune_layers": bool(scheme.prune_layers),
        "sparsity": scheme.sparsity > 0,
        "block_size": scheme.block_size > 0,
    }
    unknown = [option for option, is_given in given.items() if is_given and option not in options]
    if unknown:
        raise QuantizeError(
            f"{runtime} does not support {unknown[0]} with {scheme.name}",
            advice=f"Supported options: {', '.join(sorted(options)) or 'none'}.",
        )
    if not 0 <= scheme.sparsity < 1:
        raise QuantizeError(
            f"the sparsity is {scheme.sparsity}; it must be at least 0 and below 1",
            advice="Give the fraction of values to set to zero.",
        )


@contextlib.contextmanager
def atomic_output(scheme: Scheme, destination: Path, progress: Progress) -> Iterator[Path]:
    """Yield a temporary path; sync it to disk and rename it to ``destination`` on success."""
    what = f"quantizing to {scheme.name}"
    half_made = destination.with_name(f".{destination.name}.part")
    progress(what, 0.0)
    try:
        yield half_made
        # On the disk before the rename, or a power loss could leave a complete name without data.
        with half_made.open("rb+") as file:
            os.fsync(file.fileno())
        half_made.replace(destination)
    finally:
        half_made.unlink(missing_ok=True)
    progress(what, 1.0)


def folders_of(main: Path) -> list[Path]:
    """Return the folders that may contain a model's side files, the nearest last."""
    if main.parent.name == INNER_FOLDER:
        return [main.parent.parent, main.parent]
    return [main.parent]


def read_calibration(path: Path) -> bytes:
    """Read a calibration file; raise QuantizeError if it is missing, empty or too large."""
    if not path.is_file() or not 0 < path.stat().st_size <= MAX_CALIBRATION_BYTES:
        raise QuantizeError(
            f"the calibration data {path} is not a file of 1 to {MAX_CALIBRATION_BYTES:,} bytes",
            advice="Give a text for a language model, an .npz of inputs for other models.",
        )
    return path.read_bytes()


def read_text(path: Path) -> str:
    """Read a calibration text, or the ``text`` of each line of a .jsonl; raise QuantizeError."""
    try:
        text = read_calibration(path).decode()
    except UnicodeDecodeError as error:
        raise QuantizeError(
            f"{path} is not UTF-8 text", advice="Give UTF-8 text to calibrate a language model."
        ) from error
    if path.suffix != JSON_LINES:
        return text
    # A blank line keeps the end of one text from merging with the beginning of the next.
    return "\n\n".join(line.text for line in read_lines(path, text, _TextLine))


def read_lines(path: Path, text: str | bytes, kind: type[T]) -> list[T]:
    """Decode every line of a .jsonl file as ``kind``; raise QuantizeError."""
    try:
        return msgspec.json.Decoder(kind).decode_lines(text)
    except msgspec.MsgspecError as error:
        raise QuantizeError(
            f"a line of {path} has an unexpected form: {error}",
            advice='Write texts as {"text": "..."} and inputs as {"INPUT": [...], ...}.',
        ) from error
