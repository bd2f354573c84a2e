"""A box behind a proxy enrols through it, and reaches the server by no other way."""

import select
import socket
import socketserver
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from agent.config import DataDir
from agent.enrollment.client import Application, enroll
from agent.errors import ServerUnreachableError
from tests.agent.enrollment.test_client import FACTS
from tests.agent.enrollment_server import Servicer, join_token, start
from tests.agent.tls import Authority

# A name that only the proxy can resolve.
HOST = "fleet.invalid"


class ConnectProxy(socketserver.ThreadingTCPServer):
    """An HTTP proxy that tunnels to one loopback port, whatever the name; port 0 refuses."""

    def __init__(self, target_port: int) -> None:
        super().__init__(("127.0.0.1", 0), Tunnel)
        self.target_port = target_port
        self.requests: list[list[str]] = []


class Tunnel(socketserver.BaseRequestHandler):
    server: ConnectProxy

    def handle(self) -> None:
        client: socket.socket = self.request
        head = b""
        while b"\r\n\r\n" not in head:
            head += client.recv(4096)
        self.server.requests.append(head.decode().split("\r\n"))
        if not self.server.target_port:
            client.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
            return
        with socket.create_connection(("127.0.0.1", self.server.target_port)) as target:
            client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            peers = {client: target, target: client}
            while True:
                for readable in select.select(list(peers), [], [])[0]:
                    data = readable.recv(65536)
                    if not data:
                        return
                    peers[readable].sendall(data)


@contextmanager
def running_proxy(target_port: int) -> Iterator[ConnectProxy]:
    with ConnectProxy(target_port) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield proxy
        finally:
            proxy.shutdown()
            thread.join()


@asynccontextmanager
async def served() -> AsyncIterator[tuple[int, Application]]:
    """Serve enrolment as HOST; yields the real port and an application to the name."""
    authority = Authority()
    server, port = await start(Servicer(authority), authority.server_credentials(HOST))
    application = Application(
        server=f"{HOST}:443",
        token=join_token(authority),
        name="box-1",
        labels={},
        facts=FACTS,
        gateway="127.0.0.1:0",
        model_memory_bytes=1 << 20,
    )
    yield port, application
    await server.stop(None)


@pytest.mark.parametrize("user", ["", "box:p%40ss@"])
async def test_every_connection_of_an_enrolment_goes_through_the_proxy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user: str
) -> None:
    async with served() as (port, application):
        with running_proxy(port) as proxy:
            address = "{}:{}".format(*proxy.server_address)
            monkeypatch.setenv("https_proxy", f"http://{user}{address}")
            config = await enroll(DataDir(tmp_path / "box"), application)
    assert config.device_id == "device-1"
    # The certificate, the trust bundle and the enrolment itself.
    assert [head[0].rpartition(" ")[0] for head in proxy.requests] == [f"CONNECT {HOST}:443"] * 3
    authorized = [
        any(line.lower().startswith("proxy-authorization:") for line in head)
        for head in proxy.requests
    ]
    assert authorized == [bool(user)] * 3


async def test_a_proxy_that_refuses_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served() as (_, application):
        with running_proxy(0) as proxy:
            monkeypatch.setenv("https_proxy", "http://{}:{}".format(*proxy.server_address))
            with pytest.raises(ServerUnreachableError, match="407") as refused:
                await enroll(DataDir(tmp_path / "box"), application)
    assert "https_proxy" in refused.value.advice
