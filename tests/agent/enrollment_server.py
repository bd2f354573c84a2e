"""A control plane with enrolment only, over real TLS."""

import hashlib
from dataclasses import dataclass, field

import grpc
import grpc.aio
import msgspec
from flotilla.v1 import enrollment_pb2, enrollment_pb2_grpc

from artifact.join_token import JoinToken, encode_join_token
from tests.agent.tls import Authority

ROOT = b'{"signed": "first root"}'
DIRECTOR_ROOT = b'{"signed": "the director"}'
SECRET = "s" * 43


def join_token(authority: Authority, **changes: str) -> str:
    """Return the join token that an operator would copy."""
    token = JoinToken(
        secret=SECRET,
        ca=authority.digest,
        root=hashlib.sha256(ROOT).hexdigest(),
        director=hashlib.sha256(DIRECTOR_ROOT).hexdigest(),
    )
    return encode_join_token(msgspec.structs.replace(token, **changes))


@dataclass
class Servicer(enrollment_pb2_grpc.EnrollmentServiceServicer):
    """Answer as the control plane does, or refuse with ``refusal``."""

    authority: Authority
    refusal: tuple[grpc.StatusCode, str] | None = None
    # Number of answers to lose after the server has stored the device.
    lost_replies: int = 0
    requests: list[enrollment_pb2.EnrollRequest] = field(default_factory=list)
    signs_for: Authority | None = None
    device_id: str = "device-1"

    async def GetTrustBundle(  # noqa: N802 - gRPC's name
        self, request: enrollment_pb2.GetTrustBundleRequest, context: object
    ) -> enrollment_pb2.GetTrustBundleResponse:
        return enrollment_pb2.GetTrustBundleResponse(
            ca_pem=self.authority.pem, image_root=ROOT, director_root=DIRECTOR_ROOT
        )

    async def Enroll(  # noqa: N802 - gRPC's name
        self, request: enrollment_pb2.EnrollRequest, context: grpc.aio.ServicerContext
    ) -> enrollment_pb2.EnrollResponse:
        self.requests.append(request)
        if self.refusal is not None:
            await context.abort(*self.refusal)
        if self.lost_replies:
            self.lost_replies -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "connection lost")
        signer = self.signs_for or self.authority
        return enrollment_pb2.EnrollResponse(
            device_id=self.device_id,
            certificate_pem=signer.device(request.csr_pem),
            device_endpoint="127.0.0.1:8444",
        )


async def start(
    servicer: Servicer, credentials: grpc.ServerCredentials
) -> tuple[grpc.aio.Server, int]:
    server = grpc.aio.server()
    enrollment_pb2_grpc.add_EnrollmentServiceServicer_to_server(servicer, server)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    return server, port
