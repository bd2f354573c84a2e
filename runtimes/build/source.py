"""Sources of a build: a file or a folder, and the runtime that reads it."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from artifact.manifest import Task
from runtimes import registry
from runtimes.base import Inspection, Runtime
from runtimes.errors import BuildError
from runtimes.inspection.process import inspect_apart
from runtimes.llama_cpp.shards import is_later_shard
from runtimes.quantizing import INNER_FOLDER, folders_of

# The model among several files: transformers' name, and Optimum's for decoders of both passes.
_MAIN_STEMS: Final = ("model", "decoder_model_merged")


@dataclass(frozen=True, slots=True)
class Source:
    """A model's main file, the small files that belong to it, and its inspection.

    ``confinement`` describes how the inspecting process was confined (runtimes.confinement);
    ``changes`` what ``servable`` changed.
    """

    runtime: Runtime
    path: Path
    side_files: dict[str, Path]
    inspection: Inspection
    confinement: str
    changes: str = ""

    @property
    def files(self) -> dict[str, Path]:
        """All files by name: the main file, its side files, and files with external weights."""
        outside = {tensor.file for tensor in self.inspection.tensors if tensor.file}
        weights = {name: self.path.with_name(name) for name in outside}
        return dict(sorted(({self.path.name: self.path} | self.side_files | weights).items()))


def open_source(path: Path) -> Source:
    """Find and inspect the model at a path, and the side files that belong to it.

    A folder contains one model file, or several of which one is called ``model``. The model file
    may be in the subfolder ``onnx/``, as in the repositories of Hugging Face's ONNX community. For
    the path of a file, side files are taken from around it if it is a text model, which cannot run
    without. Raises BuildError, UnsupportedModelError or UnsafeFileError.
    """
    main = _main_file(path) if path.is_dir() else path
    if not main.is_file():
        raise BuildError(f"{main} does not exist or is not a file", advice="Check the path.")
    # By its ending only: the inspection decides whether the content is what the name says.
    runtime = registry.find_by_format(main.suffix.removeprefix("."))
    found = inspect_apart(registry.location(runtime.name), main)
    reads_text = found.inspection.task in {Task.TEXT_GENERATION, Task.EMBEDDING}
    # The inner folder comes last, and its files replace those of the outer one.
    folders = folders_of(main) if path.is_dir() or reads_text else []
    places = [
        *runtime.nested_side_files,
        *((name, name) for name in runtime.side_files),
    ]
    beside = {
        name: folder / place
        for folder in folders
        for name, place in places
        if (folder / place).is_file()
    }
    return Source(runtime, main, beside, found.inspection, confinement=found.confinement)


def servable(source: Source, scratch: Path) -> Source:
    """Return the source, or a copy in ``scratch`` whose outputs devices can serve."""
    main = scratch / source.path.name
    changes = source.runtime.write_servable(source.path, main)
    if not changes:
        return source
    for tensor in source.inspection.tensors:
        beside = scratch / tensor.file
        if tensor.file and not beside.exists():
            shutil.copyfile(source.path.with_name(tensor.file), beside)
    found = inspect_apart(registry.location(source.runtime.name), main)
    return replace(source, path=main, inspection=found.inspection, changes=changes)


def _main_file(folder: Path) -> Path:
    formats = {registry.find(name).format for name in registry.names()}
    for inner in (folder, folder / INNER_FOLDER):
        found = sorted(p for p in inner.glob("*") if p.suffix.removeprefix(".") in formats)
        # A model in several files is named by its first one.
        found = [path for path in found if not is_later_shard(path)]
        models = next(
            (named for stem in _MAIN_STEMS if (named := [p for p in found if p.stem == stem])),
            found,
        )
        if len(models) == 1:
            return models[0]
        if models:
            names = ", ".join(path.name for path in models[:8])
            raise BuildError(
                f"{inner} contains {len(models)} model files: {names}",
                advice="Give the path of one of them.",
            )
    raise BuildError(
        f"{folder} contains no model file",
        advice=f"Expected a file that ends in one of: {registry.advised_endings()}.",
    )
