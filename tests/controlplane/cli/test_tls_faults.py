"""The CLI tells the faults of a server's certificate apart, each with the step that helps."""

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from controlplane.cli.app import GlobalOptions, RefusedError
from controlplane.cli.client import connect
from tests.agent.tls import Authority

DAY = timedelta(days=1)
AUTHORITY = Authority()


@pytest.mark.parametrize(
    ("signer", "name", "dates", "message", "advice"),
    [
        (AUTHORITY, "127.0.0.1", {"starts_in": DAY, "life": 2 * DAY}, "not valid yet", "the clock"),
        (AUTHORITY, "127.0.0.1", {"starts_in": -2 * DAY, "life": -DAY}, "has expired", "the clock"),
        (AUTHORITY, "10.0.0.1", {}, "is not for that name", "--hostname"),
        (Authority(), "127.0.0.1", {}, "CA did not sign", "context file"),
        (Authority("another"), "127.0.0.1", {}, "CA did not sign", "context file"),
    ],
    ids=["not yet valid", "expired", "another name", "another authority", "another issuer"],
)
def test_a_fault_of_the_certificate_has_its_own_message(
    tmp_path: Path, *, signer: Authority, name: str, dates: Any, message: str, advice: str
) -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    credentials = grpc.ssl_server_credentials([signer.server(name, **dates)])
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    context = {
        "server": f"127.0.0.1:{port}",
        "token": "secret",
        "ca_pem": AUTHORITY.pem.decode(),
    }
    path = tmp_path / "context.json"
    path.write_text(json.dumps(context))
    path.chmod(0o600)
    try:
        with pytest.raises(RefusedError) as refused, connect(GlobalOptions(path)) as channel:
            channel.unary_unary("/flotilla.v1.FleetService/ListDevices")(b"", timeout=10)
    finally:
        server.stop(None)
    assert message in str(refused.value)
    assert advice in refused.value.advice
