"""Inputs for models whose free dimensions have no known size: guesses, likely ones first."""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np

from runtimes.arrays import DTYPES
from runtimes.base import TensorSpec

Arrays = dict[str, Any]

# A device sends no larger synthetic tensor (agent.tensors.MAX_ELEMENTS).
MAX_VALUES: Final = 1 << 22
# Sizes of free dimensions: images first by common training sizes, other inputs from a short text or
# signal to an audio window (Silero reads 512 or 576 samples).
_IMAGE_SIZES: Final = (320, 224, 640, 256, 512, 128, 96, 64, 48, 32, 28, 16, 8, 1)
_OTHER_SIZES: Final = (16, 1, 2, 4, 8, 32, 64, 80, 128, 256, 512, 576, 1024, 1536, 4000, 16000)
_IMAGE_RANK: Final = 4
# More combinations of "one" and "the size" would take minutes.
_MAX_COMBINED: Final = 6
_SEED: Final = 0
# Largest value of generated integers, by attempt. Small ones fit any vocabulary; 0 fits any table.
_INTEGER_LIMITS: Final = (9, 1, 0)


def candidate_inputs(specs: Sequence[TensorSpec]) -> Iterator[Arrays]:
    """Yield inputs by name that fit the specs, each free dimension with some size."""
    seen = set()
    for limit, shapes in itertools.product(_INTEGER_LIMITS, candidate_shapes(specs)):
        key = (limit, tuple(shapes.values()))
        if key not in seen:
            seen.add(key)
            yield inputs_of(specs, shapes, limit)


def candidate_shapes(specs: Sequence[TensorSpec]) -> Iterator[dict[str, tuple[int, ...]]]:
    """Yield sizes for all dimensions of all inputs.

    First with a batch of 1 and one size for every other free dimension, then with each free
    dimension either 1 or that size: dimensions that must agree have the same size in one of them.
    """
    free = [(spec.name, axis) for spec in specs for axis, size in enumerate(spec.shape) if size < 0]
    if not free:
        yield {spec.name: spec.shape for spec in specs}
        return
    images = any(len(spec.shape) == _IMAGE_RANK and -1 in spec.shape[2:] for spec in specs)
    sizes = _IMAGE_SIZES if images else _OTHER_SIZES
    batch_of_one = [axis == 0 for _, axis in free]
    combined = free[:_MAX_COMBINED]
    masks = [
        mask + (False,) * (len(free) - len(combined))
        for mask in itertools.product((True, False), repeat=len(combined))
    ]
    for size in sizes:
        yield from _filled(specs, free, batch_of_one, size)
    for size, mask in itertools.product(sizes, masks):
        yield from _filled(specs, free, mask, size)


def _filled(
    specs: Sequence[TensorSpec], free: Sequence[tuple[str, int]], ones: Sequence[bool], size: int
) -> Iterator[dict[str, tuple[int, ...]]]:
    chosen = {place: 1 if one else size for place, one in zip(free, ones, strict=True)}
    shapes = {
        spec.name: tuple(chosen.get((spec.name, axis), n) for axis, n in enumerate(spec.shape))
        for spec in specs
    }
    if all(math.prod(shape) <= MAX_VALUES for shape in shapes.values()):
        yield shapes


def inputs_of(
    specs: Sequence[TensorSpec], shapes: dict[str, tuple[int, ...]], integer_limit: int
) -> Arrays:
    """Return seeded random inputs: reals in [0, 1), integers up to a limit, masks all ones."""
    random = np.random.default_rng(_SEED)
    return {spec.name: _values(random, spec, shapes[spec.name], integer_limit) for spec in specs}


def _values(
    random: np.random.Generator, spec: TensorSpec, shape: tuple[int, ...], integer_limit: int
) -> Any:
    if spec.datatype.startswith("FP"):
        return random.random(shape).astype(DTYPES[spec.datatype])
    if spec.datatype == "BOOL" or "mask" in spec.name.lower():
        # A mask with zeros may leave a softmax without any value, which gives NaN.
        return np.ones(shape, DTYPES[spec.datatype])
    return random.integers(0, integer_limit, shape, endpoint=True).astype(DTYPES[spec.datatype])
