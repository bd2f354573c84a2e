"""Confinement, checked in child processes."""

import os
import struct
import sys
from pathlib import Path
from subprocess import run
from typing import Final

import pytest

from runtimes.confinement import call_filters, seccomp
from runtimes.confinement.call_numbers import NUMBERS

ENGINE: Final = """
import ctypes, fcntl, mmap, os, resource, socket, struct, subprocess, sys, threading
from pathlib import Path
from runtimes.confinement import confine_calls, confine_files
ours, theirs = socket.socketpair()
file, other = sys.argv[1:]
def refused(name, attempt):
    try:
        attempt()
    except OSError as error:
        assert error.errno in {1, 13}, (name, error)
    else:
        raise SystemExit(f"{name} was done")

def newer_call(number, *arguments):
    # EPERM even for calls that the kernel lacks, because the filter runs first.
    if ctypes.CDLL(None, use_errno=True).syscall(number, *arguments) < 0:
        raise OSError(ctypes.get_errno(), "refused")

def by_name(function, *arguments):
    if getattr(ctypes.CDLL(None, use_errno=True), function)(*arguments) < 0:
        raise OSError(ctypes.get_errno(), "refused")

earlier = threading.Event()
def thread():
    earlier.wait()
    refused("socket in another thread", socket.socket)
    done.append(True)
done = []
threads = [threading.Thread(target=thread, daemon=True)]
threads[0].start()
locked = confine_files([Path(file)])
with open(os.devnull, "w"):
    pass
assert confine_calls()

if locked:
    refused("read another file", lambda: open(other, "rb"))
for name, attempt in {
    "socket": socket.socket,
    "unix socket": lambda: socket.socket(socket.AF_UNIX),
    "pair": socket.socketpair,
    "connect": lambda: ours.connect("/nowhere"),
    "execute": lambda: subprocess.run(["/bin/true"]),
    "execute in place": lambda: os.execv("/bin/true", ["true"]),
    "fork": os.fork,
    "signal": lambda: os.kill(os.getppid(), 0),
    "signal by a file": lambda: fcntl.fcntl(ours, fcntl.F_SETOWN, os.getppid()),
    "signal by a thread's file": lambda: fcntl.fcntl(ours, 15, struct.pack("ii", 1, os.getppid())),
    "signal of choice": lambda: fcntl.fcntl(ours, fcntl.F_SETSIG, 9),
    "signal by a socket": lambda: fcntl.ioctl(ours, 0x8901, struct.pack("i", os.getppid())),
    "group by a socket": lambda: fcntl.ioctl(ours, 0x8902, struct.pack("i", os.getppid())),
    "attributes in the newer way": lambda: newer_call(463, -100, file.encode(), 0, b"user.x"),
    "no attributes in the newer way": lambda: newer_call(466, -100, file.encode(), 0, b"user.x"),
    "flags": lambda: newer_call(469, -100, file.encode(), None, 0, 0),
    "memory of others": lambda: by_name("shmget", 0, 4096, 0o1600),
    "others' memory gone": lambda: by_name("shmctl", 0, 0, None),
    "message queue": lambda: by_name("msgget", 0, 0o1600),
    "semaphore": lambda: by_name("semget", 0, 1, 0o1600),
    "named message queue": lambda: by_name("mq_open", b"/x", os.O_RDONLY),
    "limit of another": lambda: resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE),
    "write": lambda: open(file, "r+b"),
    "append": lambda: open(file, "ab"),
    "create": lambda: open(file + ".new", "xb"),
    "temporary": lambda: os.open(os.path.dirname(file), os.O_TMPFILE | os.O_RDWR),
    "truncate": lambda: os.truncate(file, 0),
    "remove": lambda: os.remove(file),
    "rename": lambda: os.rename(file, file + ".old"),
    "link": lambda: os.link(file, file + ".link"),
    "symlink": lambda: os.symlink(file, file + ".symlink"),
    "folder": lambda: os.mkdir(file + ".folder"),
    "rights": lambda: os.chmod(file, 0o777),
    "times": lambda: os.utime(file),
    "attributes": lambda: os.setxattr(file, "user.x", b"x"),
    "fifo": lambda: os.mkfifo(file + ".fifo"),
}.items():
    refused(name, attempt)
threads.append(threading.Thread(target=thread))
threads[1].start()
earlier.set()
for each in threads:
    each.join()
assert done == [True, True]
ours.sendall(b"still")
assert theirs.recv(9) == b"still"
with open(file, "rb") as opened, mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ) as mapped:
    assert mapped[:] == b"content"
assert len(os.sched_getaffinity(0)) > 0
import decimal, sqlite3
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
print("confined")
os.abort()
"""
# An outer sandbox that allows only prctl(2).
OLDER: Final = """
import errno, socket, threading
from runtimes.confinement import confine_calls, granted, call_filters, seccomp
blocked = seccomp.Filter({"seccomp": seccomp.refuse(errno.ENOSYS)}, seccomp.ALLOW)
assert seccomp.install(blocked) == "seccomp"
asked, answered = threading.Event(), threading.Event()
def earlier():
    asked.wait()
    try:
        socket.socket().close()
        print("an earlier thread has a socket")
    finally:
        answered.set()
threading.Thread(target=earlier).start()
called = confine_calls()
asked.set()
answered.wait()
try:
    socket.socket()
except PermissionError:
    print(granted(calls=called, landlock=False))
"""
INSTRUCTION: Final = struct.Struct("<HBBI")


def confinable() -> bool:
    return os.uname().machine in {"x86_64", "aarch64"}


@pytest.mark.skipif(not confinable(), reason="filters are written for x86_64 and aarch64")
def test_an_engine_keeps_its_sockets_and_files_and_gets_no_others(tmp_path: Path) -> None:
    file, other = tmp_path / "file", tmp_path / "other"
    file.write_bytes(b"content")
    other.write_bytes(b"a device's key")
    done = run(
        [sys.executable, "-c", ENGINE, str(file), str(other)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "confined\n", done.stderr
    # abort() still works.
    assert done.returncode < 0
    assert sorted(tmp_path.iterdir()) == [file, other]
    assert file.read_bytes() == b"content"


@pytest.mark.skipif(not confinable(), reason="filters are written for x86_64 and aarch64")
def test_a_filter_of_one_thread_is_told_as_that() -> None:
    done = run([sys.executable, "-c", OLDER], capture_output=True, text=True, check=False)
    told = ["an earlier thread has a socket", "seccomp (one thread)"]
    assert done.stdout.splitlines() == told, done.stderr


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("profile", [call_filters.reader, call_filters.engine])
def test_a_filter_answers_every_call_on_either_machine(machine: str, profile: object) -> None:
    """Run filters in a small BPF interpreter; every path must end in the expected answer."""
    assert callable(profile)
    wanted = profile()
    code = seccomp.assemble(wanted.rules, wanted.otherwise, machine)
    column = ["x86_64", "aarch64"].index(machine)
    architecture = [0xC000003E, 0xC00000B7][column]
    for name, numbers in NUMBERS.items():
        if (number := numbers[column]) is not None:
            rule = wanted.rules.get(name, wanted.otherwise)
            if len(rule) == INSTRUCTION.size:
                assert answer(code, architecture, number) == INSTRUCTION.unpack(rule)[3], name
    refused = INSTRUCTION.unpack(seccomp.refuse())[3]
    allowed = INSTRUCTION.unpack(seccomp.ALLOW)[3]
    openat = NUMBERS["openat"][column]
    assert openat is not None
    assert answer(code, architecture, openat, 0, 0, os.O_RDONLY | os.O_CLOEXEC) == allowed
    for flags in (os.O_WRONLY, os.O_RDWR, 3, os.O_CREAT, os.O_TRUNC):
        assert answer(code, architecture, openat, 0, 0, flags) == refused
    fcntl, ioctl = NUMBERS["fcntl"][column], NUMBERS["ioctl"][column]
    assert fcntl is not None
    assert ioctl is not None
    assert [answer(code, architecture, fcntl, 3, command) for command in range(17)] == [
        refused if command in {8, 10, 15} else allowed for command in range(17)
    ]
    assert [answer(code, architecture, ioctl, 3, 0x8900 + request) for request in range(4)] == [
        refused if request in {1, 2} else allowed for request in range(4)
    ]
    # Another architecture's calls have other numbers: the process is killed.
    assert answer(code, architecture ^ 1, 0) == 0x80000000
    assert answer(code, architecture, 0x40000000) == refused


def answer(code: bytes, architecture: int, number: int, *arguments: int) -> int:
    """Return a filter's answer to a call."""
    data = struct.pack("<iIQ6Q", number, architecture, 0, *arguments, *[0] * (6 - len(arguments)))
    program = list(INSTRUCTION.iter_unpack(code))
    loaded = position = 0
    while True:
        operation, if_true, if_false, value = program[position]
        position += 1
        match operation:
            case 0x20:
                (loaded,) = struct.unpack_from("<I", data, value)
            case 0x06:
                return int(value)
            case 0x15:
                position += if_true if loaded == value else if_false
            case 0x35:
                position += if_true if loaded >= value else if_false
            case 0x45:
                position += if_true if loaded & value else if_false
            case _:
                raise AssertionError(operation)
