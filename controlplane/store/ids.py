"""Ids that the server generates: random, and ordered by creation time."""

import secrets
from datetime import datetime
from typing import Final

ID_CHARACTERS: Final = 20


def new_id(now: datetime) -> str:
    """Return 20 hex digits: milliseconds since 1970 and 32 random bits."""
    return f"{int(now.timestamp() * 1000):012x}{secrets.token_hex(4)}"
