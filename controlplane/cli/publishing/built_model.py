"""A built model in a folder: model.json, and VARIANT/FILE for every file.

An adapter is adapter.json and its one file. Before a release is signed, every file is read and
compared with model.json, so that a missing, changed or mislabelled file is found here and not on a
device.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from artifact.chunks import ChunkIndex, encode_index
from artifact.manifest import Adapter, File, ModelVersion, Variant
from controlplane.cli.app import RefusedError
from runtimes import registry
from runtimes.build.adapter import ADAPTER_FILE
from runtimes.build.chunk_index import index_files

MODEL_FILE = "model.json"
MAX_MODEL_FILE_BYTES = 1 << 20

_REBUILD = "Build the model again with `flotilla model build`."
_REBUILD_ADAPTER = "Build the adapter again with `flotilla model adapter`."

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class BuiltFile:
    """A file, verified to be the one that the manifest names."""

    file: File
    path: Path
    index: ChunkIndex
    encoded_index: bytes


def load_model(directory: Path) -> ModelVersion:
    """Load a folder's model.json; raise RefusedError if it is missing or malformed."""
    return _load(directory / MODEL_FILE, ModelVersion, _REBUILD)


def load_adapter(directory: Path) -> tuple[Adapter, BuiltFile]:
    """Load and verify a folder's adapter and its file; raises RefusedError or UnsafeFileError."""
    adapter = _load(directory / ADAPTER_FILE, Adapter, _REBUILD_ADAPTER)
    file = adapter.file
    path = directory / file.name
    _refuse_changed(file, path, f"{adapter.model}@{adapter.version}", _REBUILD_ADAPTER)
    runtime = registry.find_by_format(path.suffix.removeprefix("."))
    index = index_files(runtime, {file.name: path})[file.name]
    return adapter, _checked_index(file, path, index, _REBUILD_ADAPTER)


def _load(path: Path, kind: type[T], advice: str) -> T:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_MODEL_FILE_BYTES + 1)
        return msgspec.json.decode(data, type=kind)
    except OSError as error:
        raise RefusedError(f"cannot read {path}: {error.strerror}", advice=advice) from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise RefusedError(f"{path} is not valid: {error}", advice=advice) from error


def choose_variants(model: ModelVersion, names: tuple[str, ...]) -> ModelVersion:
    """Return the model with only these variants (all by default), each of a known runtime."""
    known = [variant.name for variant in model.variants]
    for name in names:
        if name not in known:
            raise RefusedError(
                f"{model.reference} has no variant {name!r}",
                advice=f"Use some of: {', '.join(known)}.",
            )
    chosen = tuple(v for v in model.variants if not names or v.name in names)
    for variant in chosen:
        if variant.runtime not in registry.names():
            raise RefusedError(
                f"variant {variant.name!r} of {model.reference} needs the runtime "
                f"{variant.runtime!r}, which nobody has",
                advice=f"Known are: {', '.join(registry.advised())}. Leave the variant out with "
                "`variants:`.",
            )
    return msgspec.structs.replace(model, variants=chosen)


def check_files(directory: Path, model: ModelVersion) -> Iterator[BuiltFile]:
    """Read and check every file of a model; raises RefusedError or UnsafeFileError."""
    for variant in model.variants:
        paths = {file.name: directory / variant.name / file.name for file in variant.files}
        for file in variant.files:
            _refuse_changed(file, paths[file.name], model.reference, _REBUILD)
        yield from _indexed(variant, paths)


def _refuse_changed(file: File, path: Path, named_by: str, advice: str) -> None:
    if not path.is_file():
        raise RefusedError(f"{path} is missing, which {named_by} names", advice=advice)
    size = path.stat().st_size
    with path.open("rb") as source:
        digest = hashlib.file_digest(source, "sha256").hexdigest()
    if (size, digest) != (file.size, file.sha256):
        raise RefusedError(
            f"{path} was changed after it was built: it has {size} bytes and the digest {digest}, "
            f"{named_by} says {file.size} and {file.sha256}",
            advice=advice,
        )


def _indexed(variant: Variant, paths: Mapping[str, Path]) -> Iterator[BuiltFile]:
    """Cut files as they were built; the runtime inspects them, since a name proves no format."""
    runtime = registry.find(variant.runtime)
    ending = f".{runtime.format}"
    if not any(name.endswith(ending) for name in paths):
        raise RefusedError(
            f"variant {variant.name!r} has no {ending} file for {variant.runtime}", advice=_REBUILD
        )
    indexes = index_files(runtime, paths)
    for file in variant.files:
        yield _checked_index(file, paths[file.name], indexes[file.name], _REBUILD)


def _checked_index(file: File, path: Path, index: ChunkIndex, advice: str) -> BuiltFile:
    encoded = encode_index(index)
    if hashlib.sha256(encoded).hexdigest() != file.index:
        raise RefusedError(f"{path} is cut into chunks otherwise than was built", advice=advice)
    return BuiltFile(file, path, index, encoded)
