"""Tensors as JSON numbers, of every type and size."""

import math
from json import dumps, loads

import pytest
from msgspec import json

from agent import tensors
from agent.gateway.inference import bodies as tensor_bodies
from agent.gateway.inference.bodies import PART_BYTES
from agent.gateway.refusals import RequestRefusedError
from agent.gateway.schemas import InferRequest
from runtimes.base import TensorValue

REQUEST = json.decode(
    b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}]}',
    type=InferRequest,
)


@pytest.mark.parametrize("size", [0, 1, 3])
@pytest.mark.parametrize("datatype", ["BOOL", "FP16", "FP32", "INT64"])
def test_a_large_tensor_is_written_in_parts_between_which_others_run(
    datatype: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = (bytes(range(1, 61)) * (PART_BYTES // 40))[: 8 + size * PART_BYTES // 2]
    output = TensorValue("y", datatype, (), data if size else b"")
    values = tensors.numbers(output)
    lengths = []

    def watched(part: TensorValue) -> list[object]:
        lengths.append(len(part.data))
        return numbers(part)

    numbers = tensors.numbers
    monkeypatch.setattr(tensor_bodies.tensors, "numbers", watched)
    body, length = tensor_bodies.write({"id": "mine"}, [output], REQUEST)
    assert length == len(body)
    assert body == json.encode(
        {
            "id": "mine",
            "outputs": [{"name": "y", "datatype": datatype, "shape": [], "data": values}],
        }
    )
    assert sum(lengths) == len(output.data)
    assert max(lengths) <= PART_BYTES


NOT_FINITE = (math.nan, math.inf, -math.inf, 1.5)


@pytest.mark.parametrize("datatype", ["FP16", "FP32", "FP64"])
def test_nan_and_infinities_are_written_as_the_protocols_clients_read_them(datatype: str) -> None:
    output = tensors.pack("y", datatype, [4], NOT_FINITE)
    body, _ = tensor_bodies.write({}, [output], REQUEST)
    assert b"[NaN,Infinity,-Infinity,1.5]" in body
    assert repr(loads(body)["outputs"][0]["data"]) == repr([*NOT_FINITE])


def test_nan_and_infinities_are_read_as_pythons_clients_write_them() -> None:
    tensor = {"name": "x", "shape": [4], "datatype": "FP32", "data": [*NOT_FINITE]}
    _, (value,) = tensor_bodies.read(dumps({"inputs": [tensor]}).encode(), "")
    assert isinstance(value, TensorValue)
    assert repr(tensors.numbers(value)) == repr([*NOT_FINITE])


@pytest.mark.parametrize(
    "body", [b'{"inputs": NaN}', b"NaN", b'{"inputs": [NaN', b"[" * 99999 + b"NaN"]
)
def test_a_body_that_is_not_valid_stays_invalid_with_nan(body: bytes) -> None:
    with pytest.raises(RequestRefusedError, match="not valid"):
        tensor_bodies.read(body, "")
