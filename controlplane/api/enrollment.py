"""Servicer of EnrollmentService."""

from flotilla.v1 import enrollment_pb2 as wire
from flotilla.v1 import enrollment_pb2_grpc

from controlplane.api.interceptor import Context
from controlplane.api.translate import authorities_to_wire, facts_from_wire
from controlplane.services.devices.enrollment import EnrollService


class EnrollmentServicer(enrollment_pb2_grpc.EnrollmentServiceServicer):
    """RPCs for devices that have only a join token."""

    def __init__(self, service: EnrollService, device_endpoint: str) -> None:
        self._service = service
        self._device_endpoint = device_endpoint

    async def GetTrustBundle(
        self, request: wire.GetTrustBundleRequest, context: Context
    ) -> wire.GetTrustBundleResponse:
        bundle = await self._service.trust_bundle()
        return wire.GetTrustBundleResponse(
            ca_pem=bundle.authorities.current,
            image_root=bundle.image_root,
            director_root=bundle.director_root,
            authorities=authorities_to_wire(bundle.authorities),
        )

    async def Enroll(self, request: wire.EnrollRequest, context: Context) -> wire.EnrollResponse:
        enrolment = await self._service.enroll(
            secret=request.token,
            csr_pem=request.csr_pem,
            name=request.name,
            labels=dict(request.labels),
            facts=facts_from_wire(request.facts),
            recover=request.recover_device_id,
        )
        return wire.EnrollResponse(
            device_id=enrolment.device_id,
            certificate_pem=enrolment.certificate_pem,
            device_endpoint=self._device_endpoint,
        )
