"""The folder of a built model: whole, or what was there before."""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from artifact.manifest import File, ModelVersion
from runtimes.build.request import BuildRequest
from runtimes.errors import BuildError

MODEL_FILE: Final = "model.json"
# What was tried, and the digest of all that it was tried with; beside models built by recipe.
REPORT_FILE: Final = "report.json"
# What a release may expect of an embedding model; beside those that were measured.
EXPECTED_FILE: Final = "expected.json"


class _Report(Struct, frozen=True):
    inputs: str


def check_destination(request: BuildRequest) -> None:
    """Refuses early what ``put_in_place`` would refuse."""
    out = request.out
    if not out.exists():
        return
    if not out.is_dir() or (any(out.iterdir()) and not (out / MODEL_FILE).is_file()):
        raise BuildError(
            f"{out} is there, and is no built model", advice="Give --out a new folder."
        )
    there = read_model(out)
    held = there.reference if there else "an unreadable model"
    is_built = (out / MODEL_FILE).is_file()
    if not request.force and is_built and held != f"{request.name}@{request.version}":
        raise BuildError(
            f"{out} holds {held} already", advice="Give --out a new folder, or --force."
        )


def read_model(out: Path) -> ModelVersion | None:
    """The model that a folder holds; None when that cannot be told."""
    try:
        return msgspec.json.decode((out / MODEL_FILE).read_bytes(), type=ModelVersion)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None


def made_of(out: Path, inputs: str) -> bool:
    """Whether the folder was made of just these inputs."""
    try:
        report = msgspec.json.decode((out / REPORT_FILE).read_bytes(), type=_Report)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return False
    return report.inputs == inputs


def is_whole(out: Path, model: ModelVersion) -> bool:
    """Whether every file of the model lies there, byte for byte."""
    return all(
        _is(out / variant.name / file.name, file)
        for variant in model.variants
        for file in variant.files
    )


def _is(path: Path, file: File) -> bool:
    if not path.is_file() or path.stat().st_size != file.size:
        return False
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() == file.sha256


def same_model(out: Path, data: bytes) -> bool:
    path = out / MODEL_FILE
    return path.is_file() and path.read_bytes() == data


def put_in_place(folder: Path, request: BuildRequest, *, replace: bool) -> None:
    """Moves a finished folder to its place; BuildError unless it may replace what is there."""
    out = request.out
    if not out.exists() or not any(out.iterdir()):
        folder.replace(out)
        return
    if not replace:
        raise BuildError(
            f"{out} holds another build of {request.name}@{request.version}",
            advice="A version is immutable once published: give a new --version, or --force.",
        )
    old = folder.with_suffix(".old")
    out.replace(old)
    folder.replace(out)
    shutil.rmtree(old)


@contextlib.contextmanager
def half_made(out: Path) -> Iterator[Path]:
    """A folder beside the destination, which is gone afterwards unless it was moved there."""
    out.parent.mkdir(parents=True, exist_ok=True)
    for left_behind in out.parent.glob(f".{out.name}.*.part"):
        if not Path(f"/proc/{left_behind.name.split('.')[-2]}").exists():
            shutil.rmtree(left_behind, ignore_errors=True)
    folder = out.parent / f".{out.name}.{os.getpid()}.part"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
