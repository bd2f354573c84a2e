"""Environment of engine processes, checked in real processes."""

import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from runtimes.environment import LARGE_PAGES, engine_environment

SWITCH = Path("/sys/kernel/mm/transparent_hugepage/enabled")
# Allocate 64 MiB, write to them, and print how many bytes are in large pages.
TAKING = """
import ctypes
malloc = ctypes.CDLL(None).malloc
malloc.restype, malloc.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
ctypes.memset(malloc(64 << 20), 1, 64 << 20)
with open("/proc/self/smaps_rollup") as file:
    print(next(line.split()[1] for line in file if line.startswith("AnonHugePages")))
"""


def large_kib(environment: dict[str, str]) -> int:
    command = [sys.executable, "-c", TAKING]
    run = subprocess.run(command, env=environment, capture_output=True, check=True, timeout=60)
    return int(run.stdout)


def test_what_an_engine_allocates_lies_in_large_pages(require: Callable[..., None]) -> None:
    offered = SWITCH.exists() and "[never]" not in SWITCH.read_text()
    name, version = platform.libc_ver()
    told = name == "glibc" and tuple(map(int, version.split("."))) >= (2, 35)
    missing = None if offered and told else f"large pages that {name} {version} asks for"
    require("large-pages", missing=missing)
    assert large_kib(engine_environment()) >= 32 << 10


def test_what_the_owner_has_set_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=1")
    assert engine_environment() == dict(os.environ)


@pytest.mark.parametrize("said", ["33554432\n", "536870912\n", "", None])
def test_no_larger_pages_than_those_are_asked_for(
    said: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    page = tmp_path / "hpage_pmd_size"
    if said is not None:
        page.write_text(said)
    assert engine_environment(page) == dict(os.environ)
    page.write_text("2097152\n")
    assert engine_environment(page) == os.environ | LARGE_PAGES
