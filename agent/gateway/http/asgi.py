"""Types of the ASGI interface that uvicorn calls, and the router from paths to applications."""

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
    """The caller closed its connection."""


class Router:
    """ASGI application that picks another one by method and path.

    A ``{name}`` or ``{version}`` in a path is stored in the scope under that key.
    """

    def __init__(
        self,
        get: Mapping[str, Application],
        post: Mapping[str, Application],
        fallback: Callable[[tuple[str, ...]], Application],
    ) -> None:
        """Compile the paths. ``get`` also answers HEAD.

        ``fallback`` builds the application for an unknown path, or for a known path with another
        method; its argument is the methods that the path allows.
        """
        self._routes = [
            (re.compile(_PART.sub(r"(?P<\1>[^/]+)", re.escape(path))), methods, application)
            for methods, applications in ((("POST",), post), (("GET", "HEAD"), get))
            for path, application in applications.items()
        ]
        self._fallback = fallback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        allowed: tuple[str, ...] = ()
        for path, methods, application in self._routes:
            match = path.fullmatch(scope["path"])
            if match is None:
                continue
            if scope["method"] in methods:
                scope |= match.groupdict()
                await application(scope, receive, send)
                return
            allowed += methods
        await self._fallback(allowed)(scope, receive, send)
