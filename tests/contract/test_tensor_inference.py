"""Contract of tensor engines."""

import array
from dataclasses import replace

import pytest

from runtimes.base import Engine, Sampling, TensorValue
from runtimes.errors import InvalidInputError, UnsupportedModelError
from runtimes.text.steps import whole


def rows(engine: Engine, count: int) -> TensorValue:
    """Return ``count`` rows for the engine's only input."""
    (spec,), _ = engine.tensors()
    width = spec.shape[1]
    values = array.array("f", [n % 7 / 7 for n in range(count * width)])
    return TensorValue(spec.name, spec.datatype, (count, width), values.tobytes())


@pytest.mark.parametrize("count", [0, 1, 5])
def test_rows_in_rows_out(tensor_engine: Engine, count: int) -> None:
    (output,) = tensor_engine.infer([rows(tensor_engine, count)])
    _, (declared,) = tensor_engine.tensors()
    assert output.name == declared.name
    assert output.datatype == declared.datatype
    assert output.shape == (count, declared.shape[1])
    assert len(output.data) == 4 * count * declared.shape[1]


def test_inputs_may_be_views_of_memory_that_is_not_theirs(tensor_engine: Engine) -> None:
    value = rows(tensor_engine, 3)
    view = replace(value, data=memoryview(bytearray(value.data)).toreadonly())
    assert tensor_engine.infer([view]) == tensor_engine.infer([value])


def test_a_row_does_not_depend_on_the_rows_beside_it(tensor_engine: Engine) -> None:
    batch = rows(tensor_engine, 3)
    size = len(batch.data) // 3
    last = replace(batch, shape=(1, batch.shape[1]), data=batch.data[2 * size :])
    together = array.array("f", tensor_engine.infer([batch])[0].data)
    alone = array.array("f", tensor_engine.infer([last])[0].data)
    assert alone.tolist() == pytest.approx(together[-len(alone) :].tolist(), abs=0.05)


@pytest.mark.parametrize(
    "change",
    [
        {"name": "other"},
        {"datatype": "INT64"},
        {"datatype": "BYTES"},
        {"shape": (2,)},
        {"shape": (2, 3)},
        {"shape": (-1, 64)},
        {"data": b""},
        {"data": b"\0" * 4},
    ],
)
def test_inputs_that_are_not_as_declared_are_refused(
    tensor_engine: Engine, change: dict[str, object]
) -> None:
    with pytest.raises(InvalidInputError):
        tensor_engine.infer([replace(rows(tensor_engine, 2), **change)])


def test_missing_and_repeated_inputs_are_refused(tensor_engine: Engine) -> None:
    value = rows(tensor_engine, 1)
    for inputs in ([], [value, value]):
        with pytest.raises(InvalidInputError):
            tensor_engine.infer(inputs)


def test_text_is_not_what_a_tensor_model_takes(tensor_engine: Engine) -> None:
    with pytest.raises(UnsupportedModelError):
        tensor_engine.generate("Hello", Sampling())
    with pytest.raises(UnsupportedModelError):
        tensor_engine.render_chat([{"role": "user", "content": "Hello"}])
    with pytest.raises(UnsupportedModelError):
        whole(tensor_engine.score("Hello there"))
