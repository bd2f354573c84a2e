"""Chunk indexes of a variant's files, cut at tensor boundaries."""

from collections.abc import Mapping
from pathlib import Path

from artifact.chunks import ChunkIndex, index_file
from artifact.splitting import Span, boundaries
from runtimes.base import Runtime
from runtimes.inspection.process import inspect_apart
from runtimes.registry import location


def index_files(runtime: Runtime, paths: Mapping[str, Path]) -> dict[str, ChunkIndex]:
    """Index every file of a variant; return the indexes by the files' names in the manifest.

    The cut is part of the signed manifest, so building and checking must both call this function.
    Models are inspected in a separate process; raises UnsafeFileError if that refuses one.
    """
    spans: dict[str, list[Span]] = {name: [] for name in paths}
    for name, path in paths.items():
        if not name.endswith(f".{runtime.format}"):
            continue
        for tensor in inspect_apart(location(runtime.name), path).inspection.tensors:
            if (holder := spans.get(tensor.file or name)) is not None:
                holder.append(Span(tensor.offset, tensor.size))
    return {name: index_file(path, boundaries(path, spans[name])) for name, path in paths.items()}
