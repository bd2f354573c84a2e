"""After a power cut of a real file system, the old or the new release serves, verified.

An agent updates its box on ext4, on a block device that records each write and flush
(tests.faults.recorded_disk). Power cuts are spread over the flushes: all writes before a flush are
present, and any subset of the later ones, in any order. Each result is mounted, which replays
ext4's journal, and an agent starts on it. Requires root.
"""

import asyncio
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from agent.storage.atomic_file import write_file
from tests.agent.box import Life, World, eventually
from tests.faults.answers import AFTER_RESTART, HAPPY, resume
from tests.faults.recorded_disk import events

HERE = Path(__file__).parent
SIZE_BYTES = 64 << 20
# The atomic unit of a disk's writes.
SECTOR_BYTES = 512


def missing() -> str | None:
    """Return the reason why no disk can be recorded here; empty if it can."""
    if os.geteuid() != 0:
        return "only root may mount"
    absent = [name for name in ("mkfs.ext4", "losetup", "mount") if shutil.which(name) is None]
    if absent:
        return f"there is no {absent[0]}"
    if not Path("/dev/fuse").exists():
        return "there is no /dev/fuse"
    if subprocess.run(["losetup", "--find"], capture_output=True, check=False).returncode:
        return "there is no free loop device"
    return None


def run(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


@contextmanager
def mounted(device: Path, folder: Path, *options: str) -> Iterator[Path]:
    folder.mkdir(exist_ok=True)
    run("mount", *options, device, folder)
    try:
        yield folder
    finally:
        run("umount", folder)


@dataclass
class Disk:
    """Mount ext4 at ``folder`` on a recorded disk with the content of ``image``."""

    folder: Path
    image: Path
    log: Path

    def sync(self) -> None:
        """Flush all writes to the disk."""
        run("sync", "--file-system", self.folder)

    def logged(self) -> int:
        """Return the present length of the log."""
        return self.log.stat().st_size


@contextmanager
def recorded_disk(root: Path) -> Iterator[Disk]:
    image, log, fuse = root / "image", root / "log", root / "fuse"
    fuse.mkdir()
    image.touch()
    os.truncate(image, SIZE_BYTES)
    run("mkfs.ext4", "-q", "-b", "4096", "-E", "lazy_itable_init=0,lazy_journal_init=0", image)
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.faults.recorded_disk", fuse, image, log], cwd=HERE.parents[1]
    )
    try:
        asyncio.run(eventually((fuse / "disk").exists))
        try:
            device = Path(run("losetup", "--find", "--show", fuse / "disk").strip())
            try:
                with mounted(device, root / "disk") as folder:
                    yield Disk(folder, image, log)
            finally:
                run("losetup", "--detach", device)
        finally:
            run("umount", fuse)
    finally:
        server.wait(timeout=30)


class Cuts:
    """Possible images after a power cut: ``base`` plus writes from the log."""

    def __init__(self, base: Path, log: bytes) -> None:
        self._base = base
        self._random = random.Random(1)  # noqa: S311 - which sectors a disk loses is no secret
        # Writes between two flushes.
        self.between: list[list[tuple[int, bytes]]] = [[]]
        for event in events(log):
            if event is not None:
                self.between[-1].append(event)
            elif self.between[-1]:
                self.between.append([])

    def images(self, most: int) -> Iterator[Path]:
        """Yield at most ``most`` images in order; the caller may write to them."""
        chosen = {round(i * (len(self.between) - 1) / (most - 1)) for i in range(most)}
        left = self._base.with_name("left")
        for number, writes in enumerate(self.between):
            if number in chosen:
                shutil.copyfile(self._base, left)
                self._write(left, self._part_of(writes))
                yield left
            self._write(self._base, writes)

    def _part_of(self, writes: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
        """Select some of the sectors; of two writes to one sector the later may be lost."""
        share = self._random.choice((0.1, 0.5, 0.9))
        return [
            (offset + start, data[start : start + SECTOR_BYTES])
            for offset, data in writes
            for start in range(0, len(data), SECTOR_BYTES)
            if self._random.random() < share
        ]

    def _write(self, image: Path, writes: list[tuple[int, bytes]]) -> None:
        with image.open("r+b") as file:
            for offset, data in writes:
                file.seek(offset)
                file.write(data)


@pytest.fixture
def recordable(require: Callable[..., None]) -> None:
    require("block-device", missing=missing())


def test_at_any_flush_of_an_update_the_old_or_the_new_serves(
    tmp_path: Path, recordable: None
) -> None:
    async def update(disk: Disk) -> tuple[World, bytes]:
        (disk.folder / "box").mkdir()
        world = World(disk.folder / "box")
        async with Life(world) as life:
            await life.do(world.publish("1"))
            second = world.publish("2")
            disk.sync()
            shutil.copyfile(disk.image, tmp_path / "base")
            start = disk.logged()
            await life.do(second)
            log = disk.log.read_bytes()[start:]
        return world, log

    with recorded_disk(tmp_path) as disk:
        world, log = asyncio.run(update(disk))
    cuts = Cuts(tmp_path / "base", log)
    reached = Counter[str]()
    for image in cuts.images(most=20):
        with mounted(image, tmp_path / "left-disk", "-o", "loop") as folder:
            state, chain = asyncio.run(resume(world, folder / "box"))
            assert chain == AFTER_RESTART[state]
            reached[state] += 1
    # Not every state has a flush among the chosen ones.
    assert set(reached) <= set(HAPPY)
    assert len(reached) > len(HAPPY) // 2


def test_the_recorder_sees_what_a_missing_fsync_loses(tmp_path: Path, recordable: None) -> None:
    """Guard: the cuts of the test above lose writes without an fsync."""
    with recorded_disk(tmp_path) as disk:
        shutil.copyfile(disk.image, tmp_path / "base")
        start = disk.logged()
        (disk.folder / "hoped for").write_bytes(b"all is well")
        write_file(disk.folder / "made sure of", b"all is well")
        log = disk.log.read_bytes()[start:]
    found = set()
    cuts = Cuts(tmp_path / "base", log)
    for image in cuts.images(most=len(cuts.between)):
        with mounted(image, tmp_path / "left-disk", "-o", "loop") as folder:
            found.add(tuple(sorted((each.name, each.read_bytes()) for each in files_of(folder))))
    assert (("hoped for", b""), ("made sure of", b"all is well")) in found
    assert not any(("made sure of", b"") in files for files in found)


def files_of(folder: Path) -> list[Path]:
    return [each for each in folder.iterdir() if each.is_file()]
