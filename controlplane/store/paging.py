"""Keyset paging: the next page starts after the last key seen."""

import base64
import binascii
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from sqlalchemy import ColumnElement, Select

from controlplane.errors import InvalidInputError
from controlplane.store.database import AnyRow, Transaction

DEFAULT_PAGE_SIZE: Final = 100
MAX_PAGE_SIZE: Final = 1000
MAX_TOKEN_CHARACTERS: Final = 1024

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class PageRequest:
    """At most ``size`` items, whose keys come after ``after`` (None: from the start)."""

    size: int = DEFAULT_PAGE_SIZE
    after: str | None = None


@dataclass(frozen=True, slots=True)
class Page(Generic[Item]):
    """Items and the token of the next page; an empty token after the last page."""

    items: tuple[Item, ...]
    next_token: str = ""


def page_request(size: int, token: str) -> PageRequest:
    """Check a client's paging fields, where 0 and "" are defaults; raise InvalidInputError."""
    if not 0 <= size <= MAX_PAGE_SIZE:
        raise InvalidInputError(
            f"page size {size} is not within 1 to {MAX_PAGE_SIZE}",
            advice="Ask for smaller pages, and follow next_page_token.",
        )
    return PageRequest(size or DEFAULT_PAGE_SIZE, _decode(token) if token else None)


def next_token(key: str) -> str:
    return base64.urlsafe_b64encode(key.encode()).decode()


def _decode(token: str) -> str:
    try:
        key = base64.b64decode(token, altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError) as error:
        raise _malformed(token) from error
    # PostgreSQL refuses a NUL within a text.
    # A longer token is refused, not cut: cut, it would silently mean another place in the list.
    if len(token) > MAX_TOKEN_CHARACTERS or "\x00" in key:
        raise _malformed(token)
    return key


def _malformed(token: str) -> InvalidInputError:
    return InvalidInputError(
        f"{token[:80]!r} is not a page token",
        advice="Pass next_page_token as it came, or leave it out to start anew.",
    )


async def fetch_page(
    tx: Transaction,
    statement: Select[*tuple[Any, ...]],
    key: ColumnElement[str],
    request: PageRequest,
    make: Callable[[AnyRow], Item],
    *,
    newest_first: bool = False,
) -> Page[Item]:
    """Return one page of ``statement``'s rows ordered by ``key``, which must be selected."""
    if request.after is not None:
        after = key < request.after if newest_first else key > request.after
        statement = statement.where(after)
    order = key.desc() if newest_first else key
    # One more than shown tells whether another page follows, without a count of all rows.
    rows = await tx.all(statement.order_by(order).limit(request.size + 1))
    shown = rows[: request.size]
    more = len(rows) > request.size
    token = next_token(str(shown[-1]._mapping[key])) if more else ""  # noqa: SLF001  # documented
    return Page(tuple(make(row) for row in shown), token)
