"""The proxy of a connection is chosen as gRPC chooses it."""

from collections.abc import Mapping

import pytest

from agent.link.proxy import proxy_for

PROXY = "http://proxy.example.com:3128"


@pytest.mark.parametrize(
    ("host", "environment", "expected"),
    [
        ("fleet.example.com", {}, None),
        ("fleet.example.com", {"https_proxy": PROXY}, "proxy.example.com"),
        ("fleet.example.com", {"http_proxy": PROXY}, "proxy.example.com"),
        ("fleet.example.com", {"grpc_proxy": "http://a", "https_proxy": "http://b"}, "a"),
        ("fleet.example.com", {"https_proxy": PROXY, "no_proxy": "other, .example.com"}, None),
        (
            "fleet.example.com",
            {"https_proxy": PROXY, "no_proxy": "example.org"},
            "proxy.example.com",
        ),
        ("fleet.example.com", {"https_proxy": PROXY, "no_proxy": ""}, "proxy.example.com"),
        ("10.1.2.3", {"https_proxy": PROXY, "no_proxy": "10.0.0.0/8"}, None),
        ("11.1.2.3", {"https_proxy": PROXY, "no_proxy": "10.0.0.0/8"}, "proxy.example.com"),
        (
            "fleet.example.com",
            {"https_proxy": PROXY, "no_grpc_proxy": "", "no_proxy": "example.com"},
            "proxy.example.com",
        ),
        ("fleet.example.com", {"https_proxy": "socks5://proxy.example.com:1080"}, None),
    ],
)
def test_the_proxy_of_a_host(
    host: str, environment: Mapping[str, str], expected: str | None
) -> None:
    proxy = proxy_for(host, environment)
    assert (proxy.hostname if proxy else None) == expected
