"""Tensors in the bodies of infer requests and answers: JSON numbers, or bytes after the JSON.

The second is the protocol's binary tensor data extension, where the header
``Inference-Header-Content-Length`` says where the JSON ends:
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

from dataclasses import replace
from http import HTTPStatus
from typing import Any, Final

import msgspec

from agent import tensors
from agent.gateway.refusals import RequestRefusedError
from agent.gateway.schemas import InferInput, InferRequest, decode
from agent.supervisor.sharing import PlacedTensor
from agent.worker.region import Span
from runtimes.base import TensorValue

EXTENSION: Final = "binary_tensor_data"
MAX_DIGITS: Final = 12
# Of a tensor that is written at once; whole values of every datatype.
PART_BYTES: Final = 64 << 10


def read(
    body: bytes, header_length: str, rest: Span | None = None
) -> tuple[InferRequest, list[TensorValue | PlacedTensor]]:
    """A request and its tensors; ``header_length`` is the header's text, empty without one.

    What follows the JSON is in ``rest`` or, without one, in ``body``. Raises RequestRefusedError
    or ModelRefusedError.
    """
    end = json_end(body, header_length)
    request = decode(body[:end], InferRequest)
    inputs: list[TensorValue | PlacedTensor] = []
    whole = len(body) + (rest.length if rest else 0)
    for tensor in request.inputs:
        size = tensor.parameters.binary_data_size
        if size is None:
            inputs.append(_from_numbers(tensor))
            continue
        if tensor.data is not None or end + size > whole:
            raise _refused(
                f"input {tensor.name!a} says that {size} bytes of it follow; "
                f"{whole - end} do, or its data is in the JSON too"
            )
        tensors.check_size(tensor.name, tensor.datatype, tensor.shape, size)
        described = tensor.name, tensor.datatype, tuple(tensor.shape)
        if rest is None:
            inputs.append(TensorValue(*described, body[end : end + size]))
        else:
            inputs.append(PlacedTensor(*described, rest, end - len(body), size))
        end += size
    if end != whole:
        raise _refused(f"{whole - end} bytes follow that belong to no input")
    return request, inputs


def write(
    answer: dict[str, Any], outputs: list[TensorValue], request: InferRequest
) -> tuple[bytes, int]:
    """An answer's body with these outputs, and the length of its JSON.

    What was asked for as bytes follows.
    """
    shown: list[dict[str, object]] = []
    raw: list[bytes | memoryview] = []
    for tensor in outputs:
        described: dict[str, object] = {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": list(tensor.shape),
        }
        if is_binary(tensor, request):
            described["parameters"] = {"binary_data_size": len(tensor.data)}
            raw.append(tensor.data)
        else:
            described["data"] = _in_numbers(tensor)
        shown.append(described)
    head = msgspec.json.encode({**answer, "outputs": shown})
    return b"".join((head, *raw)), len(head)


def _in_numbers(tensor: TensorValue) -> msgspec.Raw:
    """Its values as JSON. Part by part: while one is written no other thread runs."""
    starts = range(0, max(len(tensor.data), 1), PART_BYTES)
    some = (replace(tensor, data=tensor.data[at : at + PART_BYTES]) for at in starts)
    parts = (msgspec.json.encode(tensors.numbers(part)) for part in some)
    return msgspec.Raw(b"[%b]" % b",".join(part[1:-1] for part in parts))


def is_binary(output: TensorValue, request: InferRequest) -> bool:
    """Whether an output was asked for as bytes."""
    for wanted in request.outputs:
        if wanted.name == output.name and wanted.parameters.binary_data is not None:
            return wanted.parameters.binary_data
    return request.parameters.binary_data_output


def json_end(body: bytes, header_length: str) -> int:
    """How much of a body is JSON; RequestRefusedError."""
    if not header_length:
        return len(body)
    if not header_length.isdecimal() or len(header_length) > MAX_DIGITS:
        raise _refused(f"Inference-Header-Content-Length is {header_length[:40]!a}, no length")
    if int(header_length) > len(body):
        raise _refused(
            f"Inference-Header-Content-Length is {header_length}, the body has {len(body)} bytes"
        )
    return int(header_length)


def _from_numbers(tensor: InferInput) -> TensorValue:
    if tensor.data is None:
        raise _refused(f"input {tensor.name!a} has neither data nor a binary_data_size")
    return tensors.pack(tensor.name, tensor.datatype, tensor.shape, tensor.data)


def _refused(message: str) -> RequestRefusedError:
    return RequestRefusedError(HTTPStatus.BAD_REQUEST, "invalid_value", message, param="inputs")
