"""The folder of a built model, replaced as a whole or not at all."""

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
# The attempts and the digest of their inputs; written only for models built by recipe.
REPORT_FILE: Final = "report.json"
# Reference vectors for a release's checks; written only for embedding models that were compared.
EXPECTED_FILE: Final = "expected.json"


class _Report(Struct, frozen=True):
    inputs: str


def check_destination(request: BuildRequest) -> None:
    """Raise early the BuildError that ``put_in_place`` would raise."""
    out = request.out
    if not out.exists():
        return
    if not out.is_dir() or (any(out.iterdir()) and not (out / MODEL_FILE).is_file()):
        raise BuildError(
            f"{out} exists and is not the folder of a built model",
            advice="Give --out a new folder.",
        )
    model = read_model(out)
    existing = model.reference if model else "an unreadable model"
    is_built = (out / MODEL_FILE).is_file()
    if not request.force and is_built and existing != f"{request.name}@{request.version}":
        raise BuildError(
            f"{out} already contains {existing}", advice="Give --out a new folder, or --force."
        )


def read_model(out: Path) -> ModelVersion | None:
    """Return the model in a folder, or None if there is no readable one."""
    try:
        return msgspec.json.decode((out / MODEL_FILE).read_bytes(), type=ModelVersion)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None


def made_of(out: Path, inputs: str) -> bool:
    """Return True if the folder was built from exactly these inputs."""
    try:
        report = msgspec.json.decode((out / REPORT_FILE).read_bytes(), type=_Report)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return False
    return report.inputs == inputs


def is_whole(out: Path, model: ModelVersion) -> bool:
    """Return True if every file of the model is there with the right digest."""
    return all(
        _is_intact(out / variant.name / file.name, file)
        for variant in model.variants
        for file in variant.files
    )


def _is_intact(path: Path, file: File) -> bool:
    # The size first: it spares hashing gigabytes of a file that is cut off.
    if not path.is_file() or path.stat().st_size != file.size:
        return False
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() == file.sha256


def same_model(out: Path, data: bytes) -> bool:
    path = out / MODEL_FILE
    return path.is_file() and path.read_bytes() == data


def put_in_place(folder: Path, request: BuildRequest, *, replace: bool) -> None:
    """Move a finished folder to its destination; raise BuildError if that must not be replaced."""
    out = request.out
    if not out.exists() or not any(out.iterdir()):
        folder.replace(out)
        return
    if not replace:
        raise BuildError(
            f"{out} contains another build of {request.name}@{request.version}",
            advice="A version is immutable once published: give a new --version, or --force.",
        )
    # Two renames, as rename(2) does not replace a folder that has files. After a crash between
    # them, the old build is in the .old folder.
    old = folder.with_suffix(".old")
    out.replace(old)
    folder.replace(out)
    shutil.rmtree(old)


@contextlib.contextmanager
def half_made(out: Path) -> Iterator[Path]:
    """Yield a folder beside the destination; remove it at the end unless it was moved there."""
    out.parent.mkdir(parents=True, exist_ok=True)
    # The process id in the name shows whether the build that made the folder still runs.
    for abandoned in out.parent.glob(f".{out.name}.*.part"):
        if not Path(f"/proc/{abandoned.name.split('.')[-2]}").exists():
            shutil.rmtree(abandoned, ignore_errors=True)
    folder = out.parent / f".{out.name}.{os.getpid()}.part"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
