"""Choose the engine for an ONNX model by its task."""

from artifact.manifest import Task
from runtimes.base import Engine, LoadSpec
from runtimes.onnx.embedding import OnnxEmbeddingEngine
from runtimes.onnx.tensors import OnnxTensorEngine
from runtimes.onnx.text import OnnxTextEngine


def load(spec: LoadSpec) -> Engine:
    """Load the engine for the task; raise LoadError or UnsafeFileError."""
    match spec.task:
        case Task.TEXT_GENERATION:
            return OnnxTextEngine(spec)
        case Task.EMBEDDING:
            return OnnxEmbeddingEngine(spec)
        case Task.CLASSIFICATION | Task.TENSOR:
            return OnnxTensorEngine(spec)
