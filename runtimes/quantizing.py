"""What every quantizer does alike: it checks what is asked, and writes whole files or none."""

import contextlib
import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final, TypeVar

import msgspec
from msgspec import Struct

from runtimes.base import Progress, Scheme
from runtimes.errors import QuantizeError

MAX_CALIBRATION_BYTES: Final = 64 << 20
JSON_LINES: Final = ".jsonl"

T = TypeVar("T")


class _TextLine(Struct, frozen=True):
    """What else a line says does not matter."""

    text: str


def check_scheme(
    runtime: str, scheme: Scheme, schemes: Collection[str], options: Collection[str] = ()
) -> None:
    """QuantizeError for a scheme that the runtime lacks, or an option that it does not know."""
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
            f"{runtime} knows no {unknown[0]} for {scheme.name}",
            advice=f"It knows: {', '.join(sorted(options)) or 'no options'}.",
        )
    if not 0 <= scheme.sparsity < 1:
        raise QuantizeError(
            f"a sparsity of {scheme.sparsity} leaves no model",
            advice="Give the fraction of values to drop, from 0 to below 1.",
        )


@contextlib.contextmanager
def making(scheme: Scheme, destination: Path, progress: Progress) -> Iterator[Path]:
    """A path to write to, which takes the destination's place once it is whole and on the disk."""
    what = f"quantizing to {scheme.name}"
    half_made = destination.with_name(f".{destination.name}.part")
    progress(what, 0.0)
    try:
        yield half_made
        with half_made.open("rb+") as file:
            os.fsync(file.fileno())
        half_made.replace(destination)
    finally:
        half_made.unlink(missing_ok=True)
    progress(what, 1.0)


def read_calibration(path: Path) -> bytes:
    """The file, bounded; QuantizeError."""
    if not path.is_file() or not 0 < path.stat().st_size <= MAX_CALIBRATION_BYTES:
        raise QuantizeError(
            f"{path} is not a file of 1 to {MAX_CALIBRATION_BYTES} bytes",
            advice="Give a text for a language model, an .npz of inputs for another.",
        )
    return path.read_bytes()


def read_text(path: Path) -> str:
    """A calibration text, or the ``text`` of every line of a .jsonl file; QuantizeError."""
    try:
        text = read_calibration(path).decode()
    except UnicodeDecodeError as error:
        raise QuantizeError(
            f"{path} is not UTF-8 text", advice="A language model is calibrated on text."
        ) from error
    if path.suffix != JSON_LINES:
        return text
    return "\n\n".join(line.text for line in read_lines(path, text, _TextLine))


def read_lines(path: Path, text: str | bytes, kind: type[T]) -> list[T]:
    """Every line of a .jsonl file as what it should be; QuantizeError."""
    try:
        return msgspec.json.Decoder(kind).decode_lines(text)
    except msgspec.MsgspecError as error:
        raise QuantizeError(
            f"a line of {path} is not as expected: {error}",
            advice='Texts are lines of {"text": "..."}, inputs of {"INPUT": [...], ...}.',
        ) from error
