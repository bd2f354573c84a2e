"""Enrolment over real TLS: trust comes from the token's digests; failures leave no files."""

import errno
import stat
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from cryptography import x509

from agent.config import DataDir, load_config
from agent.enrollment.client import Application, enroll, recover
from agent.errors import (
    DataDirectoryError,
    EnrollmentError,
    IdentityError,
    NotEnrolledError,
    ServerUnreachableError,
)
from agent.identity.keys import load_identity
from artifact.device_facts import DeviceFacts
from artifact.errors import InvalidJoinTokenError
from tests.agent.enrollment_server import DIRECTOR_ROOT, ROOT, SECRET, Servicer, join_token, start
from tests.agent.tls import Authority

FACTS = DeviceFacts(
    architecture="x86_64",
    cpu_model="test",
    isa=("avx2",),
    cores=2,
    memory_bytes=1 << 30,
    model_memory_bytes=1 << 20,
)


@dataclass
class Site:
    """A running server and an application for it."""

    servicer: Servicer
    application: Application
    data_dir: DataDir

    def left(self) -> set[str]:
        """List the files in the data directory."""
        root = self.data_dir.root
        return {path.name for path in root.iterdir()} if root.exists() else set()


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    authority = Authority()
    servicer = Servicer(authority)
    server, port = await start(servicer, authority.server_credentials("127.0.0.1", "localhost"))
    application = Application(
        server=f"127.0.0.1:{port}",
        token=join_token(authority),
        name="box-1",
        labels={"site": "lab"},
        facts=FACTS,
        gateway="127.0.0.1:0",
        model_memory_bytes=1 << 20,
    )
    yield Site(servicer, application, DataDir(tmp_path / "box"))
    await server.stop(None)


async def test_a_box_becomes_a_device(site: Site) -> None:
    config = await enroll(site.data_dir, site.application)
    assert load_config(site.data_dir) == config
    assert (config.device_id, config.name) == ("device-1", "box-1")
    assert config.labels == {"site": "lab"}
    assert load_identity(site.data_dir).ca_pem == site.servicer.authority.pem
    assert site.data_dir.image_root.read_bytes() == ROOT
    assert site.data_dir.director_root.read_bytes() == DIRECTOR_ROOT
    (request,) = site.servicer.requests
    assert request.token == SECRET
    assert request.facts.model_memory_bytes == 1 << 20


async def test_every_secret_is_for_its_owner_only(site: Site) -> None:
    await enroll(site.data_dir, site.application)
    assert stat.S_IMODE(site.data_dir.root.stat().st_mode) == 0o700
    for path in site.data_dir.root.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_after_a_lost_reply_the_same_key_asks_again(site: Site) -> None:
    site.servicer.lost_replies = 1
    with pytest.raises(ServerUnreachableError, match="cannot be reached") as lost:
        await enroll(site.data_dir, site.application)
    assert f"The box's key stays in {site.data_dir.key}" in lost.value.advice
    assert site.left() == {"device.key"}
    await enroll(site.data_dir, site.application)
    keys = [
        x509.load_pem_x509_csr(request.csr_pem).public_key() for request in site.servicer.requests
    ]
    assert keys[0] == keys[1]


async def test_a_key_that_the_server_may_know_outlives_a_refusal(site: Site) -> None:
    site.servicer.lost_replies = 1
    with pytest.raises(ServerUnreachableError):
        await enroll(site.data_dir, site.application)
    key = site.data_dir.key.read_bytes()
    site.servicer.refusal = (grpc.StatusCode.PERMISSION_DENIED, "the join token was revoked")
    with pytest.raises(EnrollmentError, match="revoked"):
        await enroll(site.data_dir, site.application)
    assert site.data_dir.key.read_bytes() == key


async def test_an_enrolled_box_is_not_enrolled_over(site: Site) -> None:
    await enroll(site.data_dir, site.application)
    with pytest.raises(EnrollmentError, match="of an enrolled agent"):
        await enroll(site.data_dir, site.application)
    assert len(site.servicer.requests) == 1


@pytest.mark.parametrize(
    ("code", "detail", "advice"),
    [
        (grpc.StatusCode.UNAUTHENTICATED, "the join token has expired", "token create"),
        (grpc.StatusCode.PERMISSION_DENIED, "the join token was used", "token create"),
        (grpc.StatusCode.ALREADY_EXISTS, "box-1 is taken", "--name"),
        (grpc.StatusCode.INVALID_ARGUMENT, "bad label", "labels"),
        (grpc.StatusCode.INTERNAL, "oops", "log"),
    ],
)
async def test_a_refusal_says_why_and_what_to_do(
    site: Site, code: grpc.StatusCode, detail: str, advice: str
) -> None:
    site.servicer.refusal = (code, detail)
    with pytest.raises(EnrollmentError, match=detail) as refused:
        await enroll(site.data_dir, site.application)
    assert advice in refused.value.advice
    # Only a server that failed may already know the key.
    assert site.left() == ({"device.key"} if code is grpc.StatusCode.INTERNAL else set())
    assert site.data_dir.root.exists() is (code is grpc.StatusCode.INTERNAL)
    with pytest.raises(NotEnrolledError):
        load_config(site.data_dir)


async def test_a_server_of_another_authority_never_sees_the_secret(site: Site) -> None:
    impostor = Servicer(Authority("impostor"))
    server, port = await start(impostor, impostor.authority.server_credentials("127.0.0.1"))
    with pytest.raises(IdentityError, match="certificate authority"):
        await enroll(site.data_dir, replace(site.application, server=f"127.0.0.1:{port}"))
    await server.stop(None)
    assert impostor.requests == []
    assert not site.data_dir.root.exists()


async def test_an_impostor_that_shows_the_right_bundle_is_refused_by_its_leaf(site: Site) -> None:
    impostor = Servicer(site.servicer.authority)
    server, port = await start(impostor, Authority("impostor").server_credentials("127.0.0.1"))
    with pytest.raises(IdentityError, match="not signed by"):
        await enroll(site.data_dir, replace(site.application, server=f"127.0.0.1:{port}"))
    await server.stop(None)
    assert impostor.requests == []


@pytest.mark.parametrize(("part", "name"), [("root", "image"), ("director", "director")])
async def test_another_root_is_refused(site: Site, part: str, name: str) -> None:
    token = join_token(site.servicer.authority, **{part: "0" * 64})
    with pytest.raises(IdentityError, match=f"{name} root"):
        await enroll(site.data_dir, replace(site.application, token=token))
    assert site.servicer.requests == []


async def test_a_certificate_for_another_authority_is_not_kept(site: Site) -> None:
    site.servicer.signs_for = Authority("other")
    with pytest.raises(IdentityError, match="not signed by"):
        await enroll(site.data_dir, site.application)
    assert site.left() == {"device.key"}


async def test_a_server_under_a_name_that_it_is_not_for_is_told(site: Site) -> None:
    server, port = await start(
        site.servicer, site.servicer.authority.server_credentials("fleet.example")
    )
    with pytest.raises(IdentityError, match="not for") as refused:
        await enroll(site.data_dir, replace(site.application, server=f"127.0.0.1:{port}"))
    await server.stop(None)
    assert "fleet.example" in refused.value.advice
    assert site.servicer.requests == []


async def test_a_server_that_is_not_there_is_told(site: Site) -> None:
    with pytest.raises(EnrollmentError, match="no TLS server") as refused:
        await enroll(site.data_dir, replace(site.application, server="127.0.0.1:1"))
    assert "flotilla serve" in refused.value.advice
    assert not site.data_dir.root.exists()


async def test_something_that_is_no_token_is_told_before_anything_is_made(site: Site) -> None:
    with pytest.raises(InvalidJoinTokenError):
        await enroll(site.data_dir, replace(site.application, token="hello"))
    assert site.left() == set()


async def test_a_box_recovers_with_its_key_and_keeps_everything_else(site: Site) -> None:
    before = await enroll(site.data_dir, site.application)
    old = load_identity(site.data_dir)
    site.data_dir.certificate.unlink()
    kept = {path: path.read_bytes() for path in site.data_dir.root.iterdir()}
    token = join_token(site.servicer.authority, secret="t" * 43)
    assert await recover(site.data_dir, token, FACTS) == before
    new = load_identity(site.data_dir)
    assert new.credentials.key_pem == old.credentials.key_pem
    assert new.certificate_pem != old.certificate_pem
    assert {path: path.read_bytes() for path in kept} == kept
    asked = site.servicer.requests[-1]
    assert (asked.token, asked.name) == ("t" * 43, "box-1")
    assert asked.recover_device_id == before.device_id


@pytest.mark.parametrize("part", ["root", "director"])
async def test_a_token_of_another_fleet_recovers_nothing(site: Site, part: str) -> None:
    await enroll(site.data_dir, site.application)
    # The box trusts other roots than this server and its token.
    path = site.data_dir.image_root if part == "root" else site.data_dir.director_root
    path.write_bytes(b"{}")
    before = load_identity(site.data_dir).certificate_pem
    with pytest.raises(IdentityError, match="another fleet"):
        await recover(site.data_dir, site.application.token, FACTS)
    assert load_identity(site.data_dir).certificate_pem == before
    assert len(site.servicer.requests) == 1


async def test_a_refused_recovery_leaves_the_box_as_it_is(site: Site) -> None:
    await enroll(site.data_dir, site.application)
    before = load_identity(site.data_dir).certificate_pem
    site.servicer.refusal = (grpc.StatusCode.PERMISSION_DENIED, "device 'box-1' is banned")
    with pytest.raises(EnrollmentError, match="is banned"):
        await recover(site.data_dir, site.application.token, FACTS)
    site.servicer.refusal = None
    site.servicer.device_id = "device-2"
    with pytest.raises(IdentityError, match="device-2"):
        await recover(site.data_dir, site.application.token, FACTS)
    assert load_identity(site.data_dir).certificate_pem == before


async def test_a_box_that_never_was_a_device_has_nothing_to_recover(site: Site) -> None:
    with pytest.raises(NotEnrolledError):
        await recover(site.data_dir, site.application.token, FACTS)
    assert site.left() == set()


async def test_a_box_recovers_under_another_authority_of_the_same_fleet(site: Site) -> None:
    await enroll(site.data_dir, site.application)
    second = Authority("second")
    server, port = await start(Servicer(second), second.server_credentials("127.0.0.1"))
    moved = f"127.0.0.1:{port}"
    config = await recover(site.data_dir, join_token(second), FACTS, server=moved)
    await server.stop(None)
    assert config.server == moved == load_config(site.data_dir).server
    assert load_identity(site.data_dir).ca_pem == second.pem


@pytest.mark.parametrize("place", ["/proc/x", f"{__file__}/box"])
async def test_a_data_directory_that_cannot_be_made_is_told_before_the_token_is_used(
    site: Site, place: str
) -> None:
    with pytest.raises(DataDirectoryError, match=f"{place} cannot be used") as refused:
        await enroll(DataDir(Path(place)), site.application)
    assert "--data-dir" in refused.value.advice
    assert site.servicer.requests == []


async def test_a_full_disk_ends_an_enrolment_with_advice(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("agent.enrollment.client.write_file", full)
    with pytest.raises(DataDirectoryError, match="No space left"):
        await enroll(site.data_dir, site.application)
    monkeypatch.undo()
    # The key is kept, so that the same token enrols the same device.
    await enroll(site.data_dir, site.application)
    first, second = site.servicer.requests
    keys = [x509.load_pem_x509_csr(request.csr_pem).public_key() for request in (first, second)]
    assert keys[0] == keys[1]


async def test_a_server_certificate_that_is_not_valid_yet_asks_for_the_clock(
    tmp_path: Path, site: Site
) -> None:
    """A box without a battery starts in the past, and so the certificate in the future."""
    authority = site.servicer.authority
    pair = authority.server("127.0.0.1", starts_in=timedelta(days=1), life=timedelta(days=2))
    server, port = await start(site.servicer, grpc.ssl_server_credentials([pair]))
    application = replace(site.application, server=f"127.0.0.1:{port}")
    with pytest.raises(ServerUnreachableError, match="not valid yet by this box's clock"):
        await enroll(site.data_dir, application)
    assert site.left() == set()
    await server.stop(None)
