"""Recognition of a file's kind by its first and last bytes, whatever its name."""

import os
import struct
from pathlib import Path
from typing import Final

from runtimes.errors import UnsafeFileError

# Each of these can run code or hide another file when a careless loader opens it, or is not a model
# at all. Pickles of protocol 2 and later begin with 0x80 and the protocol.
_KNOWN: Final = {
    b"PK\x03\x04": "a zip archive (PyTorch checkpoints are zips of pickles)",
    b"PK\x05\x06": "an empty zip archive",
    b"\x80\x02": "a Python pickle",
    b"\x80\x03": "a Python pickle",
    b"\x80\x04": "a Python pickle",
    b"\x80\x05": "a Python pickle",
    b"\x89HDF": "an HDF5 file",
    b"\x7fELF": "a program or shared library",
    b"MZ": "a Windows program",
    b"\x1f\x8b": "a gzip archive",
    b"7z\xbc\xaf": "a 7z archive",
    b"Rar!": "a rar archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive",
    b"\x93NUMPY": "a NumPy array",
    b"%PDF": "a PDF",
    b"#!": "a script",
    b"<": "an HTML or XML page; perhaps the download failed",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself",
    b"GGUF": "a GGUF model",
}
HEAD_BYTES: Final = 64
_ZIP_END: Final = struct.Struct("<4s4H2LH")
_MAX_ZIP_COMMENT: Final = 0xFFFF


def refuse_disguise(path: Path, *, expected: bytes = b"") -> None:
    """Raise UnsafeFileError for another kind of file, or one that ends as a zip archive.

    ``expected`` is the magic that the right kind begins with; some kinds have none.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(HEAD_BYTES)
        file.seek(max(0, size - _ZIP_END.size - _MAX_ZIP_COMMENT))
        tail = file.read(_ZIP_END.size + _MAX_ZIP_COMMENT)
    known = next((what for magic, what in _KNOWN.items() if head.startswith(magic)), None)
    if not head.startswith(expected) or (known is not None and not expected):
        raise UnsafeFileError(
            f"{path.name} is {known or 'something else'}, going by its first bytes {head[:8]!r}",
            advice="Give the file that the model was exported to.",
        )
    if _ends_as_zip(tail):
        raise UnsafeFileError(
            f"{path.name} is also a zip archive, read from its end",
            advice="Export the model again.",
        )


def _ends_as_zip(tail: bytes) -> bool:
    """Return True if an end-of-central-directory record spans to the file's end."""
    position = len(tail)
    while (position := tail.rfind(b"PK\x05\x06", 0, position)) >= 0:
        record = tail[position : position + _ZIP_END.size]
        if len(record) == _ZIP_END.size:
            comment_bytes = _ZIP_END.unpack(record)[-1]
            if position + _ZIP_END.size + comment_bytes == len(tail):
                return True
    return False
