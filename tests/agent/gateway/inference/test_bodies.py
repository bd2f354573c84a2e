"""Tensors as JSON numbers, of every type and size."""

import pytest
from msgspec import json

from agent import tensors
from agent.gateway.inference import bodies as tensor_bodies
from agent.gateway.inference.bodies import PART_BYTES
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
