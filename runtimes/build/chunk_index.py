"""Chunk indexes of a variant's files, cut where its runtime says that tensors lie."""

from collections.abc import Mapping
from pathlib import Path

from artifact.chunks import ChunkIndex, index_file
from artifact.splitting import Span, boundaries
from runtimes.base import Runtime
from runtimes.inspection.process import inspect_apart
from runtimes.registry import location


def index_files(runtime: Runtime, paths: Mapping[str, Path]) -> dict[str, ChunkIndex]:
    """The index of every file of a variant, by its name in the manifest.

    Whoever builds a model and whoever checks it must use this: the cut is part of what is signed.
    Models are inspected in a process of their own; UnsafeFileError for one that is refused there.
    """
    spans: dict[str, list[Span]] = {name: [] for name in paths}
    for name, path in paths.items():
        if not name.endswith(f".{runtime.format}"):
            continue
        for tensor in inspect_apart(location(runtime.name), path).inspection.tensors:
            if (holder := spans.get(tensor.file or name)) is not None:
                holder.append(Span(tensor.offset, tensor.size))
    return {name: index_file(path, boundaries(path, spans[name])) for name, path in paths.items()}
