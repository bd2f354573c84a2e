"""A block device that remembers every write and flush in order, without a kernel module.

``python -m tests.faults.recorded_disk FOLDER IMAGE LOG``, as root, mounts a file system on FOLDER
whose one file ``disk`` has the contents of IMAGE. A loop device on it sends each of its writes
and flushes through here, and they are logged: what dm-log-writes does where there is one. Only as
much of FUSE is spoken as that takes (the kernel's include/uapi/linux/fuse.h). It ends when it is
unmounted.
"""

import ctypes
import errno
import os
import struct
import sys
from collections.abc import Iterator, Mapping
from enum import IntEnum
from pathlib import Path
from typing import Final

IN: Final = struct.Struct("<IIQQIIII")
OUT: Final = struct.Struct("<IiQ")
INIT_OUT: Final = struct.Struct("<IIIIHHIIHHI28x")
ENTRY_OUT: Final = struct.Struct("<QQQQII")
ATTR: Final = struct.Struct("<QQQQQQIIIIIIIIII")
READ_OR_WRITE: Final = struct.Struct("<QQIIQII")
STATFS_OUT: Final = struct.Struct("<QQQQQIIII24x")
BIG_WRITES, MAX_PAGES = 1 << 5, 1 << 22
MAX_WRITE: Final = 1 << 20
ROOT, DISK = 1, 2
FOR_EVER: Final = 1 << 30

RECORD: Final = struct.Struct("<BQQ")


class Do(IntEnum):
    """Operation codes of FUSE requests."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    FLUSH = 25
    INIT = 26
    INTERRUPT = 36
    DESTROY = 38
    BATCH_FORGET = 42


ALWAYS_ALIKE: Final[Mapping[int, bytes]] = {
    Do.INIT: INIT_OUT.pack(
        7, 31, 0, BIG_WRITES | MAX_PAGES, 16, 12, MAX_WRITE, 1, MAX_WRITE >> 12, 0, 0
    ),
    Do.OPEN: struct.pack("<QII", 0, 0, 0),
    Do.STATFS: STATFS_OUT.pack(1, 0, 0, 1, 0, 4096, 255, 4096, 0),
    Do.RELEASE: b"",
    Do.FLUSH: b"",
    Do.DESTROY: b"",
}


def events(log: bytes) -> Iterator[tuple[int, bytes] | None]:
    """Read the log: a write is an offset and data, a flush is None."""
    position = 0
    while position < len(log):
        kind, offset, size = RECORD.unpack_from(log, position)
        position += RECORD.size
        yield (offset, log[position : position + size]) if kind else None
        position += size


class Server:
    """Answers the kernel's requests one at a time."""

    def __init__(self, kernel: int, image: Path, log: Path) -> None:
        self._kernel = kernel
        self._image = os.open(image, os.O_RDWR)
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._size = os.fstat(self._image).st_size

    def run(self) -> None:
        """Serve until the file system is unmounted."""
        while True:
            try:
                request = os.read(self._kernel, MAX_WRITE + (1 << 16))
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return
                raise
            _, operation, unique, node, *_ = IN.unpack_from(request)
            if operation in {Do.FORGET, Do.BATCH_FORGET, Do.INTERRUPT}:
                continue
            try:
                answer, failure = self._answer(operation, node, request[IN.size :]), 0
            except OSError as error:
                answer, failure = b"", error.errno or errno.EIO
            header = OUT.pack(OUT.size + len(answer), -failure, unique)
            os.write(self._kernel, header + answer)

    def _answer(self, operation: int, node: int, body: bytes) -> bytes:
        match operation:
            case Do.LOOKUP:
                return self._look_up(body)
            case Do.GETATTR | Do.SETATTR:
                return struct.pack("<QII", FOR_EVER, 0, 0) + self._attributes(node)
            case Do.READ:
                _, offset, size, *_ = READ_OR_WRITE.unpack_from(body)
                return os.pread(self._image, size, offset)
            case Do.WRITE:
                return self._write(body)
            case Do.FSYNC:
                os.write(self._log, RECORD.pack(0, 0, 0))
                return b""
        if operation not in ALWAYS_ALIKE:
            raise OSError(errno.ENOSYS, f"operation {operation} is not spoken")
        return ALWAYS_ALIKE[operation]

    def _look_up(self, name: bytes) -> bytes:
        if name != b"disk\0":
            raise OSError(errno.ENOENT, "there is only the disk")
        return ENTRY_OUT.pack(DISK, 0, FOR_EVER, FOR_EVER, 0, 0) + self._attributes(DISK)

    def _write(self, body: bytes) -> bytes:
        _, offset, size, *_ = READ_OR_WRITE.unpack_from(body)
        data = body[READ_OR_WRITE.size :][:size]
        os.write(self._log, RECORD.pack(1, offset, size) + data)
        os.pwrite(self._image, data, offset)
        return struct.pack("<II", size, 0)

    def _attributes(self, node: int) -> bytes:
        mode, size = (0o100600, self._size) if node == DISK else (0o040700, 0)
        return ATTR.pack(node, size, size >> 9, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


def main(folder: str, image: Path, log: Path) -> None:
    kernel = os.open("/dev/fuse", os.O_RDWR)
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"fd={kernel},rootmode=40000,user_id=0,group_id=0"
    if libc.mount(b"recorded", folder.encode(), b"fuse", 0, options.encode()):
        raise OSError(ctypes.get_errno(), "mount")
    Server(kernel, image, log).run()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
