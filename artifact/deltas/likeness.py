"""Which files a delta could start from."""

from collections.abc import Iterable
from typing import Final

from artifact.manifest import File

MAX_BASES: Final = 8


def like_files(files: Iterable[File], target: File) -> list[File]:
    """Those worth comparing with ``target``, most alike first.

    By ending and size: a version quantized as the target is has its size but for the metadata.
    """
    ending = target.name.rpartition(".")[2]
    like = [file for file in files if file.name.rpartition(".")[2] == ending]
    return sorted(like, key=lambda file: abs(file.size - target.size))[:MAX_BASES]
