"""Access: every RPC with every role and without one; tokens; the audit log."""

import asyncio
import contextlib
import itertools
import sqlite3
from datetime import timedelta
from typing import Any

import grpc
import pytest
from control_plane import Clock, Plane, Publisher, request_id
from flotilla.v1 import (
    access_pb2,
    device_pb2,
    enrollment_pb2,
    fleet_pb2,
    model_pb2,
    rollout_pb2,
    server_keys_pb2,
    telemetry_pb2,
)

from controlplane.api.roles import DEVICE, MINIMUM_ROLE, OPEN
from controlplane.services.access import Role

Code = grpc.StatusCode
MODULES = (
    access_pb2,
    device_pb2,
    enrollment_pb2,
    fleet_pb2,
    model_pb2,
    rollout_pb2,
    server_keys_pb2,
    telemetry_pb2,
)
METHODS = {
    f"/{service.full_name}/{method.name}": method
    for module in MODULES
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}


async def answer(channel: grpc.aio.Channel, name: str) -> tuple[Code, str, str]:
    """Call with an empty request; return code, message and advice."""
    method = METHODS[name]
    kinds = {
        (False, False): channel.unary_unary,
        (False, True): channel.unary_stream,
        (True, False): channel.stream_unary,
        (True, True): channel.stream_stream,
    }
    make: Any = kinds[method.client_streaming, method.server_streaming]
    call = make(name)(iter([b""]) if method.client_streaming else b"", timeout=10)
    code = await call.code()
    advice = dict(await call.trailing_metadata() or ()).get("flotilla-advice", "")
    return code, await call.details(), str(advice)


def test_every_method_has_its_line_in_the_table() -> None:
    assert set(METHODS) == set(MINIMUM_ROLE) | DEVICE | {m for m in OPEN if "flotilla" in m}


async def test_roles_open_what_the_table_says(plane: Plane) -> None:
    may = {
        (role, needed)
        for role, needed in itertools.product(Role, Role)
        if role is Role.ADMIN or needed is Role.VIEWER or role is needed
    }
    for role in Role:
        channel = plane.channel(await plane.api_token(role))
        for name, needed in MINIMUM_ROLE.items():
            code, details, _ = await answer(channel, name)
            admitted = code is not Code.PERMISSION_DENIED
            assert admitted is ((role, needed) in may), (role, name, code, details)


@pytest.mark.parametrize("token", [None, "wrong", "x" * 500])
async def test_nothing_opens_without_a_good_token(plane: Plane, token: str | None) -> None:
    channel = plane.channel(token)
    for name in MINIMUM_ROLE:
        code, _, advice = await answer(channel, name)
        assert code is Code.UNAUTHENTICATED, name
        assert advice


async def test_a_device_certificate_opens_no_operator_rpc(
    plane: Plane, publisher: Publisher
) -> None:
    box = await plane.enroll("box-1")
    for name in (*MINIMUM_ROLE, "/flotilla.v1.EnrollmentService/Enroll"):
        code, details, advice = await answer(box.channel(), name)
        assert code is Code.PERMISSION_DENIED, name
        assert "a device certificate does not open it" in details
        assert "public port" in advice
    # Nor on the public port, which asks for no client certificate.
    credentials = grpc.ssl_channel_credentials(plane.ca_pem, box.key_pem, box.certificate_pem)
    channel = plane.keep(grpc.aio.secure_channel(str(plane.endpoints.public), credentials))
    code, details, _ = await answer(channel, "/flotilla.v1.FleetService/ListDevices")
    assert code is Code.UNAUTHENTICATED
    assert "a device certificate does not open it" in details


async def test_an_api_token_opens_nothing_on_the_device_port(
    plane: Plane, publisher: Publisher
) -> None:
    box = await plane.enroll("box-1")
    call = box.stub.FetchMetadata(
        device_pb2.FetchMetadataRequest(name="timestamp.json"),
        metadata=(("authorization", f"Bearer {plane.admin_token}"),),
    )
    assert await call.code() is Code.UNAUTHENTICATED
    assert "opens nothing on the device port" in await call.details()
    for name in DEVICE:
        code, _, advice = await answer(plane.channel(), name)
        assert code is Code.PERMISSION_DENIED
        assert "device port" in advice


async def test_the_device_port_asks_for_a_certificate_of_this_authority(
    plane: Plane, publisher: Publisher
) -> None:
    credentials = grpc.ssl_channel_credentials(plane.ca_pem)
    channel = plane.keep(grpc.aio.secure_channel(str(plane.endpoints.device), credentials))
    code, _, _ = await answer(channel, "/flotilla.v1.DeviceService/FetchMetadata")
    assert code is Code.UNAVAILABLE


@pytest.mark.parametrize("state", ["quarantined", "banned", "retired"])
async def test_a_device_that_is_not_active_is_refused(
    plane: Plane, publisher: Publisher, state: str
) -> None:
    box = await plane.enroll("box-1")
    with contextlib.closing(sqlite3.connect(plane.config.data_dir / "flotilla.db")) as database:
        database.execute("UPDATE devices SET state = ?", (state,))
        database.commit()
    for name in DEVICE:
        code, details, _ = await answer(box.channel(), name)
        assert code is Code.PERMISSION_DENIED
        assert f"is {state}" in details


@pytest.mark.parametrize("wrong", ["expired", "revoked"])
async def test_a_token_that_is_over_says_so(plane: Plane, clock: Clock, wrong: str) -> None:
    made = await plane.access().CreateApiToken(
        access_pb2.CreateApiTokenRequest(
            request_id=request_id(), name="ci", role="viewer", lifetime_seconds=60
        )
    )
    channel = plane.channel(made.secret)
    code, _, _ = await answer(channel, "/flotilla.v1.FleetService/ListDevices")
    assert code is Code.OK
    if wrong == "expired":
        clock.ahead += timedelta(seconds=61)
    else:
        await plane.access().RevokeApiToken(
            access_pb2.RevokeApiTokenRequest(request_id=request_id(), id=made.token.id)
        )
    code, details, _ = await answer(channel, "/flotilla.v1.FleetService/ListDevices")
    assert code is Code.UNAUTHENTICATED
    assert wrong in details
    assert made.secret not in details


async def test_a_change_happens_once_per_request_id(plane: Plane, publisher: Publisher) -> None:
    await plane.enroll("box-1")
    stub = plane.fleet()
    one = fleet_pb2.UpdateDeviceLabelsRequest(request_id="r1", device="box-1", set={"rack": "a"})
    await stub.UpdateDeviceLabels(one)
    two = fleet_pb2.UpdateDeviceLabelsRequest(request_id="r2", device="box-1", set={"rack": "b"})
    await stub.UpdateDeviceLabels(two)
    # A late repeat of the first request: it was carried out and is not carried out again.
    again = await stub.UpdateDeviceLabels(one)
    assert dict(again.device.labels) == {"rack": "b"}
    other = fleet_pb2.UpdateDeviceLabelsRequest(request_id="r1", device="box-1", set={"rack": "c"})
    call = stub.UpdateDeviceLabels(other)
    assert await call.code() is Code.FAILED_PRECONDITION
    assert "already used" in await call.details()
    events = await plane.access().ListAuditEvents(access_pb2.ListAuditEventsRequest())
    assert [event.action for event in events.events].count("device.label") == 2


async def test_the_last_admin_token_cannot_be_revoked(plane: Plane) -> None:
    stub = plane.access()
    (first,) = (await stub.ListApiTokens(access_pb2.ListApiTokensRequest())).tokens

    def revoke(token_id: str) -> Any:
        return stub.RevokeApiToken(
            access_pb2.RevokeApiTokenRequest(request_id=request_id(), id=token_id)
        )

    for role, seconds in (("operator", 0), ("admin", 0.001)):
        await stub.CreateApiToken(
            access_pb2.CreateApiTokenRequest(
                request_id=request_id(), name=role, role=role, lifetime_seconds=seconds
            )
        )
    # An expired admin token is as good as none.
    plane.clock.ahead = timedelta(seconds=1)
    call = revoke(first.id)
    assert await call.code() is Code.FAILED_PRECONDITION
    assert "last admin token" in await call.details()
    other = await stub.CreateApiToken(
        access_pb2.CreateApiTokenRequest(request_id=request_id(), name="two", role="admin")
    )
    await revoke(other.token.id)
    other = await stub.CreateApiToken(
        access_pb2.CreateApiTokenRequest(request_id=request_id(), name="three", role="admin")
    )
    assert (await revoke(first.id)).token.revoked


async def test_a_secret_is_shown_once(plane: Plane) -> None:
    ask = access_pb2.CreateApiTokenRequest(request_id="r1", name="ci", role="viewer")
    made = await plane.access().CreateApiToken(ask)
    call = plane.access().CreateApiToken(ask)
    assert await call.code() is Code.FAILED_PRECONDITION
    assert made.token.id in await call.details()
    listed = await plane.access().ListApiTokens(access_pb2.ListApiTokensRequest())
    assert [token.name for token in listed.tokens] == ["ci", "first admin"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"request_id": ""},
        {"request_id": "a b"},
        {"role": "king"},
        {"name": ""},
        {"lifetime_seconds": -1},
        {"lifetime_seconds": float("nan")},
        {"lifetime_seconds": 1e12},
    ],
)
async def test_an_unsound_token_is_refused(plane: Plane, wrong: dict[str, Any]) -> None:
    fields = {"request_id": "r", "name": "ci", "role": "viewer", **wrong}
    call = plane.access().CreateApiToken(access_pb2.CreateApiTokenRequest(**fields))
    assert await call.code() is Code.INVALID_ARGUMENT


async def test_lists_come_in_pages(plane: Plane, publisher: Publisher) -> None:
    _, secret = await plane.join_token(uses=5)
    for number in range(5):
        await plane.enroll(f"box-{number}", secret, odd=str(number % 2))
    names, token, pages = [], "", 0
    while True:
        page = await plane.fleet().ListDevices(
            fleet_pb2.ListDevicesRequest(selector="odd=0", page_size=2, page_token=token)
        )
        names += [device.name for device in page.devices]
        token, pages = page.next_page_token, pages + 1
        if not token:
            break
    assert names == ["box-0", "box-2", "box-4"]
    assert pages <= 3
    events, token = [], ""
    while True:
        page = await plane.access().ListAuditEvents(
            access_pb2.ListAuditEventsRequest(page_size=3, page_token=token)
        )
        events += [event.sequence for event in page.events]
        token = page.next_page_token
        if not token:
            break
    assert events == list(range(len(events), 0, -1))


@pytest.mark.parametrize(
    "wrong",
    [{"page_size": -1}, {"page_size": 5000}, {"page_token": "?"}, {"selector": "a=b=c"}],
)
async def test_an_unsound_list_is_refused(plane: Plane, wrong: dict[str, Any]) -> None:
    call = plane.fleet().ListDevices(fleet_pb2.ListDevicesRequest(**wrong))
    assert await call.code() is Code.INVALID_ARGUMENT


async def test_concurrent_changes_all_stand_in_the_log(plane: Plane) -> None:
    asks = [
        access_pb2.CreateApiTokenRequest(request_id=f"r{i}", name=f"t{i}", role="viewer")
        for i in range(20)
    ]
    stub = plane.access()
    await asyncio.gather(*(stub.CreateApiToken(ask) for ask in asks))
    events = await plane.access().ListAuditEvents(access_pb2.ListAuditEventsRequest())
    assert len(events.events) == 21
