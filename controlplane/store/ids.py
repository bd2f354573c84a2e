"""Names that the server gives: random, and in the order of their making."""

import secrets
from datetime import datetime
from typing import Final

ID_CHARACTERS: Final = 20


def new_id(now: datetime) -> str:
    """Milliseconds since 1970 and 32 random bits, 20 hex digits."""
    return f"{int(now.timestamp() * 1000):012x}{secrets.token_hex(4)}"
