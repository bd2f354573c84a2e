"""Connections through the HTTP proxy that gRPC uses, for the one that gRPC cannot make itself.

The rules are those of gRPC's core (src/core/handshaker/http_connect/http_proxy_mapper.cc), so that
enrolment takes the same way as the stream and the downloads.
"""

import base64
import ipaddress
import os
import socket
from collections.abc import Mapping
from http.client import HTTPConnection, HTTPException
from typing import Final
from urllib.parse import SplitResult, unquote, urlsplit

_PROXY_VARIABLES: Final = ("grpc_proxy", "https_proxy", "http_proxy")
_EXEMPTION_VARIABLES: Final = ("no_grpc_proxy", "no_proxy")
DEFAULT_PORT: Final = 80


def connect(host: str, port: int, timeout_seconds: float) -> socket.socket:
    """Open a TCP connection to a server, through the proxy if one is set; OSError."""
    proxy = proxy_for(host, os.environ)
    if proxy is None:
        return socket.create_connection((host, port), timeout_seconds)
    connection = HTTPConnection(
        proxy.hostname or "", proxy.port or DEFAULT_PORT, timeout=timeout_seconds
    )
    connection.set_tunnel(host, port, _authorization(proxy))
    try:
        connection.connect()
    except HTTPException as error:
        raise OSError(f"the proxy {proxy.hostname} answered: {error!r}") from error
    # The connection object owns no other resource than its socket.
    assert isinstance(connection.sock, socket.socket)  # noqa: S101 - set by connect
    return connection.sock


def proxy_for(host: str, environment: Mapping[str, str]) -> SplitResult | None:
    """Return the proxy for a host, None if it is to be reached directly."""
    url = next((environment[name] for name in _PROXY_VARIABLES if environment.get(name)), "")
    if not url:
        return None
    exempt = next((environment[name] for name in _EXEMPTION_VARIABLES if name in environment), "")
    if any(_is_exempt(host, entry.strip()) for entry in exempt.split(",")):
        return None
    proxy = urlsplit(url)
    # gRPC ignores proxies of other schemes.
    return proxy if proxy.scheme == "http" and proxy.hostname else None


def _is_exempt(host: str, entry: str) -> bool:
    if not entry:
        return False
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return host.lower().endswith(entry.lower())


def _authorization(proxy: SplitResult) -> dict[str, str]:
    if not proxy.username:
        return {}
    credentials = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return {
        "Proxy-Authorization": f"Basic {base64.b64encode(credentials.encode()).decode('ascii')}"
    }
