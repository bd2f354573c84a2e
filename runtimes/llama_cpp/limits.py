"""How large the engine makes its passes, which is what its buffers are sized by."""

from typing import Final

# Prompt tokens per pass: the width of the compute buffers.
BATCH_TOKENS: Final = 512
# Positions whose logits one pass can give.
MAX_OUTPUTS: Final = 64
# When a release names no context length: the model's own, at most this.
DEFAULT_CONTEXT: Final = 4096
# Generations at once when nobody says how many. More read a weight for more tokens, but each then
# waits longer for its next one.
DEFAULT_PARALLEL: Final = 4
