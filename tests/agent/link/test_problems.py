"""Each cause of a failed TLS handshake has its own message, with the step that helps."""

from datetime import UTC, datetime, timedelta

import grpc
import grpc.aio
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from agent.identity.credentials import Credentials
from agent.identity.keys import Identity, signing_request
from agent.link.channels import mutually_authenticated
from agent.link.problems import explain
from tests.agent.tls import Authority

DAY = timedelta(days=1)
NOW = datetime.now(UTC)


def device(authority: Authority, starts_in: timedelta = -DAY, life: timedelta = DAY) -> Credentials:
    key = ec.generate_private_key(ec.SECP256R1())
    pem = authority.device(signing_request(key, "box-1"), life, starts_in)
    return Identity(key, pem, authority.pem).credentials


async def problem(
    server: Authority,
    identity: Credentials,
    *,
    name: str = "127.0.0.1",
    starts_in: timedelta = -DAY,
    life: timedelta = DAY,
    now: datetime = NOW,
) -> str:
    """Return the problem of a call to a server with such a certificate."""
    running = grpc.aio.server()
    credentials = grpc.ssl_server_credentials(
        [server.server(name, starts_in=starts_in, life=life)],
        root_certificates=server.pem,
        require_client_auth=True,
    )
    port = running.add_secure_port("127.0.0.1:0", credentials)
    await running.start()
    channel = mutually_authenticated(f"127.0.0.1:{port}", identity)
    try:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await channel.unary_unary("/flotilla.v1.DeviceService/FetchMetadata")(b"", timeout=10)  # type: ignore[misc]
        assert isinstance(failed.value, grpc.aio.AioRpcError)
        return explain(failed.value, identity, now)
    finally:
        await channel.close()
        await running.stop(None)


async def test_a_server_certificate_that_is_not_valid_yet_asks_for_the_clock() -> None:
    """As a box sees it whose clock is two days behind."""
    authority = Authority()
    text = await problem(authority, device(authority), starts_in=DAY, life=2 * DAY)
    assert "not valid yet" in text
    assert "Set the clock" in text
    assert "authority" not in text


async def test_an_expired_server_certificate_asks_for_the_clock_or_the_servers_log() -> None:
    authority = Authority()
    text = await problem(authority, device(authority), starts_in=-2 * DAY, life=-DAY)
    assert "the server's certificate has expired" in text
    assert "see its log" in text


@pytest.mark.parametrize("name", ["test authority", "another"])
async def test_another_authority_is_not_to_be_trusted(name: str) -> None:
    """Also one of the same name, whose signature does not match."""
    text = await problem(Authority(name), device(Authority()))
    assert "not signed by an authority that this box trusts" in text
    assert "do not trust it" in text


async def test_a_certificate_for_another_name_is_named_as_such() -> None:
    authority = Authority()
    text = await problem(authority, device(authority), name="10.0.0.1")
    assert "not for the address that this box uses" in text


async def test_a_device_certificate_that_is_not_valid_yet_asks_for_the_clock() -> None:
    """The server only closes the connection."""
    authority = Authority()
    text = await problem(authority, device(authority, DAY, 2 * DAY))
    assert "the device certificate is valid from" in text
    assert "Set the clock" in text


async def test_an_expired_device_certificate_asks_for_the_clock_or_a_recovery() -> None:
    authority = Authority()
    text = await problem(authority, device(authority, -2 * DAY, -DAY))
    assert "the device certificate expired at" in text
    assert "If the clock is wrong, set it" in text
    assert "enroll --recover" in text


async def test_a_device_certificate_that_only_the_server_refuses_names_the_servers_clock() -> None:
    authority = Authority()
    identity = device(authority, DAY, 3 * DAY)
    text = await problem(authority, identity, now=NOW + 2 * DAY)
    assert "refuses this box's certificate" in text
    assert "the server's clock" in text
