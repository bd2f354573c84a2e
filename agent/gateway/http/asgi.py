"""The server's side of a request in ASGI, as uvicorn speaks it, and which page answers it."""

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeAlias

Scope: TypeAlias = dict[str, Any]
Message: TypeAlias = dict[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
Application: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

_PART: Final = re.compile(r"\\{(name|version)\\}")


class ClientGoneError(Exception):
    """The caller hung up."""


class Pages:
    """The pages by path; ``{name}`` and ``{version}`` in a path become those keys of the scope."""

    def __init__(
        self,
        shown: Mapping[str, Application],
        called: Mapping[str, Application],
        otherwise: Callable[[tuple[str, ...]], Application],
    ) -> None:
        """``shown`` are for GET and HEAD, ``called`` for POST.

        ``otherwise`` gives what answers a path that has no page; it is told the methods that it
        has, if any.
        """
        self._pages = [
            (re.compile(_PART.sub(r"(?P<\1>[^/]+)", re.escape(path))), methods, page)
            for methods, pages in ((("POST",), called), (("GET", "HEAD"), shown))
            for path, page in pages.items()
        ]
        self._otherwise = otherwise

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        allowed: tuple[str, ...] = ()
        for path, methods, page in self._pages:
            match = path.fullmatch(scope["path"])
            if match is None:
                continue
            if scope["method"] in methods:
                scope |= match.groupdict()
                await page(scope, receive, send)
                return
            allowed += methods
        await self._otherwise(allowed)(scope, receive, send)
