"""Servicer of FleetService."""

from flotilla.v1 import fleet_pb2 as wire
from flotilla.v1 import fleet_pb2_grpc

from controlplane.api.interceptor import Context, current_caller
from controlplane.api.receipts import check_to_wire, decision_to_wire, receipt_to_wire
from controlplane.api.translate import (
    facts_to_wire,
    health_to_wire,
    timestamp,
    update_state_to_wire,
)
from controlplane.services.devices.inventory import DeviceView, InventoryService
from controlplane.services.devices.join_tokens import JoinTokenService
from controlplane.services.devices.states import DeviceStateService
from controlplane.store.join_tokens import JoinToken
from controlplane.store.paging import page_request


class FleetServicer(fleet_pb2_grpc.FleetServiceServicer):
    """Devices and join tokens."""

    def __init__(
        self,
        *,
        inventory: InventoryService,
        states: DeviceStateService,
        join_tokens: JoinTokenService,
    ) -> None:
        self._inventory = inventory
        self._states = states
        self._join_tokens = join_tokens

    async def ListDevices(
        self, request: wire.ListDevicesRequest, context: Context
    ) -> wire.ListDevicesResponse:
        page = await self._inventory.page(
            request.selector, page_request(request.page_size, request.page_token)
        )
        return wire.ListDevicesResponse(
            devices=[_device(view) for view in page.items], next_page_token=page.next_token
        )

    async def GetDevice(
        self, request: wire.GetDeviceRequest, context: Context
    ) -> wire.GetDeviceResponse:
        view, receipts = await self._inventory.get(request.device)
        return wire.GetDeviceResponse(
            device=_device(view), receipts=[receipt_to_wire(receipt) for receipt in receipts]
        )

    async def ExplainDevice(
        self, request: wire.ExplainDeviceRequest, context: Context
    ) -> wire.ExplainDeviceResponse:
        explanation = await self._inventory.explain(
            request.device, release=request.release, generation=request.generation
        )
        answer = wire.ExplainDeviceResponse(device=_device(explanation.view))
        if explanation.receipt is not None:
            answer.release = explanation.receipt.release
            answer.generation = explanation.receipt.generation
            answer.outcome = update_state_to_wire(explanation.receipt.outcome)
            answer.reason = explanation.receipt.reason
            answer.detail = explanation.receipt.detail
            answer.decisions.extend(map(decision_to_wire, explanation.receipt.decisions))
            answer.checks.extend(map(check_to_wire, explanation.receipt.checks))
        return answer

    async def UpdateDeviceLabels(
        self, request: wire.UpdateDeviceLabelsRequest, context: Context
    ) -> wire.UpdateDeviceLabelsResponse:
        view = await self._inventory.update_labels(
            current_caller(),
            request.request_id,
            request.device,
            put=dict(request.set),
            remove=list(request.remove),
        )
        return wire.UpdateDeviceLabelsResponse(device=_device(view))

    async def SetDeviceState(
        self, request: wire.SetDeviceStateRequest, context: Context
    ) -> wire.SetDeviceStateResponse:
        device_id = await self._states.change(
            current_caller(), request.request_id, request.device, request.state, request.reason
        )
        view, _ = await self._inventory.get(device_id)
        return wire.SetDeviceStateResponse(device=_device(view))

    async def CreateJoinToken(
        self, request: wire.CreateJoinTokenRequest, context: Context
    ) -> wire.CreateJoinTokenResponse:
        made = await self._join_tokens.create(
            current_caller(),
            request.request_id,
            uses=request.uses,
            lifetime_seconds=request.lifetime_seconds,
            labels=dict(request.labels),
        )
        return wire.CreateJoinTokenResponse(token=_token(made.token), secret=made.secret)

    async def ListJoinTokens(
        self, request: wire.ListJoinTokensRequest, context: Context
    ) -> wire.ListJoinTokensResponse:
        page = await self._join_tokens.page(page_request(request.page_size, request.page_token))
        return wire.ListJoinTokensResponse(
            tokens=[_token(token) for token in page.items], next_page_token=page.next_token
        )

    async def RevokeJoinToken(
        self, request: wire.RevokeJoinTokenRequest, context: Context
    ) -> wire.RevokeJoinTokenResponse:
        token = await self._join_tokens.revoke(current_caller(), request.request_id, request.id)
        return wire.RevokeJoinTokenResponse(token=_token(token))


def _device(view: DeviceView) -> wire.Device:
    device = view.device
    return wire.Device(
        id=device.id,
        name=device.name,
        labels=device.labels,
        state=device.state,
        state_reason=device.state_reason,
        connected=device.connected,
        last_seen_at=timestamp(device.last_seen_at),
        enrolled_at=timestamp(device.enrolled_at),
        hardware_class=device.hardware_class,
        facts=facts_to_wire(device.facts),
        agent_version=device.agent_version,
        assigned_generation=device.assigned_generation,
        assigned_release=device.assigned_release,
        update_state=update_state_to_wire(device.update_state),
        update_detail=device.update_detail,
        current_release=device.current_release,
        last_good_release=device.last_good_release,
        certificate_expires_at=timestamp(device.certificate_expires_at),
        variants=view.variants,
        health=None if device.health is None else health_to_wire(device.health),
        health_at=timestamp(device.health_at),
    )


def _token(token: JoinToken) -> wire.JoinToken:
    return wire.JoinToken(
        id=token.id,
        uses_left=token.uses_left,
        expires_at=timestamp(token.expires_at),
        created_at=timestamp(token.created_at),
        revoked=token.revoked,
        labels=token.labels,
    )
