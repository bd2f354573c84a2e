"""Models in several GGUF files, as llama.cpp's ``llama-gguf-split`` writes them.

Each file names its number and the number of files in ``split.no`` and ``split.count``, and its name
ends in ``-00001-of-00004.gguf``.
"""

import ctypes
import re
from pathlib import Path
from typing import Final

from runtimes.base import Inspection
from runtimes.errors import BuildError, UnsafeFileError

MAX_SHARDS: Final = 1000
_NAME: Final = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)


def merge_shards(path: Path, destination: Path) -> str:
    """Merge the model of which ``path`` is one file; return a description, "" for a whole model.

    Every file is inspected first, since llama.cpp reads them all. Raises BuildError or
    UnsafeFileError.
    """
    from runtimes.llama_cpp.inspect import GgufInspector

    inspector = GgufInspector()
    count = _number(inspector.inspect(path), "split.count")
    if count <= 1:
        return ""
    files = _files(path, count)
    inspections = [inspector.inspect(file) for file in files]
    for position, (file, inspection) in enumerate(zip(files, inspections, strict=True)):
        found = _number(inspection, "split.no"), _number(inspection, "split.count")
        if found != (position, count):
            raise BuildError(
                f"{file.name} is number {found[0] + 1} of {found[1]} files by its header",
                advice="Fetch the files of the model again, under their own names.",
            )
    _write_merged(files[0], destination)
    merged = inspector.inspect(destination)
    tensors = sum(len(inspection.tensors) for inspection in inspections)
    announced = _number(inspections[0], "split.tensors.count")
    if not len(merged.tensors) == tensors == (announced or tensors):
        raise BuildError(
            f"the {count} files have {tensors} tensors, the header announces {announced}, and the "
            f"merged file has {len(merged.tensors)}",
            advice="Fetch the files of the model again.",
        )
    return f"merged from {count} files"


def _files(path: Path, count: int) -> list[Path]:
    """Return the files of a model in their order; raise BuildError if one is missing."""
    name = _NAME.fullmatch(path.name)
    if name is None or int(name["count"]) != count or count > MAX_SHARDS:
        raise BuildError(
            f"{path.name} is one of {count} files of a model, and its name does not end in "
            f"-00001-of-{count:05}.gguf",
            advice="Rename the files as they were published, or merge them with llama-gguf-split.",
        )
    files = [
        path.with_name(f"{name['stem']}-{number:05}-of-{count:05}.gguf")
        for number in range(1, count + 1)
    ]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise BuildError(
            f"{len(missing)} of the model's {count} files are missing: {', '.join(missing[:4])}",
            advice="Put all files of the model into one folder.",
        )
    return files


def is_later_shard(path: Path) -> bool:
    """Return True if a file is named as a model's second or later file."""
    name = _NAME.fullmatch(path.name)
    return name is not None and int(name["number"]) > 1


def _write_merged(first: Path, destination: Path) -> None:
    import llama_cpp

    from runtimes.llama_cpp.log import listening

    lines: list[str] = []
    params = llama_cpp.llama_model_quantize_default_params()
    # Copies every tensor as it is, from all files, and removes the keys of the split.
    params.only_copy = True
    with listening(lines.append):
        status = llama_cpp.llama_model_quantize(
            str(first).encode(), str(destination).encode(), ctypes.byref(params)
        )
    if status != 0:
        raise UnsafeFileError(
            f"llama.cpp could not merge the files of {first.name}: {lines[-1:]!a:.400}",
            advice="Fetch the files of the model again, and check the free disk space.",
        )


def _number(inspection: Inspection, key: str) -> int:
    text = inspection.metadata.get(key, "0")
    return int(text) if text.isdecimal() and len(text) < 10 else 0  # noqa: PLR2004 - a count
