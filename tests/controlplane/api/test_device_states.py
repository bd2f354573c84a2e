"""Device states: a device that is not active is cut off at once, refused, and let in again."""

import asyncio
import hashlib
import logging
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from control_plane import Box, Clock, Plane, Publisher, request_id
from flotilla.v1 import access_pb2, device_pb2, enrollment_pb2, fleet_pb2

from controlplane.services.devices.identification import CHANGEOVER

Code = grpc.StatusCode
METADATA = device_pb2.FetchMetadataRequest(name="timestamp.json")


async def set_state(plane: Plane, name: str, state: str, reason: str = "", **more: Any) -> Any:
    fields: dict[str, Any] = {"request_id": request_id(), **more}
    answer = await plane.fleet(fields.pop("token", "")).SetDeviceState(
        fleet_pb2.SetDeviceStateRequest(device=name, state=state, reason=reason, **fields)
    )
    return answer.device


async def refused(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await asyncio.wait_for(call, 15)
    return caught.value


async def audited(plane: Plane, action: str) -> list[Any]:
    answer = await plane.access().ListAuditEvents(access_pb2.ListAuditEventsRequest())
    return [event for event in answer.events if event.action == action]


def application(box: Box, secret: str, **more: str) -> enrollment_pb2.EnrollRequest:
    return enrollment_pb2.EnrollRequest(token=secret, csr_pem=box.csr(), name=box.name, **more)


async def renew(box: Box) -> None:
    answer = await box.stub.RenewCertificate(device_pb2.RenewCertificateRequest(csr_pem=box.csr()))
    box.certificate_pem = answer.certificate_pem


@pytest.fixture
async def box(plane: Plane, publisher: Publisher) -> Box:
    return await plane.enroll("box-1")


@pytest.mark.parametrize("state", ["quarantined", "banned", "retired"])
async def test_a_device_that_is_not_active_is_cut_off_at_once_and_refused(
    plane: Plane, box: Box, state: str
) -> None:
    life = await box.connect()
    await life.read_assignment()
    shown = await set_state(plane, "box-1", state, "smells odd")
    assert (shown.state, shown.state_reason) == (state, "smells odd")
    cut = await refused(life.read())
    again = await refused(box.connect())
    other = await refused(box.stub.FetchMetadata(METADATA))
    for error in (cut, again, other):
        assert error.code() is Code.PERMISSION_DENIED
        assert f"is {state}: smells odd" in error.details()
        assert dict(error.trailing_metadata())["flotilla-advice"]


async def test_a_download_under_way_is_cut_off(
    plane: Plane, publisher: Publisher, box: Box, tmp_path: Path
) -> None:
    # Far more than their buffers hold, so that the server waits for the box to read.
    _, chunks = publisher.make_file(tmp_path / "model.gguf", bytes(8 << 20))
    await publisher.upload(chunks)
    digest = hashlib.sha256(chunks[1]).digest()
    call = box.channel().unary_stream(
        "/flotilla.v1.DeviceService/FetchChunks",
        request_serializer=device_pb2.FetchChunksRequest.SerializeToString,
        response_deserializer=None,
    )(device_pb2.FetchChunksRequest(digests=[digest] * 200))
    assert await call.read()
    await set_state(plane, "box-1", "quarantined")

    async def read_on() -> None:
        while await call.read() is not grpc.aio.EOF:
            pass

    assert (await refused(read_on())).code() is Code.PERMISSION_DENIED


async def test_a_released_device_comes_back_with_the_same_certificate(
    plane: Plane, box: Box
) -> None:
    for state in ("quarantined", "banned"):
        await set_state(plane, "box-1", state, "smells odd")
        assert (await set_state(plane, "box-1", "active", "it was lunch")).state_reason == ""
    life = await box.connect()
    await life.read_assignment()


async def test_a_retired_device_leaves_its_name_and_never_comes_back(
    plane: Plane, box: Box
) -> None:
    retired = await set_state(plane, "box-1", "retired")
    assert retired.name == f"box-1~{box.device_id}"
    new = await plane.enroll("box-1")
    assert new.device_id != box.device_id
    shown = await plane.fleet().GetDevice(fleet_pb2.GetDeviceRequest(device=box.device_id))
    assert shown.device.state == "retired"
    for state in ("active", "banned", "quarantined"):
        error = await refused(set_state(plane, box.device_id, state))
        assert error.code() is Code.FAILED_PRECONDITION
        assert "enrol the box again" in dict(error.trailing_metadata())["flotilla-advice"]


async def test_a_banned_key_joins_as_no_other_device_and_keeps_its_name(
    plane: Plane, box: Box
) -> None:
    await set_state(plane, "box-1", "banned")
    assert (await refused(set_state(plane, "box-1", "retired"))).code() is Code.FAILED_PRECONDITION
    _, secret = await plane.join_token(uses=2)
    for name in ("box-1", "box-2"):
        box.name = name
        error = await refused(plane.enrollment().Enroll(application(box, secret)))
        assert error.code() is Code.PERMISSION_DENIED
        assert "banned" in error.details()
    error = await refused(plane.enroll("box-1", secret))
    assert error.code() is Code.ALREADY_EXISTS


async def test_only_an_operator_may_once_per_request_and_it_is_audited(
    plane: Plane, box: Box
) -> None:
    for role in ("viewer", "publisher"):
        token = await plane.api_token(role)
        error = await refused(set_state(plane, "box-1", "banned", token=token))
        assert error.code() is Code.PERMISSION_DENIED
    token = await plane.api_token("operator")
    for _ in range(2):
        await set_state(plane, "box-1", "banned", "stolen", token=token, request_id="r1")
    (event,) = await audited(plane, "device.ban")
    assert event.subject == box.device_id
    assert event.actor.startswith("token:operator:")
    assert "stolen" in event.detail


@pytest.mark.parametrize(
    ("state", "reason"),
    [("gone", ""), ("", ""), ("banned", "x" * 501), ("banned", "a\nb"), ("banned", "\x1b[2J")],
)
async def test_odd_states_and_reasons_are_refused(
    plane: Plane, box: Box, state: str, reason: str
) -> None:
    error = await refused(set_state(plane, "box-1", state, reason))
    assert error.code() is Code.INVALID_ARGUMENT


async def test_an_old_certificate_that_comes_back_quarantines_both(
    plane: Plane, box: Box, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    clone = Box("box-1", plane, key=box.key, certificate_pem=box.certificate_pem)
    await renew(box)
    life = await box.connect()
    await life.read_assignment()
    clock.ahead += CHANGEOVER + timedelta(seconds=1)
    with caplog.at_level(logging.WARNING):
        error = await refused(clone.connect())
    assert error.code() is Code.PERMISSION_DENIED
    assert (await refused(life.read())).code() is Code.PERMISSION_DENIED
    for one in (box, clone):
        assert "quarantined" in (await refused(one.stub.FetchMetadata(METADATA))).details()
    (event,) = await audited(plane, "device.quarantine")
    assert (event.actor, event.subject) == ("server", box.device_id)
    assert "was used after it was replaced" in event.detail
    assert f"device_cloned device={box.device_id}" in caplog.text


async def test_calls_under_way_while_the_certificate_changes_are_no_clone(
    plane: Plane, box: Box, clock: Clock
) -> None:
    old = Box("box-1", plane, key=box.key, certificate_pem=box.certificate_pem)
    await renew(box)
    # The reply with the new certificate may be lost: the old one is still accepted.
    await old.stub.FetchMetadata(METADATA)
    await box.stub.FetchMetadata(METADATA)
    clock.ahead += CHANGEOVER - timedelta(seconds=30)
    error = await refused(old.stub.FetchMetadata(METADATA))
    assert "replaced by a newer one" in error.details()
    await box.stub.FetchMetadata(METADATA)
    assert not await audited(plane, "device.quarantine")


async def test_answers_that_were_lost_one_after_another_are_no_clone(
    plane: Plane, box: Box, clock: Clock
) -> None:
    await renew(box)
    await box.stub.FetchMetadata(METADATA)
    lost = Box("box-1", plane, key=box.key, certificate_pem=box.certificate_pem)
    await renew(lost)
    current = Box("box-1", plane, key=box.key, certificate_pem=box.certificate_pem)
    await renew(current)
    clock.ahead += CHANGEOVER * 2
    assert "replaced" in (await refused(lost.stub.FetchMetadata(METADATA))).details()
    await box.stub.FetchMetadata(METADATA)
    await current.stub.FetchMetadata(METADATA)
    assert not await audited(plane, "device.quarantine")


async def test_a_box_whose_certificate_expired_gets_its_device_back_with_its_key(
    plane: Plane, box: Box
) -> None:
    token_id, secret = await plane.join_token()
    answer = await plane.enrollment().Enroll(
        application(box, secret, recover_device_id=box.device_id)
    )
    assert answer.device_id == box.device_id
    box.certificate_pem = answer.certificate_pem
    await (await box.connect()).read_assignment()
    (event,) = await audited(plane, "device.recover")
    assert (event.actor, event.subject) == (f"join-token:{token_id}", box.device_id)
    # The enrolment spent the token.
    error = await refused(plane.enroll("box-2", secret))
    assert "spent" in error.details()


async def test_what_is_not_there_is_not_recovered_and_spends_nothing(
    plane: Plane, box: Box
) -> None:
    _, secret = await plane.join_token()
    stranger = Box("box-1", plane)
    for one, wanted in ((stranger, box.device_id), (box, "0" * 20)):
        request = application(one, secret, recover_device_id=wanted)
        assert (await refused(plane.enrollment().Enroll(request))).code() is Code.NOT_FOUND
    await set_state(plane, "box-1", "retired")
    request = application(box, secret, recover_device_id=box.device_id)
    assert (await refused(plane.enrollment().Enroll(request))).code() is Code.NOT_FOUND
    await plane.enroll("box-2", secret)
