"""llama.cpp, through llama-cpp-python: GGUF files."""

from runtimes.llama_cpp.runtime import RUNTIME, LlamaCppRuntime

__all__ = ["RUNTIME", "LlamaCppRuntime"]
