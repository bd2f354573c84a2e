"""Inspection in a separate process that may hang, grow, crash or give false answers."""

import os
import time
from pathlib import Path
from typing import Final

import pytest

from runtimes import registry
from runtimes.errors import InspectionDiedError, UnsafeFileError
from runtimes.inspection.process import Limits, inspect_apart

# A runtime whose inspector does what its file contains, like a subverted one.
SUBVERTED: Final = """
import ctypes, os, socket, subprocess, sys, threading
from pathlib import Path
from runtimes.base import Inspection, TensorInfo
from runtimes.errors import UnsafeFileError

class Inspector:
    def inspect(self, path):
        return globals()[path.read_text()]()

def found(tensors=(), **metadata):
    return Inspection("x", "tensor", "x", 0, "x", 0, tensors, metadata)

def hang():
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()

def spin():
    while True:
        pass

def grow():
    return bytearray(1 << 30)

def segfault():
    ctypes.string_at(0)

def abort():
    os.abort()

def leave():
    os._exit(0)

def stumble():
    raise IndexError("out of range")

def flood():
    while True:
        os.write(1, bytes(1 << 16))

def complain():
    while True:
        os.write(2, bytes(1 << 16))

def nonsense():
    os.write(1, b"nonsense")
    os._exit(0)

def beyond_the_end():
    return found((TensorInfo("t", "f32", (4,), 1 << 40, 16),))

def negative():
    return found((TensorInfo("t", "f32", (4,), -8, 16),))

def huge_number():
    return found((TensorInfo("t", "f32", (1 << 70,), 0, 0),))

def paint():
    raise UnsafeFileError("all is \\x1b[32mwell\\n", advice="\\x1b]0;trust me\\x07")

def tell_secrets():
    return found(**os.environ)

def escape():
    attempts = {
        "connect": lambda: socket.socket(socket.AF_UNIX),
        "pair": socket.socketpair,
        "execute": lambda: subprocess.run(["/bin/true"]),
        "fork": os.fork,
        "write": lambda: open("/tmp/flotilla-escaped", "w"),
        "append": lambda: open(sys.argv[2], "ab"),
        "remove": lambda: os.remove(sys.argv[2]),
        "signal": lambda: os.kill(os.getppid(), 0),
        "read": lambda: open("/etc/passwd").read(),
        "list": lambda: os.listdir("/etc"),
    }
    return found(**{name: attempted(attempt) for name, attempt in attempts.items()})

def attempted(attempt):
    try:
        attempt()
    except OSError as error:
        return type(error).__name__
    return "done"

class Runtime:
    side_files = ()
    inspector = Inspector

RUNTIME = Runtime()
"""
SHORT: Final = Limits(seconds=1.0, memory_bytes=256 << 20)


@pytest.fixture
def subverted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "subverted.py").write_text(SUBVERTED)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    return "subverted:RUNTIME"


def told_to(what: str, folder: Path) -> Path:
    path = folder / "model.bin"
    path.write_text(what)
    return path


@pytest.mark.parametrize("way", ["hang", "spin"])
def test_a_reader_that_does_not_end_is_killed_at_its_deadline(
    way: str, subverted: str, tmp_path: Path
) -> None:
    started = time.monotonic()
    with pytest.raises(InspectionDiedError, match=r"longer than 1 s|SIGXCPU|SIGALRM") as caught:
        inspect_apart(subverted, told_to(way, tmp_path), SHORT)
    assert caught.value.advice
    assert time.monotonic() - started < 30


@pytest.mark.parametrize(
    ("way", "words"),
    [
        ("segfault", "SIGSEGV"),
        ("abort", "ended by SIG"),
        ("leave", "gave an invalid answer"),
        ("stumble", "IndexError: out of range"),
        ("flood", "printed too much"),
        ("complain", "printed too much"),
        ("nonsense", "gave an invalid answer"),
        ("beyond_the_end", "impossible tensor 't'"),
        ("negative", "impossible tensor 't'"),
        ("huge_number", "OverflowError"),
    ],
)
def test_a_reader_that_crashes_or_lies_is_a_typed_error(
    way: str, words: str, subverted: str, tmp_path: Path
) -> None:
    with pytest.raises(InspectionDiedError, match=words) as caught:
        inspect_apart(subverted, told_to(way, tmp_path))
    assert "model.bin" in str(caught.value)


def test_a_reader_cannot_speak_to_the_operators_terminal(subverted: str, tmp_path: Path) -> None:
    with pytest.raises(UnsafeFileError) as caught:
        inspect_apart(subverted, told_to("paint", tmp_path))
    assert str(caught.value) == "all is ?[32mwell?"
    assert caught.value.advice == "?]0;trust me?"


def test_a_reader_that_eats_memory_is_stopped(subverted: str, tmp_path: Path) -> None:
    limits = Limits(memory_bytes=256 << 20)
    with pytest.raises(UnsafeFileError, match="more memory than is allowed"):
        inspect_apart(subverted, told_to("grow", tmp_path), limits)


def test_the_reader_gets_no_secrets_of_who_asks(
    subverted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOTILLA_KEY_PASSPHRASE", "a secret")
    told = inspect_apart(subverted, told_to("tell_secrets", tmp_path)).inspection.metadata
    assert "PYTHONPATH" in told
    assert "FLOTILLA_KEY_PASSPHRASE" not in told


def test_the_reader_can_do_nothing_but_read_its_file(subverted: str, tmp_path: Path) -> None:
    found = inspect_apart(subverted, told_to("escape", tmp_path))
    attempts = found.inspection.metadata
    if "seccomp" not in found.confinement:
        # The limits alone remain, and `flotilla model inspect --json` says so.
        assert found.confinement in {"limits", "landlock"}
        return
    reading = {"read": attempts.pop("read"), "list": attempts.pop("list")}
    assert set(attempts.values()) == {"PermissionError"}
    assert not Path("/tmp/flotilla-escaped").exists()  # noqa: S108 - what it tried to write
    if "landlock" in found.confinement:
        assert set(reading.values()) == {"PermissionError"}


@pytest.mark.parametrize(
    ("runtime", "file"),
    [
        ("llama_cpp", "base.gguf"),
        ("onnx", "base-onnx/model.onnx"),
        ("onnx", "digits.onnx"),
    ],
)
def test_what_is_found_is_what_the_inspector_finds(
    runtime: str, file: str, demo_models: Path
) -> None:
    path = demo_models / file
    found = inspect_apart(registry.location(runtime), path).inspection
    assert found == registry.find(runtime).inspector().inspect(path)


def test_a_model_behind_links_is_found_as_hugging_faces_cache_keeps_it(
    demo_models: Path, tmp_path: Path
) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    for name in ("model.onnx", "config.json"):
        blob = tmp_path / "blobs" / name.replace(".", "-")
        blob.write_bytes((demo_models / "base-onnx" / name).read_bytes())
        (tmp_path / "snapshot" / name).symlink_to(blob)
    path = tmp_path / "snapshot" / "model.onnx"
    found = inspect_apart(registry.location("onnx"), path).inspection
    assert (found.architecture, found.context_length) == ("llama", 512)


def test_a_refusal_keeps_its_words(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"\x80\x04" + bytes(60))
    with pytest.raises(UnsafeFileError, match="a Python pickle") as caught:
        inspect_apart(registry.location("llama_cpp"), path)
    assert not isinstance(caught.value, InspectionDiedError)
    assert caught.value.advice


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsafeFileError, match="No such file"):
        inspect_apart(registry.location("llama_cpp"), tmp_path / "model.gguf")
