"""Sizes of the engine's passes, which determine its buffers."""

from typing import Final

# Prompt tokens per pass: the width of the compute buffers.
BATCH_TOKENS: Final = 512
# Positions whose logits one pass can return.
MAX_OUTPUTS: Final = 64
# Context without one in the release: the model's own, at most this.
DEFAULT_CONTEXT: Final = 4096
# Default of concurrent generations. More share the reading of weights, but each waits longer for
# its next token.
DEFAULT_PARALLEL: Final = 4
