"""Servicer of AccessService."""

from flotilla.v1 import access_pb2 as wire
from flotilla.v1 import access_pb2_grpc

from controlplane.api.interceptor import Context, current_caller
from controlplane.api.translate import timestamp
from controlplane.services.access import AccessService
from controlplane.store.api_tokens import ApiToken
from controlplane.store.audit import AuditEvent
from controlplane.store.paging import page_request


class AccessServicer(access_pb2_grpc.AccessServiceServicer):
    """API tokens and the audit log."""

    def __init__(self, service: AccessService) -> None:
        self._service = service

    async def CreateApiToken(
        self, request: wire.CreateApiTokenRequest, context: Context
    ) -> wire.CreateApiTokenResponse:
        made = await self._service.create_token(
            current_caller(),
            request.request_id,
            request.name,
            request.role,
            request.lifetime_seconds,
        )
        return wire.CreateApiTokenResponse(token=_token(made.token), secret=made.secret)

    async def ListApiTokens(
        self, request: wire.ListApiTokensRequest, context: Context
    ) -> wire.ListApiTokensResponse:
        page = await self._service.list_tokens(page_request(request.page_size, request.page_token))
        return wire.ListApiTokensResponse(
            tokens=[_token(token) for token in page.items], next_page_token=page.next_token
        )

    async def RevokeApiToken(
        self, request: wire.RevokeApiTokenRequest, context: Context
    ) -> wire.RevokeApiTokenResponse:
        token = await self._service.revoke_token(current_caller(), request.request_id, request.id)
        return wire.RevokeApiTokenResponse(token=_token(token))

    async def ListAuditEvents(
        self, request: wire.ListAuditEventsRequest, context: Context
    ) -> wire.ListAuditEventsResponse:
        page = await self._service.list_audit_events(
            page_request(request.page_size, request.page_token)
        )
        return wire.ListAuditEventsResponse(
            events=[_event(event) for event in page.items], next_page_token=page.next_token
        )


def _token(token: ApiToken) -> wire.ApiToken:
    return wire.ApiToken(
        id=token.id,
        name=token.name,
        role=token.role,
        created_at=timestamp(token.created_at),
        expires_at=timestamp(token.expires_at),
        revoked=token.revoked,
    )


def _event(event: AuditEvent) -> wire.AuditEvent:
    return wire.AuditEvent(
        sequence=event.sequence,
        at=timestamp(event.at),
        actor=event.actor,
        action=event.action,
        subject=event.subject,
        detail=event.detail,
        digest=event.digest,
    )
