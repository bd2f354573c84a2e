"""Open an ONNX Runtime session: explicit provider, bounded threads, checked files."""

import contextlib
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
from runtimes.onnx.model_file import read_model
from runtimes.processor.threads import compute_threads

# A model of one MatMul of a 1 x 1 matrix with itself, as onnx.helper serializes it.
_SMALLEST_MODEL = bytes.fromhex(
    "080812003a3f0a110a01780a017812017922064d61744d756c12005a130a0178120e0a0c080112080a0208010a02"
    "080162130a0179120e0a0c080112080a0208010a02080142040a00100d"
)
_ERRORS_ONLY = 3
# ONNX Runtime's names of element types, as in "tensor(float)".
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
    """Return the model among a variant's files; raise LoadError unless there is exactly one."""
    models = [path for name, path in spec.files.items() if name.endswith(".onnx")]
    if len(models) != 1:
        raise LoadError(
            f"the variant has {len(models)} .onnx files among {', '.join(sorted(spec.files))}",
            advice="Build it again from one exported model.",
        )
    return models[0]


def warm_up() -> None:
    """Open a session with a minimal model.

    The first session of a process also initializes ONNX Runtime, about 8 MiB, which must not count
    as memory of the real model.
    """
    onnxruntime.InferenceSession(_SMALLEST_MODEL, providers=["CPUExecutionProvider"])


def open_session(spec: LoadSpec) -> tuple[Any, Loaded]:
    """Return an InferenceSession on the CPU and the memory that it took; raise LoadError."""
    warm_up()
    return measured(spec, lambda: _open_session(spec))


def _open_session(spec: LoadSpec) -> Any:
    """Open the session after the bounded reader has accepted the file."""
    path = main_file(spec)
    model = read_model(path)
    check_external(model, path, spec.files)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = spec.threads or compute_threads()
    # Nodes run one after the other: parallel branches would compete for the same threads.
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    # The memory pattern plans one block per shape, beside the memory that the first run took: with
    # an encoder's many shapes, hundreds of megabytes.
    options.enable_mem_pattern = spec.task is not Task.EMBEDDING
    # Threads that still spin after a run take the cores from the threads that send its outputs: on
    # two busy cores that cost a third of the requests per second.
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
    """Pass external weights as buffers, because the store names files by digest.

    ONNX Runtime copies them while it opens the session; ``stack`` keeps them mapped until then.
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
    """Return the specs of a session's inputs or outputs."""
    return tuple(TensorSpec(value.name, datatype(value.type), _shape(value)) for value in values)


def datatype(onnx_type: str) -> str:
    """Translate a type, as tensor(float) to FP32; raise LoadError if the protocol lacks it."""
    name = onnx_type.removeprefix("tensor(").removesuffix(")")
    if name not in _DATATYPES:
        raise LoadError(
            f"the model has an input or output of type {onnx_type[:64]}, which devices cannot "
            "serve",
            advice="Move text, sequences and maps outside the model: export it with tensors of "
            f"{', '.join(sorted(_DATATYPES.values()))}.",
        )
    return _DATATYPES[name]


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(size if isinstance(size, int) else -1 for size in value.shape)
