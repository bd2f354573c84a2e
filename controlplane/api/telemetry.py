"""Servicer of TelemetryService."""

from dataclasses import asdict
from typing import Final

from flotilla.v1 import telemetry_pb2 as wire
from flotilla.v1 import telemetry_pb2_grpc

from controlplane.api.interceptor import Context
from controlplane.api.translate import moment
from controlplane.errors import InvalidInputError
from controlplane.services.telemetry import TelemetryService
from controlplane.telemetry import Grouping

_GROUPINGS: Final = {
    wire.TELEMETRY_GROUPING_UNSPECIFIED: Grouping.DEVICE,
    wire.TELEMETRY_GROUPING_DEVICE: Grouping.DEVICE,
    wire.TELEMETRY_GROUPING_VARIANT: Grouping.VARIANT,
    wire.TELEMETRY_GROUPING_HARDWARE_CLASS: Grouping.HARDWARE_CLASS,
    wire.TELEMETRY_GROUPING_ROUTE: Grouping.ROUTE,
}


class TelemetryServicer(telemetry_pb2_grpc.TelemetryServiceServicer):
    """Summaries of the fleet's telemetry."""

    def __init__(self, service: TelemetryService) -> None:
        self._service = service

    async def SummarizeTelemetry(
        self, request: wire.SummarizeTelemetryRequest, context: Context
    ) -> wire.SummarizeTelemetryResponse:
        grouping = _GROUPINGS.get(request.grouping)
        if grouping is None:
            raise InvalidInputError(
                f"{request.grouping} is not a grouping",
                advice="Group by device, variant, hardware class or route.",
            )
        rows = await self._service.summarise(
            selector=request.selector,
            release=request.release,
            since=moment(request.since) if request.HasField("since") else None,
            grouping=grouping,
        )
        # The dataclass's fields have the message's names.
        return wire.SummarizeTelemetryResponse(
            rows=[wire.TelemetrySummary(**asdict(row)) for row in rows]
        )
