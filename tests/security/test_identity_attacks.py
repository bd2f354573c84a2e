"""Strangers, thieves and copies before a real control plane, over real TLS.

Each attack is refused, does not change the attacked device, and is reported without control
characters. See tests/controlplane/api/test_device_states.py for clones.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner
from control_plane import Box, Clock, Plane, Publisher, request_id, running_plane
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from flotilla.v1 import access_pb2, device_pb2, enrollment_pb2, fleet_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from agent.config import AgentConfig, DataDir
from agent.enrollment.client import Application, enroll, recover
from agent.errors import EnrollmentError
from agent.identity.keys import load_identity
from agent.link.connection import Connection
from artifact.device_facts import DeviceFacts
from controlplane.cli.command import cli
from controlplane.services.devices.identification import CHANGEOVER
from tests.agent.tls import Authority

Code = grpc.StatusCode
METADATA = device_pb2.FetchMetadataRequest(name="timestamp.json")
FACTS = DeviceFacts(
    architecture="x86_64",
    cpu_model="test",
    isa=(),
    cores=2,
    memory_bytes=1 << 30,
    model_memory_bytes=1 << 20,
)
PEM = serialization.Encoding.PEM
# Control characters for terminals and logs: newline, return, colour, title, bell, reversal.
CODES = "x\r\nevent=forged\x1b[31m\x1b]0;owned\x07\u202ey"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def plane(tmp_path: Path, clock: Clock) -> AsyncIterator[Plane]:
    async with running_plane(tmp_path / "server", clock) as plane:
        await Publisher(plane).initialise()
        yield plane


@pytest.fixture
async def victim(plane: Plane) -> Box:
    return await plane.enroll("victim")


async def refused(call: Awaitable[Any]) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await asyncio.wait_for(call, 15)
    return caught.value


async def device(plane: Plane, name: str = "victim") -> fleet_pb2.GetDeviceResponse:
    answer: fleet_pb2.GetDeviceResponse = await plane.fleet().GetDevice(
        fleet_pb2.GetDeviceRequest(device=name)
    )
    return answer


async def actions(plane: Plane) -> list[str]:
    answer = await plane.access().ListAuditEvents(access_pb2.ListAuditEventsRequest())
    return [event.action for event in answer.events]


def greedy_csr(box: Box) -> bytes:
    """Make a request that asks for the names of an authority, the server and another device."""
    names = [
        x509.NameAttribute(NameOID.COMMON_NAME, "victim"),
        x509.NameAttribute(NameOID.ORGANIZATION_NAME, "admins"),
    ]
    return (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name(names))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.DNSName("*")]),
            critical=False,
        )
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]),
            critical=False,
        )
        .sign(box.key, hashes.SHA256())
        .public_bytes(PEM)
    )


@pytest.mark.parametrize("by", ["enrolment", "renewal"])
async def test_a_request_for_more_gets_a_device_certificate_and_no_more(
    plane: Plane, by: str
) -> None:
    if by == "enrolment":
        box = Box("greedy", plane)
        _, secret = await plane.join_token()
        made = await plane.enrollment().Enroll(
            enrollment_pb2.EnrollRequest(token=secret, csr_pem=greedy_csr(box), name="greedy")
        )
        box.device_id = made.device_id
    else:
        box = await plane.enroll("greedy")
        made = await box.stub.RenewCertificate(
            device_pb2.RenewCertificateRequest(csr_pem=greedy_csr(box))
        )
    certificate = x509.load_pem_x509_certificate(made.certificate_pem)
    assert certificate.subject == x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, box.device_id)]
    )
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    purposes = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert not constraints.ca
    assert not usage.key_cert_sign
    assert list(purposes) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    with pytest.raises(x509.ExtensionNotFound):
        certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)


def of_another_authority(plane: Plane, victim: Box) -> bytes:
    """Issue a certificate for the victim's name and the thief's key by a foreign authority."""
    return Authority().device(named_csr(victim.device_id, victim))


def self_signed(plane: Plane, victim: Box) -> bytes:
    """Make a self-signed certificate with the real authority's name."""
    real = x509.load_pem_x509_certificate(plane.ca_pem)
    return certificate(victim, issuer=real.subject, key=victim.key)


def signed_by_a_device(plane: Plane, victim: Box) -> bytes:
    """Issue a certificate with a device's key, and send that device's certificate as the chain."""
    own = x509.load_pem_x509_certificate(victim.certificate_pem)
    made = certificate(victim, issuer=own.subject, key=victim.key, name="0" * 20)
    return made + victim.certificate_pem


def of_the_server(plane: Plane, victim: Box) -> bytes:
    """Return the server's certificate and key: the right authority, the wrong purpose."""
    return (plane.config.data_dir / "keys" / "server.pem").read_bytes()


def named_csr(name: str, box: Box) -> bytes:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    return builder.sign(box.key, hashes.SHA256()).public_bytes(PEM)


def certificate(box: Box, *, issuer: x509.Name, key: Any, name: str = "") -> bytes:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name or box.device_id)])
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(box.key.public_key())
        .serial_number(x509.load_pem_x509_certificate(box.certificate_pem).serial_number)
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
        .public_bytes(PEM)
    )


@pytest.mark.parametrize(
    "forge", [of_another_authority, self_signed, signed_by_a_device, of_the_server]
)
async def test_a_certificate_that_the_authority_did_not_issue_to_a_device_opens_nothing(
    plane: Plane, victim: Box, forge: Callable[[Plane, Box], bytes]
) -> None:
    chain, key_pem = forge(plane, victim), victim.key_pem
    if forge is of_the_server:
        key_pem = (plane.config.data_dir / "keys" / "server.key").read_bytes()
    credentials = grpc.ssl_channel_credentials(plane.ca_pem, key_pem, chain)
    channel = plane.keep(grpc.aio.secure_channel(str(plane.endpoints.device), credentials))
    call = channel.unary_unary("/flotilla.v1.DeviceService/FetchMetadata")
    error = await refused(call(METADATA.SerializeToString()))
    # TLS refuses all of them before the server's own checks.
    assert error.code() is Code.UNAVAILABLE
    assert not (await device(plane)).device.connected
    await victim.stub.FetchMetadata(METADATA)


async def test_a_devices_certificate_makes_no_server(plane: Plane, tmp_path: Path) -> None:
    """A thief intercepts the connection of another box with the stolen device certificate."""
    thief = await plane.enroll("thief")
    data_dir, config = await enrolled(plane, tmp_path / "box")
    server = grpc.aio.server()
    pair = (thief.key_pem, thief.certificate_pem)
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
    await server.start()
    assert await failure(data_dir, f"127.0.0.1:{port}") == "UNAVAILABLE"
    assert await failure(data_dir, config.device_endpoint) == ""
    await server.stop(None)


async def test_every_refusal_is_told_with_who_asked_and_why(
    plane: Plane, victim: Box, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="controlplane")
    _, secret = await plane.join_token(uses=1)
    await plane.enroll("first", secret)
    stub = victim.stub
    stranger = device_pb2.RenewCertificateRequest(csr_pem=Box("x", plane).csr())
    attempts: list[tuple[Callable[[], Awaitable[Any]], str]] = [
        (lambda: join_as(plane, Box("second", plane), secret), "all uses of join token"),
        (lambda: join_as(plane, Box("third", plane), "x" * 32), "unknown to this server"),
        (lambda: stub.RenewCertificate(stranger), "another key than that of 'victim'"),
        (lambda: plane.fleet("x" * 32).ListDevices(fleet_pb2.ListDevicesRequest()), "API token"),
    ]
    for attempt, reason in attempts:
        caplog.clear()
        await refused(attempt())
        (told,) = [line for line in caplog.messages if line.startswith("call_refused")]
        assert reason in told
        assert "peer=ipv4:127.0.0.1:" in told
        assert secret not in told
    assert (await device(plane)).device.state == "active"


async def join_as(plane: Plane, box: Box, secret: str) -> Any:
    request = enrollment_pb2.EnrollRequest(token=secret, csr_pem=box.csr(), name=box.name)
    return await plane.enrollment().Enroll(request)


async def enrolled(plane: Plane, root: Path) -> tuple[DataDir, AgentConfig]:
    application = Application(
        server=str(plane.endpoints.public),
        token=await printed_token(plane),
        name=root.name,
        labels={},
        facts=FACTS,
        gateway="127.0.0.1:0",
        model_memory_bytes=1 << 20,
    )
    return DataDir(root), await enroll(DataDir(root), application)


async def test_an_expired_certificate_opens_nothing_until_the_box_recovers(
    tmp_path: Path,
) -> None:
    # A box that enrolled twenty days ago and has been off since.
    clock = Clock(timedelta(days=-20))
    async with running_plane(tmp_path / "server", clock, server_certificate_days=90) as plane:
        await Publisher(plane).initialise()
        data_dir = DataDir(tmp_path / "box")
        application = Application(
            server=str(plane.endpoints.public),
            token=await printed_token(plane),
            name="sleeper",
            labels={"site": "attic"},
            facts=FACTS,
            gateway="127.0.0.1:0",
            model_memory_bytes=1 << 20,
        )
        config = await enroll(data_dir, application)
        (data_dir.root / "journal.db").write_bytes(b"what it runs")
        clock.ahead = timedelta()
        assert "UNAVAILABLE" in await failure(data_dir, config.device_endpoint)

        with pytest.raises(EnrollmentError, match="expired"):
            await recover(data_dir, application.token, FACTS)
        await recover(data_dir, await printed_token(plane), FACTS)
        assert await failure(data_dir, config.device_endpoint) == ""
        shown = (await device(plane, "sleeper")).device
        assert (shown.id, dict(shown.labels)) == (config.device_id, {"site": "attic"})
        assert (data_dir.root / "journal.db").read_bytes() == b"what it runs"
        assert "device.recover" in await actions(plane)


async def printed_token(plane: Plane) -> str:
    answer = await plane.fleet().CreateJoinToken(
        fleet_pb2.CreateJoinTokenRequest(request_id=request_id(), uses=1, lifetime_seconds=3600)
    )
    return str(answer.secret)


async def failure(data_dir: DataDir, endpoint: str) -> str:
    """Return why the box's certificate is refused; empty if it is accepted."""
    connection = Connection(endpoint, load_identity(data_dir).credentials)
    try:
        await connection.stub.FetchMetadata(METADATA, timeout=15)
    except grpc.aio.AioRpcError as error:
        return error.code().name
    else:
        return ""
    finally:
        await connection.close()


async def test_a_device_cannot_speak_for_another(plane: Plane, victim: Box) -> None:
    thief = await plane.enroll("thief")
    finished = Timestamp()
    finished.FromDatetime(datetime.now(UTC))
    receipt = device_pb2.Receipt(
        generation=1,
        release="acme/chat@1",
        outcome=device_pb2.UPDATE_STATE_ROLLED_BACK,
        finished_at=finished,
    )
    # A receipt signed by the victim, and one signed by the thief for the victim's device.
    life = await thief.connect()
    await life.send(receipt=victim.sign(receipt))
    error = await refused(life.read_ack())
    assert (error.code(), "not signed by the key of 'thief'" in error.details()) == (
        Code.INVALID_ARGUMENT,
        True,
    )
    life = await thief.connect(boot_id="boot-of-victim")
    await life.send(receipt=thief.sign(receipt))
    await life.read_ack()
    evil = device_pb2.UpdateStatus(
        generation=1, state=device_pb2.UPDATE_STATE_SOAKING, current_release="acme/evil@1"
    )
    await life.send(status=evil)
    await life.send(receipt=thief.sign(receipt))
    await life.read_ack()
    assert len((await device(plane, "thief")).receipts) == 1
    shown = await device(plane)
    assert not shown.receipts
    assert (shown.device.connected, shown.device.current_release) == (False, "")


async def test_a_device_cannot_renew_or_enrol_as_another(plane: Plane, victim: Box) -> None:
    thief = await plane.enroll("thief")
    request = device_pb2.RenewCertificateRequest(csr_pem=named_csr(victim.device_id, thief))
    made = x509.load_pem_x509_certificate(
        (await thief.stub.RenewCertificate(request)).certificate_pem
    )
    (name,) = made.subject
    assert name.value == thief.device_id
    # The thief has seen the victim's request, but not its key.
    request = device_pb2.RenewCertificateRequest(csr_pem=victim.csr())
    assert (await refused(thief.stub.RenewCertificate(request))).code() is Code.INVALID_ARGUMENT
    _, secret = await plane.join_token(uses=2)
    for recovered, code in ((victim.device_id, Code.NOT_FOUND), ("", Code.INVALID_ARGUMENT)):
        application = enrollment_pb2.EnrollRequest(
            token=secret, csr_pem=thief.csr(), name="victim", recover_device_id=recovered
        )
        assert (await refused(plane.enrollment().Enroll(application))).code() is code
    await victim.stub.FetchMetadata(METADATA)


async def test_a_copied_disk_ends_both_boxes_until_a_person_decides(
    plane: Plane, victim: Box, clock: Clock
) -> None:
    thief = Box("victim", plane, key=victim.key, certificate_pem=victim.certificate_pem)
    life = await victim.connect()
    # The thief renews first; then the box returns with its certificate.
    request = device_pb2.RenewCertificateRequest(csr_pem=thief.csr())
    thief.certificate_pem = (await thief.stub.RenewCertificate(request)).certificate_pem
    stolen = await thief.connect()
    await refused(drain(life))
    clock.ahead += CHANGEOVER + timedelta(seconds=1)
    assert (await refused(victim.connect())).code() is Code.PERMISSION_DENIED
    assert (await refused(drain(stolen))).code() is Code.PERMISSION_DENIED
    for box in (victim, thief):
        assert "quarantined" in (await refused(box.stub.FetchMetadata(METADATA))).details()
    shown = (await device(plane)).device
    assert shown.state == "quarantined"
    assert "disk may be copied" in shown.state_reason
    assert "device.quarantine" in await actions(plane)


async def drain(life: Any) -> None:
    while True:
        await life.read()


async def test_a_revoked_device_is_cut_off_in_the_middle_of_its_stream(
    plane: Plane, victim: Box
) -> None:
    life = await victim.connect()
    await life.read_assignment()
    await plane.fleet().SetDeviceState(
        fleet_pb2.SetDeviceStateRequest(
            request_id=request_id(), device="victim", state="banned", reason="stolen"
        )
    )
    error = await refused(drain(life))
    assert error.code() is Code.PERMISSION_DENIED
    assert "is banned: stolen" in error.details()
    assert "device.ban" in await actions(plane)


async def test_of_many_boxes_that_race_for_one_use_one_joins(plane: Plane) -> None:
    _, secret = await plane.join_token(uses=1)
    boxes = [Box(f"box-{number}", plane) for number in range(12)]
    results = await asyncio.gather(*(join(plane, box, secret) for box in boxes))
    assert results.count("joined") == 1
    assert set(results) == {"joined", "PERMISSION_DENIED"}
    listed = await plane.fleet().ListDevices(fleet_pb2.ListDevicesRequest())
    assert len(listed.devices) == 1
    assert (await actions(plane)).count("device.enroll") == 1


async def join(plane: Plane, box: Box, secret: str) -> str:
    request = enrollment_pb2.EnrollRequest(token=secret, csr_pem=box.csr(), name=box.name)
    try:
        await plane.enrollment().Enroll(request)
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return "joined"


async def test_a_device_that_sends_terminal_codes_forges_no_log_line_and_no_screen(
    plane: Plane, victim: Box, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="controlplane")
    facts = device_pb2.Hello().facts
    facts.cpu_model, facts.runtimes[CODES] = CODES, CODES
    life = await victim.connect(
        facts=facts, agent_version=CODES, current_release=CODES, last_good_release=CODES
    )
    odd_status = device_pb2.UpdateStatus(
        state=device_pb2.UPDATE_STATE_FETCHING, detail=CODES, current_release=CODES
    )
    await life.send(status=odd_status)
    finished = Timestamp()
    finished.FromDatetime(datetime.now(UTC))
    await life.send(
        receipt=victim.sign(
            device_pb2.Receipt(
                generation=1,
                release=CODES,
                outcome=device_pb2.UPDATE_STATE_REJECTED,
                reason=CODES,
                detail=CODES,
                finished_at=finished,
                checks=[device_pb2.ProbationCheck(slot=CODES, name=CODES, detail=CODES)],
            )
        )
    )
    await life.read_ack()
    batch = device_pb2.TelemetryBatch(boot_id="boot-1")
    batch.windows.add(sequence=1, release=CODES, slot=CODES, variant=CODES, duration_seconds=-1)
    await life.send(telemetry=batch)
    await life.read_ack()
    await life.end()
    await refused(join_with(plane, CODES))
    context = str(plane.config.data_dir / "admin.json")
    for command in (("list",), ("show", "victim"), ("explain", "victim")):
        for options in ((), ("--json",)):
            arguments = ["--context", context, *options, "device", *command]
            shown = await asyncio.to_thread(CliRunner().invoke, cli, arguments)
            assert shown.exit_code == 0, shown.output
            assert all(char.isprintable() or char == "\n" for char in shown.output), arguments
            assert not any(line.startswith("event=forged") for line in shown.output.splitlines())
    messages = [record.getMessage() for record in caplog.records]
    assert any("receipt_stored" in message for message in messages)
    assert [message for message in messages if not message.isprintable()] == []


async def join_with(plane: Plane, text: str) -> Any:
    _, secret = await plane.join_token()
    request = enrollment_pb2.EnrollRequest(
        token=secret, csr_pem=Box(text, plane).csr(), name=text, labels={text: text}
    )
    return await plane.enrollment().Enroll(request)
