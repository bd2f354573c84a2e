"""Servicer of ServerKeyService."""

from typing import Final

from flotilla.v1 import server_keys_pb2 as wire
from flotilla.v1 import server_keys_pb2_grpc

from controlplane.api.interceptor import Context, current_caller
from controlplane.api.translate import authorities_to_wire, timestamp
from controlplane.services.director import DirectorService
from controlplane.services.keys.authority_change import AuthorityChange, AuthorityService

MAX_SHOWN: Final = 100


class ServerKeyServicer(server_keys_pb2_grpc.ServerKeyServiceServicer):
    """The server's own signing keys and CAs."""

    def __init__(self, authorities: AuthorityService, director: DirectorService) -> None:
        self._authorities = authorities
        self._director = director

    async def GetAuthorities(
        self, request: wire.GetAuthoritiesRequest, context: Context
    ) -> wire.GetAuthoritiesResponse:
        return wire.GetAuthoritiesResponse(change=_change(await self._authorities.status()))

    async def RotateAuthority(
        self, request: wire.RotateAuthorityRequest, context: Context
    ) -> wire.RotateAuthorityResponse:
        change = await self._authorities.rotate(current_caller(), request.request_id)
        return wire.RotateAuthorityResponse(change=_change(change))

    async def RetireAuthority(
        self, request: wire.RetireAuthorityRequest, context: Context
    ) -> wire.RetireAuthorityResponse:
        change = await self._authorities.retire(
            current_caller(), request.request_id, request.leave_silent_seconds
        )
        return wire.RetireAuthorityResponse(change=_change(change))

    async def RotateDirectorKey(
        self, request: wire.RotateDirectorKeyRequest, context: Context
    ) -> wire.RotateDirectorKeyResponse:
        version = await self._director.rotate_key(
            current_caller(), request.request_id, root=request.root
        )
        return wire.RotateDirectorKeyResponse(root_version=version)


def _change(change: AuthorityChange) -> wire.AuthorityChange:
    return wire.AuthorityChange(
        authorities=authorities_to_wire(change.authorities),
        current_sha256=change.current_sha256,
        previous_sha256=change.previous_sha256,
        current_made_at=timestamp(change.made_at),
        current_expires_at=timestamp(change.expires_at),
        moved=change.moved,
        waiting=len(change.waiting),
        waiting_devices=[
            wire.WaitingDevice(
                name=device.name,
                last_seen_at=timestamp(device.last_seen_at),
                connected=device.connected,
            )
            for device in change.waiting[:MAX_SHOWN]
        ],
    )
