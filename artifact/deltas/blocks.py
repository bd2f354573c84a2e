"""Fields of the quantized block formats, as ggml-common.h lays them out.

A weight is ``quant * scale + offset``. Each format is split into the fields that give scales and
offsets and into its quants, and joined to the same bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

# An array of uint8; numpy's stubs give `quants & 15` a wider type.
Bytes = NDArray[Any]
Floats = NDArray[np.float32]


class BlockFormat(Protocol):
    """Layout of one block format; arrays have one row per block."""

    @property
    def block_bytes(self) -> int: ...

    @property
    def largest_quant(self) -> int: ...

    def split(self, blocks: Bytes) -> tuple[list[NDArray[Any]], Bytes]:
        """Split blocks into scale fields and quants: (blocks, scales, weights per scale)."""

    def join(self, fields: Sequence[NDArray[Any]], quants: Bytes) -> Bytes:
        """Join fields and quants to blocks, the inverse of ``split``."""

    def affine(self, fields: Sequence[NDArray[Any]]) -> tuple[Floats, Floats]:
        """Return scale and offset of every run of weights, of shape (blocks, scales)."""

    def quants_of(self, count: int) -> tuple[int, int, int]:
        """Return the shape of the quants of ``count`` blocks."""


def _half(field: NDArray[Any]) -> Floats:
    """Convert a field of f16 to float32."""
    return field.view("<f2").astype(np.float32)


def _wide(blocks: Bytes, start: int) -> NDArray[Any]:
    return np.ascontiguousarray(blocks[:, start : start + 2]).view("<u2")


@dataclass(frozen=True)
class Q4Block:
    """Q4_0: one scale and 32 quants of 4 bits around 8."""

    block_bytes: int = 18
    largest_quant: int = 15

    def split(self, blocks: Bytes) -> tuple[list[NDArray[Any]], Bytes]:
        packed = blocks[:, 2:]
        quants = np.concatenate((packed & 15, packed >> 4), axis=1)
        return [_wide(blocks, 0)], quants.reshape(self.quants_of(len(blocks)))

    def join(self, fields: Sequence[NDArray[Any]], quants: Bytes) -> Bytes:
        flat = quants.reshape(-1, 32)
        packed = flat[:, :16] | flat[:, 16:] << 4
        return np.concatenate((fields[0].view(np.uint8), packed), axis=1)

    def affine(self, fields: Sequence[NDArray[Any]]) -> tuple[Floats, Floats]:
        scale = _half(fields[0])
        return scale, scale * np.float32(-8)

    def quants_of(self, count: int) -> tuple[int, int, int]:
        return count, 1, 32


@dataclass(frozen=True)
class Q8Block:
    """Q8_0: one scale and 32 signed quants of 8 bits, here counted from -128."""

    block_bytes: int = 34
    largest_quant: int = 255

    def split(self, blocks: Bytes) -> tuple[list[NDArray[Any]], Bytes]:
        return [_wide(blocks, 0)], (blocks[:, 2:] ^ 128).reshape(self.quants_of(len(blocks)))

    def join(self, fields: Sequence[NDArray[Any]], quants: Bytes) -> Bytes:
        return np.concatenate((fields[0].view(np.uint8), quants.reshape(-1, 32) ^ 128), axis=1)

    def affine(self, fields: Sequence[NDArray[Any]]) -> tuple[Floats, Floats]:
        scale = _half(fields[0])
        return scale, scale * np.float32(-128)

    def quants_of(self, count: int) -> tuple[int, int, int]:
        return count, 1, 32


def _split_scales(packed: Bytes) -> tuple[Bytes, Bytes]:
    """Unpack eight scales and eight minima of 6 bits from the 12 bytes of Q4_K and Q5_K."""
    scales, minima, low = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    return (
        np.concatenate((scales & 63, low & 15 | scales >> 6 << 4), axis=1),
        np.concatenate((minima & 63, low >> 4 | minima >> 6 << 4), axis=1),
    )


def _join_scales(scales: Bytes, minima: Bytes) -> Bytes:
    scales, minima = scales & 63, minima & 63
    return np.concatenate(
        (
            scales[:, :4] | scales[:, 4:] >> 4 << 6,
            minima[:, :4] | minima[:, 4:] >> 4 << 6,
            scales[:, 4:] & 15 | (minima[:, 4:] & 15) << 4,
        ),
        axis=1,
    )


@dataclass(frozen=True)
class Q4KBlock:
    """Q4_K: f16 scale of scales and of minima, 8 of each, 8 runs of 32 quants of 4 bits."""

    block_bytes: int = 144
    largest_quant: int = 15

    def split(self, blocks: Bytes) -> tuple[list[NDArray[Any]], Bytes]:
        scales, minima = _split_scales(blocks[:, 4:16])
        packed = blocks[:, 16:].reshape(-1, 4, 1, 32)
        quants = np.concatenate((packed & 15, packed >> 4), axis=2)
        fields = [_wide(blocks, 0), _wide(blocks, 2), scales, minima]
        return fields, quants.reshape(self.quants_of(len(blocks)))

    def join(self, fields: Sequence[NDArray[Any]], quants: Bytes) -> Bytes:
        pairs = quants.reshape(-1, 4, 2, 32)
        packed = (pairs[:, :, 0] | pairs[:, :, 1] << 4).reshape(-1, 128)
        return np.concatenate((*_k_header(fields), packed), axis=1)

    def affine(self, fields: Sequence[NDArray[Any]]) -> tuple[Floats, Floats]:
        scale, minimum, scales, minima = fields
        return _half(scale) * scales.astype(np.float32), _half(minimum) * -minima.astype(np.float32)

    def quants_of(self, count: int) -> tuple[int, int, int]:
        return count, 8, 32


def _k_header(fields: Sequence[NDArray[Any]]) -> tuple[Bytes, Bytes, Bytes]:
    scale, minimum, scales, minima = fields
    return scale.view(np.uint8), minimum.view(np.uint8), _join_scales(scales, minima)


@dataclass(frozen=True)
class Q5KBlock(Q4KBlock):
    """Q5_K: like Q4_K, and the fifth bit of every quant in 32 bytes, one bit of each per run."""

    block_bytes: int = 176
    largest_quant: int = 31

    def split(self, blocks: Bytes) -> tuple[list[NDArray[Any]], Bytes]:
        fields, quants = super().split(np.delete(blocks, np.s_[16:48], axis=1))
        runs = np.arange(8, dtype=np.uint8).reshape(1, 8, 1)
        return fields, quants | (blocks[:, np.newaxis, 16:48] >> runs & 1) << 4

    def join(self, fields: Sequence[NDArray[Any]], quants: Bytes) -> Bytes:
        runs = np.arange(8, dtype=np.uint8).reshape(1, 8, 1)
        fifth = np.bitwise_or.reduce(quants >> 4 << runs, axis=1)
        without = super().join(fields, quants & 15)
        return np.concatenate((without[:, :16], fifth, without[:, 16:]), axis=1)


@dataclass(frozen=True)
class Q6KBlock:
    """Q6_K: 16 runs of 16 quants of 6 bits around 32, a signed scale each, one f16 over them."""

    block_bytes: int = 210
    largest_quant: int = 63

    def split(self, blocks: Bytes) -> tuple[list[NDArray[Any]], Bytes]:
        low = blocks[:, :128].reshape(-1, 2, 1, 64)
        low = np.concatenate((low & 15, low >> 4), axis=2).reshape(-1, 2, 4, 32)
        shifts = np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1)
        high = blocks[:, 128:192].reshape(-1, 2, 1, 32) >> shifts & 3
        quants = (low | high << 4).reshape(self.quants_of(len(blocks)))
        return [_wide(blocks, 208), np.ascontiguousarray(blocks[:, 192:208])], quants

    def join(self, fields: Sequence[NDArray[Any]], quants: Bytes) -> Bytes:
        halves = quants.reshape(-1, 2, 4, 32)
        low = (halves & 15).reshape(-1, 2, 2, 64)
        shifts = np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1)
        high = np.bitwise_or.reduce(halves >> 4 << shifts, axis=2)
        packed = (low[:, :, 0] | low[:, :, 1] << 4).reshape(-1, 128)
        scale, scales = fields
        return np.concatenate((packed, high.reshape(-1, 64), scales, scale.view(np.uint8)), axis=1)

    def affine(self, fields: Sequence[NDArray[Any]]) -> tuple[Floats, Floats]:
        scale = _half(fields[0]) * fields[1].view(np.int8).astype(np.float32)
        return scale, scale * np.float32(-32)

    def quants_of(self, count: int) -> tuple[int, int, int]:
        return count, 16, 16


# Layout numbers in a delta. A new format gets a new number; an old one never changes.
QUANTIZED: Final[dict[int, BlockFormat]] = {
    1: Q4Block(),
    2: Q8Block(),
    3: Q4KBlock(),
    4: Q5KBlock(),
    5: Q6KBlock(),
}
