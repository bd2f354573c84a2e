"""One call of llama_decode: tokens of several sequences with their positions."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import llama_cpp
import numpy as np


@dataclass(frozen=True, slots=True)
class Part:
    """Consecutive tokens of a sequence, the first at ``position``.

    ``logits`` are computed for the last token, for all, or for "none".
    """

    sequence: int
    position: int
    tokens: Sequence[int]
    logits: str = "last"


class Batch:
    """Arrays for a number of tokens, which llama.cpp reads in place."""

    def __init__(self, room: int) -> None:
        self._tokens = np.zeros(room, np.int32)
        self._positions = np.zeros(room, np.int32)
        self._counts = np.ones(room, np.int32)
        self._sequences = np.zeros(room, np.int32)
        self._logits = np.zeros(room, np.int8)
        # llama.cpp takes a list of sequences per token; each list has one entry here.
        first = self._sequences.ctypes.data
        self._lists = np.arange(first, first + 4 * room, 4, dtype=np.uintp)
        self.native = llama_cpp.llama_batch(
            n_tokens=0,
            token=_pointer(self._tokens, ctypes.c_int32),
            embd=None,
            pos=_pointer(self._positions, ctypes.c_int32),
            n_seq_id=_pointer(self._counts, ctypes.c_int32),
            seq_id=_pointer(self._lists, ctypes.POINTER(ctypes.c_int32)),
            logits=_pointer(self._logits, ctypes.c_int8),
        )

    def fill(self, parts: Sequence[Part]) -> None:
        """Store the parts in their order."""
        begin = 0
        for part in parts:
            count = len(part.tokens)
            last = begin + count - 1
            if count == 1:
                # The common case of one token; slices cost several times as much.
                self._tokens[last] = part.tokens[0]
                self._positions[last] = part.position
                self._sequences[last] = part.sequence
            else:
                span = slice(begin, begin + count)
                self._tokens[span] = part.tokens
                self._positions[span] = np.arange(part.position, part.position + count)
                self._sequences[span] = part.sequence
                self._logits[span] = part.logits == "all"
            self._logits[last] = part.logits != "none"
            begin += count
        self.native.n_tokens = begin


def _pointer(array: Any, kind: Any) -> Any:
    return array.ctypes.data_as(ctypes.POINTER(kind))
