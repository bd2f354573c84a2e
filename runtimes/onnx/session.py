"""Opening an ONNX Runtime session: explicit provider, bounded threads, checked files."""

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnxruntime

from artifact.manifest import Task
from runtimes.base import LoadSpec, TensorSpec
from runtimes.errors import LoadError
from runtimes.onnx.allocator import returning_freed
from runtimes.onnx.inspect import check_external
from runtimes.onnx.memory import Loaded, measured
from runtimes.onnx.model_file import DATA_TYPES, read_model

# A model of one MatMul of a 1 x 1 matrix with itself, as onnx.helper serializes it.
_SMALLEST_MODEL = bytes.fromhex(
    "080812003a3f0a110a01780a017812017922064d61744d756c12005a130a0178120e0a0c080112080a0208010a02"
    "080162130a0179120e0a0c080112080a0208010a02080142040a00100d"
)
_ERRORS_ONLY = 3
# "tensor(float)" and so on, as ONNX Runtime names types.
_DATATYPES = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "float": "FP32",
    "double": "FP64",
}


def main_file(spec: LoadSpec) -> Path:
    """The model among a variant's files; LoadError unless there is one."""
    models = [path for name, path in spec.files.items() if name.endswith(".onnx")]
    if len(models) != 1:
        raise LoadError(
            f"the variant has {len(models)} .onnx files among {', '.join(sorted(spec.files))}",
            advice="Build it again from one exported model.",
        )
    return models[0]


def warm_up() -> None:
    """Opens a smallest session.

    The first of a process also brings in ONNX Runtime itself, about 8 MiB, which is no part of the
    model after it.
    """
    onnxruntime.InferenceSession(_SMALLEST_MODEL, providers=["CPUExecutionProvider"])


def open_session(spec: LoadSpec) -> tuple[Any, Loaded]:
    """An InferenceSession on the CPU, and the memory that it took; LoadError."""
    warm_up()
    return measured(spec, lambda: _open_session(spec))


def _open_session(spec: LoadSpec) -> Any:
    """The file is walked over before it is loaded."""
    path = main_file(spec)
    model = read_model(path)
    check_external(model, path, spec.files)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = spec.threads or len(os.sched_getaffinity(0))
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    # For passes of one shape it would plan a block, beside the memory that the first one took: of
    # an encoder, hundreds of megabytes.
    options.enable_mem_pattern = spec.task is not Task.EMBEDDING
    # Threads that still spin after a run take the cores from whoever is to carry its outputs away:
    # on two busy cores a third of all requests a second.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    with returning_freed(), contextlib.ExitStack() as stack:
        _add_external(options, sorted(model.external), spec, stack)
        try:
            return onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise LoadError(
                f"ONNX Runtime cannot load {path.name}: {str(error)[:1000]}",
                advice="Check it with `flotilla model inspect`; export it for an older opset.",
            ) from error


def _add_external(
    options: Any, names: Sequence[str], spec: LoadSpec, stack: contextlib.ExitStack
) -> None:
    """Weights beside the model are given as bytes: the store names files by digest, not as it.

    ONNX Runtime copies them, until the session is open: so long the stack keeps them.
    """
    import mmap

    buffers = []
    for name in names:
        file = stack.enter_context(spec.files[name].open("rb"))
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        buffers.append(stack.enter_context(mapped))
    if buffers:
        options.add_external_initializers_from_files_in_memory(
            list(names), buffers, [len(buffer) for buffer in buffers]
        )


def specs(values: Sequence[Any]) -> tuple[TensorSpec, ...]:
    """What a session says of its inputs or outputs."""
    return tuple(TensorSpec(value.name, datatype(value.type), _shape(value)) for value in values)


def datatype(onnx_type: str) -> str:
    """tensor(float) -> FP32; LoadError for what no tensor endpoint can carry."""
    name = onnx_type.removeprefix("tensor(").removesuffix(")")
    if name not in _DATATYPES:
        known = sorted({known for _, _, known in DATA_TYPES.values() if known})
        raise LoadError(
            f"the model has an input or output of type {onnx_type[:64]}",
            advice=f"Export it with tensors of {', '.join(known)}.",
        )
    return _DATATYPES[name]


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(size if isinstance(size, int) else -1 for size in value.shape)
