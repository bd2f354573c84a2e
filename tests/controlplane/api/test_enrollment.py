"""Enrolment, and every reason for refusing it."""

import hashlib
from datetime import timedelta

import grpc
import pytest
from control_plane import Box, Clock, Plane, Publisher, request_id
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from flotilla.v1 import device_pb2, enrollment_pb2, fleet_pb2

from artifact.join_token import decode_join_token

Code = grpc.StatusCode


async def refused(call: object) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call  # type: ignore[misc]
    return caught.value


def enroll(plane: Plane, box: Box, secret: str, **more: object) -> object:
    request = enrollment_pb2.EnrollRequest(
        **{"token": secret, "csr_pem": box.csr(), "name": box.name, **more}
    )
    return plane.enrollment().Enroll(request)


async def test_a_box_with_a_token_becomes_a_device(plane: Plane, publisher: Publisher) -> None:
    _, secret = await plane.join_token(site="lab")
    box = await plane.enroll("box-1", secret, rack="a1")

    shown = (await plane.fleet().GetDevice(fleet_pb2.GetDeviceRequest(device="box-1"))).device
    assert shown.id == box.device_id
    assert dict(shown.labels) == {"site": "lab", "rack": "a1"}
    assert (shown.state, shown.connected) == ("active", False)
    certificate = x509.load_pem_x509_certificate(box.certificate_pem)
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(plane.ca_pem))
    assert certificate.public_key() == box.key.public_key()
    answer = await box.stub.FetchMetadata(device_pb2.FetchMetadataRequest(name="1.root.json"))
    assert answer.data


async def test_the_token_names_authority_and_root(plane: Plane, publisher: Publisher) -> None:
    answer = await plane.fleet().CreateJoinToken(
        fleet_pb2.CreateJoinTokenRequest(request_id=request_id(), uses=1, lifetime_seconds=60)
    )
    token = decode_join_token(answer.secret)
    bundle = await plane.enrollment().GetTrustBundle(enrollment_pb2.GetTrustBundleRequest())
    der = x509.load_pem_x509_certificate(bundle.ca_pem).public_bytes(serialization.Encoding.DER)
    assert token.ca == hashlib.sha256(der).hexdigest()
    assert token.root == hashlib.sha256(bundle.image_root).hexdigest()
    assert bundle.ca_pem == plane.ca_pem


async def test_no_join_token_before_there_is_a_root_to_name(plane: Plane) -> None:
    error = await refused(
        plane.fleet().CreateJoinToken(
            fleet_pb2.CreateJoinTokenRequest(request_id=request_id(), uses=1, lifetime_seconds=60)
        )
    )
    assert error.code() is Code.FAILED_PRECONDITION
    assert dict(error.trailing_metadata())["flotilla-advice"] == "Run `flotilla keys init` first."


@pytest.mark.parametrize("wrong", ["unknown", "expired", "revoked", "spent"])
async def test_a_token_that_is_no_good_says_why(
    plane: Plane, publisher: Publisher, clock: Clock, wrong: str
) -> None:
    token_id, secret = await plane.join_token(lifetime_seconds=60)
    match wrong:
        case "unknown":
            secret = "x" * 32
        case "expired":
            clock.ahead += timedelta(seconds=61)
        case "revoked":
            await plane.fleet().RevokeJoinToken(
                fleet_pb2.RevokeJoinTokenRequest(request_id=request_id(), id=token_id)
            )
        case "spent":
            await plane.enroll("first", secret)
    error = await refused(enroll(plane, Box("box-1", plane), secret))
    assert error.code() is (Code.UNAUTHENTICATED if wrong == "unknown" else Code.PERMISSION_DENIED)
    assert wrong in error.details()
    assert "flotilla token create" in dict(error.trailing_metadata())["flotilla-advice"]
    devices = (await plane.fleet().ListDevices(fleet_pb2.ListDevicesRequest())).devices
    assert [device.name for device in devices] == (["first"] if wrong == "spent" else [])


async def test_the_same_key_may_ask_again_for_a_lost_answer(
    plane: Plane, publisher: Publisher
) -> None:
    _, secret = await plane.join_token(uses=1)
    box = await plane.enroll("box-1", secret)
    again = await enroll(plane, box, secret)  # type: ignore[misc]
    assert again.device_id == box.device_id
    # Until the new certificate is used, the first one is accepted too: its reply may have arrived.
    await box.stub.FetchMetadata(device_pb2.FetchMetadataRequest(name="timestamp.json"))
    first, box.certificate_pem = box.certificate_pem, again.certificate_pem
    await box.stub.FetchMetadata(device_pb2.FetchMetadataRequest(name="timestamp.json"))
    box.certificate_pem = first
    error = await refused(
        box.stub.FetchMetadata(device_pb2.FetchMetadataRequest(name="timestamp.json"))
    )
    assert error.code() is Code.PERMISSION_DENIED
    assert "replaced" in error.details()


async def test_another_key_does_not_get_the_device(plane: Plane, publisher: Publisher) -> None:
    _, secret = await plane.join_token(uses=2)
    await plane.enroll("box-1", secret)
    error = await refused(enroll(plane, Box("box-1", plane), secret))
    assert error.code() is Code.ALREADY_EXISTS
    # The refusal spent no use of the token.
    await plane.enroll("box-2", secret)


def rsa_csr() -> bytes:
    key = rsa.generate_private_key(65537, 2048)
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def p384_csr() -> bytes:
    key = ec.generate_private_key(ec.SECP384R1())
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def forged_csr() -> bytes:
    """Return a signing request for another's key, without that key's signature."""
    key = ec.generate_private_key(ec.SECP256R1())
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    der = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)
    other = ec.generate_private_key(ec.SECP256R1()).public_key()
    encoding = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    der = der.replace(key.public_key().public_bytes(*encoding), other.public_bytes(*encoding))
    request = x509.load_der_x509_csr(der)
    return request.public_bytes(serialization.Encoding.PEM)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"csr_pem": b"no request"}, "cannot be read"),
        ({"csr_pem": b"x" * 20000}, "20,000 bytes"),
        ({"csr_pem": rsa_csr()}, "not P-256"),
        ({"csr_pem": p384_csr()}, "not P-256"),
        ({"csr_pem": forged_csr()}, "not signed by its own key"),
        ({"name": "Box_1"}, "not a device name"),
        ({"name": "a" * 64}, "not a device name"),
        ({"name": ""}, "not a device name"),
        ({"labels": {"site": "elsewhere"}}, "contradicts the join token"),
        ({"labels": {"bad key": "x"}}, "not a label name"),
        ({"labels": {f"l{i}": "x" for i in range(80)}}, "labels are more"),
    ],
)
async def test_an_unsound_application_is_refused_and_spends_nothing(
    plane: Plane, publisher: Publisher, wrong: dict[str, object], words: str
) -> None:
    _, secret = await plane.join_token(site="lab")
    box = Box("box-1", plane)
    error = await refused(enroll(plane, box, secret, **wrong))
    assert error.code() is Code.INVALID_ARGUMENT
    assert words in error.details()
    await plane.enroll("box-1", secret)


async def test_secrets_are_not_in_the_database(plane: Plane, publisher: Publisher) -> None:
    _, secret = await plane.join_token()
    await plane.enroll("box-1", secret)
    for path in plane.config.data_dir.glob("flotilla.db*"):
        data = path.read_bytes()
        assert secret.encode() not in data
        assert plane.admin_token.encode() not in data


async def test_a_certificate_is_renewed_for_the_same_key_only(
    plane: Plane, publisher: Publisher
) -> None:
    box = await plane.enroll("box-1")
    renew = device_pb2.RenewCertificateRequest
    error = await refused(box.stub.RenewCertificate(renew(csr_pem=Box("box-1", plane).csr())))
    assert error.code() is Code.INVALID_ARGUMENT
    answer = await box.stub.RenewCertificate(renew(csr_pem=box.csr()))
    assert answer.certificate_pem != box.certificate_pem
    box.certificate_pem = answer.certificate_pem
    await box.stub.FetchMetadata(device_pb2.FetchMetadataRequest(name="timestamp.json"))
