"""The role that each RPC requires, one line per RPC."""

from typing import Final

from controlplane.services.access import Role

_PACKAGE: Final = "/flotilla.v1"

# Open to callers without an identity. The interceptor bounds how many calls of these one address
# has open, and for how long. Health/Watch is left out: its streams never end.
OPEN: Final = frozenset(
    (
        f"{_PACKAGE}.EnrollmentService/GetTrustBundle",
        f"{_PACKAGE}.EnrollmentService/Enroll",
        "/grpc.health.v1.Health/Check",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    )
)

# Device port: a device certificate.
DEVICE: Final = frozenset(
    (
        f"{_PACKAGE}.DeviceService/Connect",
        f"{_PACKAGE}.DeviceService/FetchChunks",
        f"{_PACKAGE}.DeviceService/FetchMetadata",
        f"{_PACKAGE}.DeviceService/RenewCertificate",
        f"{_PACKAGE}.DeviceService/GetDelta",
    )
)

# Its messages are bounded by their own translation (api.device_stream), not by api.bounds.
LENIENT: Final = frozenset((f"{_PACKAGE}.DeviceService/Connect",))

# Public port: a bearer token of at least this role.
MINIMUM_ROLE: Final = {
    f"{_PACKAGE}.FleetService/ListDevices": Role.VIEWER,
    f"{_PACKAGE}.FleetService/GetDevice": Role.VIEWER,
    f"{_PACKAGE}.FleetService/ExplainDevice": Role.VIEWER,
    f"{_PACKAGE}.FleetService/UpdateDeviceLabels": Role.OPERATOR,
    f"{_PACKAGE}.FleetService/SetDeviceState": Role.OPERATOR,
    f"{_PACKAGE}.FleetService/CreateJoinToken": Role.OPERATOR,
    f"{_PACKAGE}.FleetService/ListJoinTokens": Role.OPERATOR,
    f"{_PACKAGE}.FleetService/RevokeJoinToken": Role.OPERATOR,
    f"{_PACKAGE}.ModelService/GetTrust": Role.VIEWER,
    f"{_PACKAGE}.ModelService/InitializeTrust": Role.ADMIN,
    # Metadata is trusted by its signatures; publishers send their own changes by this RPC too.
    f"{_PACKAGE}.ModelService/UpdateTrust": Role.PUBLISHER,
    f"{_PACKAGE}.ModelService/RestoreTrust": Role.PUBLISHER,
    f"{_PACKAGE}.ModelService/GetMetadata": Role.VIEWER,
    f"{_PACKAGE}.ModelService/MissingChunks": Role.PUBLISHER,
    f"{_PACKAGE}.ModelService/UploadChunks": Role.PUBLISHER,
    f"{_PACKAGE}.ModelService/PublishRelease": Role.PUBLISHER,
    f"{_PACKAGE}.ModelService/ListReleases": Role.VIEWER,
    f"{_PACKAGE}.ModelService/GetRelease": Role.VIEWER,
    # It may create deltas, which takes CPU time of the server.
    f"{_PACKAGE}.ModelService/CompareReleases": Role.OPERATOR,
    f"{_PACKAGE}.RolloutService/StartRollout": Role.OPERATOR,
    f"{_PACKAGE}.RolloutService/ListRollouts": Role.VIEWER,
    f"{_PACKAGE}.RolloutService/GetRollout": Role.VIEWER,
    f"{_PACKAGE}.RolloutService/WatchRollout": Role.VIEWER,
    f"{_PACKAGE}.RolloutService/PauseRollout": Role.OPERATOR,
    f"{_PACKAGE}.RolloutService/ResumeRollout": Role.OPERATOR,
    f"{_PACKAGE}.RolloutService/AbortRollout": Role.OPERATOR,
    f"{_PACKAGE}.RolloutService/RollbackRollout": Role.OPERATOR,
    f"{_PACKAGE}.TelemetryService/SummarizeTelemetry": Role.VIEWER,
    f"{_PACKAGE}.AccessService/CreateApiToken": Role.ADMIN,
    f"{_PACKAGE}.AccessService/ListApiTokens": Role.ADMIN,
    f"{_PACKAGE}.AccessService/RevokeApiToken": Role.ADMIN,
    f"{_PACKAGE}.AccessService/ListAuditEvents": Role.VIEWER,
    f"{_PACKAGE}.ServerKeyService/GetAuthorities": Role.VIEWER,
    f"{_PACKAGE}.ServerKeyService/RotateAuthority": Role.ADMIN,
    f"{_PACKAGE}.ServerKeyService/RetireAuthority": Role.ADMIN,
    f"{_PACKAGE}.ServerKeyService/RotateDirectorKey": Role.ADMIN,
}
