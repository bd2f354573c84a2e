"""ONNX Runtime: tensors, classification, embeddings, and text generation in Optimum's layout."""

from runtimes.onnx.runtime import RUNTIME, OnnxRuntime

__all__ = ["RUNTIME", "OnnxRuntime"]
