"""Candidates for the base of a delta."""

from collections.abc import Iterable
from typing import Final

from artifact.manifest import File

MAX_BASES: Final = 8


def like_files(files: Iterable[File], target: File) -> list[File]:
    """Return the files worth comparing with ``target``, most similar first.

    Compares ending and size: versions quantized alike differ in size only by their metadata.
    """
    ending = target.name.rpartition(".")[2]
    like = [file for file in files if file.name.rpartition(".")[2] == ending]
    return sorted(like, key=lambda file: abs(file.size - target.size))[:MAX_BASES]
