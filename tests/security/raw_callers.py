"""Callers on raw TCP connections."""

import asyncio
import contextlib
import socket

# Reached only by a failing test.
PATIENCE_SECONDS = 30.0


class Callers:
    """Opens connections to loopback and closes all of them at the end."""

    def __init__(self) -> None:
        self._sockets: list[socket.socket] = []

    def close(self) -> None:
        for each in self._sockets:
            each.close()

    async def call(self, port: int, data: bytes = b"", *, receive_bytes: int = 0) -> socket.socket:
        """Open a connection and send data; ``receive_bytes`` is the size of its receive buffer."""
        caller = socket.socket()
        self._sockets.append(caller)
        if receive_bytes:
            caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        caller.setblocking(False)
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(PATIENCE_SECONDS):
            await loop.sock_connect(caller, ("127.0.0.1", port))
            await loop.sock_sendall(caller, data)
        return caller


async def rest(caller: socket.socket) -> bytes:
    """Read until the other side closes the connection; TimeoutError if it does not."""
    data, loop = bytearray(), asyncio.get_running_loop()
    async with asyncio.timeout(PATIENCE_SECONDS):
        with contextlib.suppress(ConnectionError):
            while part := await loop.sock_recv(caller, 1 << 16):
                data += part
    return bytes(data)
