import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import tensors
from agent.errors import ModelRefusedError
from artifact.manifest import Tensor
from runtimes.base import TensorSpec, TensorValue


@given(values=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=50))
def test_numbers_come_back(values: list[int]) -> None:
    packed = tensors.pack("x", "INT64", [len(values)], values)
    assert len(packed.data) == 8 * len(values)
    assert tensors.numbers(packed) == values


def test_nested_and_flat_are_the_same() -> None:
    nested = tensors.pack("x", "FP32", [2, 2], [[1, 2], [3, 4]])
    assert nested == tensors.pack("x", "FP32", [2, 2], [1, 2, 3, 4])


@pytest.mark.parametrize(
    ("datatype", "shape", "values", "message"),
    [
        ("BYTES", [1], ["a"], "unknown datatype"),
        ("FP32", [2], [1], "needs 2 values, not 1"),
        ("FP32", [-1], [1], "impossible shape"),
        ("FP32", [1] * 9, [1], "impossible shape"),
        ("FP32", [1 << 23], [], "the maximum is"),
        ("INT8", [1], [200], "not INT8"),
        ("INT8", [1], [1.5], "not INT8"),
        ("FP32", [1], ["a"], "not FP32"),
        ("FP32", [1], [None], "not FP32"),
        ("FP32", [1], [1e300], "not FP32"),
    ],
)
def test_what_does_not_fit_is_refused(
    datatype: str, shape: list[int], values: list[object], message: str
) -> None:
    with pytest.raises(ModelRefusedError, match=message):
        tensors.pack("x", datatype, shape, values)


def test_manifest_tensors_of_whole_numbers() -> None:
    tensor = Tensor(name="ids", datatype="INT64", shape=(2,), data=(1.0, 2.0))
    assert tensors.numbers(tensors.from_manifest(tensor)) == [1, 2]


def test_a_synthetic_input_fills_free_dimensions() -> None:
    value = tensors.synthetic(TensorSpec("x", "UINT8", (-1, 3)))
    assert value == TensorValue("x", "UINT8", (1, 3), bytes(3))
