"""System calls allowed to a reader of one file, and those denied to an engine."""

import errno
import mmap
import os
from typing import Final

from runtimes.confinement.seccomp import (
    ALLOW,
    Filter,
    Rule,
    only_equal,
    only_with_bit,
    refuse,
    unless_any_bit,
    unless_one_of,
)

# O_ACCMODE's bits, and flags that create or truncate a file.
_WRITING: Final = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_CLONE_THREAD: Final = 0x10000
# The C library then falls back to the older call, whose flags a filter can read.
_TAKE_THE_OLDER: Final = refuse(errno.ENOSYS)

_READ_ONLY: Final[dict[str, Rule]] = {
    "open": unless_any_bit(1, _WRITING),
    "openat": unless_any_bit(2, _WRITING),
    "openat2": _TAKE_THE_OLDER,
}

# With these, the kernel would signal another process when a file becomes readable. The first three
# are fcntl's F_SETOWN, F_SETSIG and F_SETOWN_EX, then ioctl's FIOSETOWN and SIOCSPGRP.
_NO_SIGNAL_OWNER: Final[dict[str, Rule]] = {
    "fcntl": unless_one_of(1, (8, 10, 15)),
    "ioctl": unless_one_of(1, (0x8901, 0x8902)),
}

_READING: Final = (
    *("read", "readv", "pread64", "lseek", "close", "write", "writev"),
    *("fstat", "stat", "lstat", "newfstatat", "statx", "readlink", "readlinkat"),
    *("munmap", "mremap", "brk", "madvise", "futex", "sched_yield", "getrandom", "clock_gettime"),
    *("rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack", "restart_syscall"),
    *("getpid", "gettid", "exit", "exit_group"),
)

_NEVER_FOR_ENGINES: Final = (
    # Only open sockets may be used.
    *("socket", "socketpair", "bind", "listen", "accept", "accept4", "connect"),
    # Nor the shared memory, queues and semaphores of a user, which outlast processes.
    *("shmget", "shmat", "shmctl", "semget", "semop", "semtimedop", "semctl"),
    *("msgget", "msgsnd", "msgrcv", "msgctl", "mq_open", "mq_unlink"),
    # No other programs or processes.
    *("execve", "execveat", "fork", "vfork", "ptrace", "process_vm_readv", "process_vm_writev"),
    *("pidfd_open", "pidfd_getfd", "pidfd_send_signal", "kill", "tkill"),
    *("rt_sigqueueinfo", "rt_tgsigqueueinfo"),
    # No change on the disk.
    *("creat", "mkdir", "mkdirat", "rmdir", "unlink", "unlinkat", "rename", "renameat"),
    *("renameat2", "link", "linkat", "symlink", "symlinkat", "mknod", "mknodat", "truncate"),
    *("chmod", "fchmod", "fchmodat", "fchmodat2", "chown", "fchown", "lchown", "fchownat"),
    *("utime", "utimes", "futimesat", "utimensat", "setxattr", "lsetxattr", "fsetxattr"),
    *("removexattr", "lremovexattr", "fremovexattr", "setxattrat", "removexattrat"),
    "file_setattr",
    # Ways around a filter, and calls that only root may make.
    *("io_uring_setup", "io_uring_enter", "io_uring_register", "userfaultfd", "bpf"),
    *("perf_event_open", "keyctl", "add_key", "request_key", "open_by_handle_at"),
    *("mount", "umount2", "pivot_root", "chroot", "unshare", "setns", "move_mount", "fsopen"),
    *("fsmount", "open_tree", "mount_setattr", "init_module", "finit_module", "delete_module"),
    *("kexec_load", "kexec_file_load", "reboot", "swapon", "swapoff"),
)


def reader() -> Filter:
    """Return the filter that allows only what reading a file takes."""
    no_code = unless_any_bit(2, mmap.PROT_EXEC)
    no_programs = {"mmap": no_code, "mprotect": no_code}
    rules = dict.fromkeys(_READING, ALLOW) | _READ_ONLY | _NO_SIGNAL_OWNER | no_programs
    return Filter(rules, otherwise=refuse())


def engine() -> Filter:
    """Return the filter that denies access to the outside world.

    An engine may map files, start threads and query the machine. Signals and limits are allowed for
    the calling process only.
    """
    rules = (
        dict.fromkeys(_NEVER_FOR_ENGINES, refuse())
        | _READ_ONLY
        | _NO_SIGNAL_OWNER
        | {
            "clone": only_with_bit(0, _CLONE_THREAD),
            "clone3": _TAKE_THE_OLDER,
            "tgkill": only_equal(0, os.getpid()),
            "prlimit64": only_equal(0, 0),
        }
    )
    return Filter(rules, otherwise=ALLOW)
