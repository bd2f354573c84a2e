"""LoRA adapters in GGUF: recognition, and the check against a base."""

import math
from typing import Final

from runtimes.base import Inspection
from runtimes.errors import UnsupportedModelError

MAX_RANK: Final = 1024
_A: Final = ".lora_a"
_B: Final = ".lora_b"
# Its rows are the vocabulary, and llama.cpp expects its adapter transposed.
_EMBEDDING: Final = "token_embd.weight"


def check_adapter(adapter: Inspection, base: Inspection) -> None:
    """Raise UnsupportedModelError unless the file is a LoRA for tensors of this base."""
    kind, form = (adapter.metadata.get(key) for key in ("general.type", "adapter.type"))
    if (kind, form) != ("adapter", "lora"):
        raise _refusal(
            f"the file is not a LoRA adapter: general.type is {kind!a} (expected 'adapter'), "
            f"adapter.type is {form!a} (expected 'lora')"
        )
    if any(key.startswith("adapter.alora") for key in adapter.metadata):
        raise _refusal(
            "the adapter is activated by its prompt (aLoRA), which this engine does not support"
        )
    if adapter.architecture != base.architecture:
        raise _refusal(
            f"the adapter is for {adapter.architecture[:64]!a}, the base is {base.architecture!a}"
        )
    alpha = adapter.metadata.get("adapter.lora.alpha", "")
    if not _is_number(alpha):
        raise _refusal(f"adapter.lora.alpha is {alpha[:64]!a}; a finite number is expected")
    shapes = {tensor.name: tensor.shape for tensor in adapter.tensors}
    names = {name.removesuffix(_A).removesuffix(_B) for name in shapes}
    weights = {tensor.name: tensor.shape for tensor in base.tensors}
    if not names:
        raise _refusal("the adapter has no tensors")
    for name in sorted(names):
        _check_pair(name, shapes.get(name + _A, ()), shapes.get(name + _B, ()), weights.get(name))


def _check_pair(
    name: str, down: tuple[int, ...], up: tuple[int, ...], weight: tuple[int, ...] | None
) -> None:
    """Check that ``up @ down`` has the weight's shape."""
    if weight is None or len(weight) != 2:  # noqa: PLR2004 - a matrix
        raise _refusal(f"the adapter changes {name[:64]!a}, which is not a matrix of the base")
    if len(down) != 2 or len(up) != 2:  # noqa: PLR2004 - likewise
        raise _refusal(f"the adapter lacks lora_a or lora_b of {name!a}, or they are not matrices")
    outer = (up[0], down[1])
    inner = (up[1], down[0])
    if name == _EMBEDDING:
        outer, inner = (down[0], up[0]), (down[1], up[1])
    if outer != weight or inner[0] != inner[1] or inner[0] > MAX_RANK:
        raise _refusal(
            f"the adapter's {name!a} is {up} times {down}; the base's has the shape {weight}"
        )


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _refusal(what: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        what, advice="Convert it for this base with llama.cpp's convert_lora_to_gguf.py."
    )
