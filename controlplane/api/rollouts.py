"""Servicer of RolloutService."""

from collections.abc import AsyncIterator, Sequence

from flotilla.v1 import rollout_pb2 as wire
from flotilla.v1 import rollout_pb2_grpc

from controlplane.api.interceptor import Context, current_caller
from controlplane.api.translate import timestamp
from controlplane.rollouts.gates import Counts
from controlplane.rollouts.records import Member, Rollout, Wave
from controlplane.rollouts.strategy import encode_strategy
from controlplane.services.rollouts.steering import RolloutService, RolloutView
from controlplane.store.paging import page_request


class RolloutServicer(rollout_pb2_grpc.RolloutServiceServicer):
    """Rollouts: start, steer, list, watch."""

    def __init__(self, service: RolloutService) -> None:
        self._service = service

    async def StartRollout(
        self, request: wire.StartRolloutRequest, context: Context
    ) -> wire.StartRolloutResponse:
        view = await self._service.start(
            current_caller(),
            request.request_id,
            release=request.release,
            selector=request.selector,
            strategy=request.strategy,
        )
        return wire.StartRolloutResponse(rollout=_view(view))

    async def ListRollouts(
        self, request: wire.ListRolloutsRequest, context: Context
    ) -> wire.ListRolloutsResponse:
        page = await self._service.page(page_request(request.page_size, request.page_token))
        return wire.ListRolloutsResponse(
            rollouts=[_rollout(listed.rollout, listed.counts) for listed in page.items],
            next_page_token=page.next_token,
        )

    async def GetRollout(
        self, request: wire.GetRolloutRequest, context: Context
    ) -> wire.GetRolloutResponse:
        return wire.GetRolloutResponse(rollout=_view(await self._service.get(request.id)))

    async def WatchRollout(
        self, request: wire.WatchRolloutRequest, context: Context
    ) -> AsyncIterator[wire.WatchRolloutResponse]:
        async for view in self._service.watch(request.id):
            yield wire.WatchRolloutResponse(rollout=_view(view))

    async def PauseRollout(
        self, request: wire.PauseRolloutRequest, context: Context
    ) -> wire.PauseRolloutResponse:
        view = await self._service.pause(
            current_caller(), request.request_id, request.id, request.reason
        )
        return wire.PauseRolloutResponse(rollout=_view(view))

    async def ResumeRollout(
        self, request: wire.ResumeRolloutRequest, context: Context
    ) -> wire.ResumeRolloutResponse:
        view = await self._service.resume(current_caller(), request.request_id, request.id)
        return wire.ResumeRolloutResponse(rollout=_view(view))

    async def AbortRollout(
        self, request: wire.AbortRolloutRequest, context: Context
    ) -> wire.AbortRolloutResponse:
        view = await self._service.abort(
            current_caller(), request.request_id, request.id, request.reason
        )
        return wire.AbortRolloutResponse(rollout=_view(view))

    async def RollbackRollout(
        self, request: wire.RollbackRolloutRequest, context: Context
    ) -> wire.RollbackRolloutResponse:
        view = await self._service.roll_back(
            current_caller(), request.request_id, request.id, request.reason
        )
        return wire.RollbackRolloutResponse(rollout=_view(view))


def _view(view: RolloutView) -> wire.Rollout:
    message = _rollout(view.rollout, view.counts)
    message.devices.extend(_device(member) for member in view.rollout.members.values())
    return message


def _rollout(rollout: Rollout, counts: Sequence[Counts]) -> wire.Rollout:
    return wire.Rollout(
        id=rollout.id,
        release=rollout.release,
        selector=rollout.selector,
        state=wire.RolloutState.Value(f"ROLLOUT_STATE_{rollout.state.name}"),
        reason=rollout.reason,
        created_at=timestamp(rollout.created_at),
        updated_at=timestamp(rollout.updated_at),
        created_by=rollout.created_by,
        waves=[_wave(wave, numbers) for wave, numbers in zip(rollout.waves, counts, strict=True)],
        strategy=encode_strategy(rollout.strategy),
    )


def _wave(wave: Wave, counts: Counts) -> wire.Wave:
    return wire.Wave(
        name=wave.name,
        state=wire.WaveState.Value(f"WAVE_STATE_{wave.state.name}"),
        reason=wave.reason,
        targeted=counts.targeted,
        reachable=counts.reachable,
        reported=counts.reported,
        succeeded=counts.succeeded,
        failed=counts.failed,
        gates=[
            wire.GateResult(gate=one.gate, outcome=one.outcome, detail=one.detail)
            for one in wave.verdicts
        ],
    )


def _device(member: Member) -> wire.RolloutDevice:
    return wire.RolloutDevice(
        device_id=member.device_id,
        name=member.name,
        wave=member.wave,
        state=member.state,
        detail=member.detail,
        previous_release=member.previous_release,
        generation=member.generation,
        bytes_downloaded=member.bytes_downloaded,
        switch_seconds=member.switch_seconds,
        sent_back=member.sent_back,
    )
