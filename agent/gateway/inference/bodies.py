"""Tensors in the bodies of infer requests and answers: JSON numbers, or bytes after the JSON.

The second form is the protocol's binary tensor data extension. The field
``Inference-Header-Content-Length`` is the length of the JSON:
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

import json
import math
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
# Bytes of a tensor that are encoded at once; a multiple of every datatype's size.
PART_BYTES: Final = 64 << 10


def read(
    body: bytes, header_length: str, rest: Span | None = None
) -> tuple[InferRequest, list[TensorValue | PlacedTensor]]:
    """Decode a request and its tensors.

    ``header_length`` is the text of Inference-Header-Content-Length, empty if absent. The bytes
    after the JSON are in ``rest`` or, if that is None, in ``body``. Raises RequestRefusedError or
    ModelRefusedError.
    """
    end = json_end(body, header_length)
    request = _decode(body[:end])
    inputs: list[TensorValue | PlacedTensor] = []
    whole = len(body) + (rest.length if rest else 0)
    for tensor in request.inputs:
        size = tensor.parameters.binary_data_size
        if size is None:
            inputs.append(_from_numbers(tensor))
            continue
        if tensor.data is not None or end + size > whole:
            raise _refused(
                f"input {tensor.name!a} has a binary_data_size of {size}; expected at most "
                f"{whole - end}, the bytes left after the JSON, and no data in the JSON"
            )
        tensors.check_size(tensor.name, tensor.datatype, tensor.shape, size)
        described = tensor.name, tensor.datatype, tuple(tensor.shape)
        if rest is None:
            inputs.append(TensorValue(*described, body[end : end + size]))
        else:
            inputs.append(PlacedTensor(*described, rest, end - len(body), size))
        end += size
    if end != whole:
        raise _refused(f"{whole - end} bytes after the JSON belong to no input")
    return request, inputs


def write(
    answer: dict[str, Any], outputs: list[TensorValue], request: InferRequest
) -> tuple[bytes, int]:
    """Encode an answer; return the body and the length of its JSON.

    Outputs requested as bytes follow the JSON.
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
    """Encode a tensor's values as a JSON array.

    In parts, because the encoder holds the interpreter's lock while it writes one.
    """
    starts = range(0, max(len(tensor.data), 1), PART_BYTES)
    parts = (replace(tensor, data=tensor.data[at : at + PART_BYTES]) for at in starts)
    encoded = (_encode(tensors.numbers(part)) for part in parts)
    # Each part is an array: join the contents without the brackets.
    return msgspec.Raw(b"[%b]" % b",".join(part[1:-1] for part in encoded))


def _encode(values: list[Any]) -> bytes:
    """Encode values as a JSON array; NaN and infinities as Triton's server does.

    ``NaN``, ``Infinity`` and ``-Infinity`` are an extension of JSON that Python's and Triton's
    parsers read. msgspec would write null for all three.
    """
    # A sum is finite only if all values are, and is a hundred times faster than testing each.
    if math.isfinite(sum(values)):
        return msgspec.json.encode(values)
    return json.dumps(values, separators=(",", ":")).encode()


def _decode(head: bytes) -> InferRequest:
    """Decode a request's JSON, in which numbers may be NaN, Infinity or -Infinity."""
    try:
        return decode(head, InferRequest)
    except RequestRefusedError:
        if b"NaN" not in head and b"Infinity" not in head:
            raise
    try:
        return msgspec.convert(json.loads(head), InferRequest)
    except (ValueError, RecursionError) as error:
        raise _refused(f"the body is not valid: {str(error)[:500]}") from None


def is_binary(output: TensorValue, request: InferRequest) -> bool:
    """Return True if an output was requested as bytes."""
    for wanted in request.outputs:
        if wanted.name == output.name and wanted.parameters.binary_data is not None:
            return wanted.parameters.binary_data
    return request.parameters.binary_data_output


def json_end(body: bytes, header_length: str) -> int:
    """Return the length of the JSON in a body; raise RequestRefusedError for an invalid one."""
    if not header_length:
        return len(body)
    if not header_length.isdecimal() or len(header_length) > MAX_DIGITS:
        raise _refused(
            f"Inference-Header-Content-Length is {header_length[:40]!a}; expected a number of bytes"
        )
    if int(header_length) > len(body):
        raise _refused(
            f"Inference-Header-Content-Length is {header_length}; the body has {len(body)} bytes"
        )
    return int(header_length)


def _from_numbers(tensor: InferInput) -> TensorValue:
    if tensor.data is None:
        raise _refused(f"input {tensor.name!a} has neither data nor a binary_data_size")
    return tensors.pack(tensor.name, tensor.datatype, tensor.shape, tensor.data)


def _refused(message: str) -> RequestRefusedError:
    return RequestRefusedError(HTTPStatus.BAD_REQUEST, "invalid_value", message, param="inputs")
