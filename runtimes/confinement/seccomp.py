"""Filters of system calls: a small assembler for seccomp's BPF, and their installation.

https://docs.kernel.org/userspace-api/seccomp_filter.html. A filter maps calls to rules and has one
answer for all others; it applies to the threads of this process and to those that they start.
"""

import ctypes
import errno
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from runtimes.confinement.call_numbers import NUMBERS

Rule = bytes

# Machine -> column of NUMBERS, AUDIT_ARCH_*.
_MACHINES: Final = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
# x86_64 accepts a second set of numbers (x32), marked by this bit.
_X32_BIT: Final = 0x40000000

_LOAD: Final = 0x20
_JUMP_IF_EQUAL: Final = 0x15
_JUMP_IF_AT_LEAST: Final = 0x35
_JUMP_IF_ANY_BIT: Final = 0x45
_RETURN: Final = 0x06
# Offsets in struct seccomp_data.
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16

_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_SET_SECCOMP: Final = 22
_FILTER_MODE: Final = 2
# Arguments of seccomp(2), which prctl(2) lacks: apply the filter to every thread.
_SET_FILTER: Final = 1
_ALL_THREADS: Final = 1


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("<HBBI", code, if_true, if_false, value)


def _argument(position: int) -> bytes:
    """Load the low half of an argument; flags and process ids fit into it."""
    return _instruction(_LOAD, _ARGUMENTS + 8 * position)


def refuse(with_errno: int = errno.EPERM) -> Rule:
    """Fail the call with this errno."""
    return _instruction(_RETURN, 0x00050000 | with_errno)


ALLOW: Final[Rule] = _instruction(_RETURN, 0x7FFF0000)
_KILL: Final[Rule] = _instruction(_RETURN, 0x80000000)


def unless_any_bit(position: int, bits: int) -> Rule:
    """Allow if this argument has none of these bits."""
    return _argument(position) + _instruction(_JUMP_IF_ANY_BIT, bits, if_false=1) + refuse() + ALLOW


def only_with_bit(position: int, bit: int) -> Rule:
    """Allow if this argument has this bit."""
    return _argument(position) + _instruction(_JUMP_IF_ANY_BIT, bit, if_true=1) + refuse() + ALLOW


def only_equal(position: int, value: int) -> Rule:
    """Allow if this argument has this value."""
    return _argument(position) + _instruction(_JUMP_IF_EQUAL, value, if_true=1) + refuse() + ALLOW


def unless_one_of(position: int, values: Sequence[int]) -> Rule:
    """Allow if this argument has none of these values."""
    # Instructions to skip from each comparison to the refusal at the end.
    distances = range(len(values), 0, -1)
    found = (
        _instruction(_JUMP_IF_EQUAL, value, if_true=to_refusal)
        for value, to_refusal in zip(values, distances, strict=True)
    )
    return _argument(position) + b"".join(found) + ALLOW + refuse()


def assemble(rules: Mapping[str, Rule], otherwise: Rule, machine: str) -> bytes:
    """Assemble a machine's filter: rules by the name of the call, one answer for all others."""
    column, architecture = _MACHINES[machine]
    program = (
        _instruction(_LOAD, _ARCHITECTURE)
        + _instruction(_JUMP_IF_EQUAL, architecture, if_true=1)
        + _KILL
        + _instruction(_LOAD, _NUMBER)
        + _instruction(_JUMP_IF_AT_LEAST, _X32_BIT, if_false=1)
        + refuse()
    )
    for name, rule in rules.items():
        number = NUMBERS[name][column]
        if number is not None:
            length = len(rule) // struct.calcsize("<HBBI")
            program += _instruction(_JUMP_IF_EQUAL, number, if_false=length) + rule
    return program + otherwise


@dataclass(frozen=True, slots=True)
class Filter:
    """Rules by call name, and the rule for all other calls."""

    rules: Mapping[str, Rule]
    otherwise: Rule


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


class Reach(StrEnum):
    """Threads that a filter applies to."""

    NOWHERE = ""
    # And threads started later.
    THIS_THREAD = "seccomp (one thread)"
    PROCESS = "seccomp"


def install(wanted: Filter) -> Reach:
    """Install a filter and return its reach; none on other machines, or where it is forbidden."""
    machine = os.uname().machine
    if machine not in _MACHINES or ctypes.sizeof(ctypes.c_void_p) != 8:  # noqa: PLR2004 - 64 bits
        return Reach.NOWHERE
    code = assemble(wanted.rules, wanted.otherwise, machine)
    program = _Program(len(code) // struct.calcsize("<HBBI"), code)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return Reach.NOWHERE
    call = NUMBERS["seccomp"][_MACHINES[machine][0]]
    if libc.syscall(call, _SET_FILTER, _ALL_THREADS, ctypes.byref(program)) == 0:
        return Reach.PROCESS
    # An outer sandbox may allow only the older call, which affects this thread alone.
    if libc.prctl(_PR_SET_SECCOMP, _FILTER_MODE, ctypes.byref(program), 0, 0) == 0:
        return Reach.THIS_THREAD
    return Reach.NOWHERE
