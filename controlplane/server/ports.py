"""The three ports and the services on each."""

import asyncio
import contextlib
import time
from typing import Final

import grpc
from flotilla.v1 import (
    access_pb2_grpc,
    device_pb2,
    enrollment_pb2_grpc,
    fleet_pb2_grpc,
    model_pb2_grpc,
    rollout_pb2_grpc,
    server_keys_pb2_grpc,
    telemetry_pb2_grpc,
)

from controlplane.api.access import AccessServicer
from controlplane.api.bandwidth import Bandwidth
from controlplane.api.device import DeviceServicer, add_device_servicer
from controlplane.api.device_stream import DeviceStreams
from controlplane.api.enrollment import EnrollmentServicer
from controlplane.api.fleet import FleetServicer
from controlplane.api.interceptor import DeviceDoor, PublicDoor
from controlplane.api.model import ModelServicer
from controlplane.api.rollouts import RolloutServicer
from controlplane.api.server_keys import ServerKeyServicer
from controlplane.api.streams import Admission
from controlplane.api.telemetry import TelemetryServicer
from controlplane.config import Address
from controlplane.server.composition import Services
from controlplane.server.http import HttpServer, make_app
from controlplane.server.listeners import add_health_and_reflection, add_port, bind, grpc_server

PUBLIC_SERVICES: Final = tuple(
    f"flotilla.v1.{noun}Service"
    for noun in ("Enrollment", "Fleet", "Model", "Rollout", "Telemetry", "Access", "ServerKey")
)


async def start_http(services: Services, stack: contextlib.AsyncExitStack) -> Address:
    listener = bind(services.config.http)
    stack.callback(listener.close)
    server = HttpServer(
        make_app(services.metrics, services.readiness.check), services.config.http_seconds
    )
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    stack.push_async_callback(_stop_http, server, serving)
    host, port = listener.getsockname()[:2]
    return Address(host, port)


async def start_device_port(services: Services, stack: contextlib.AsyncExitStack) -> Address:
    config = services.config
    server = grpc_server(
        DeviceDoor(services.identification.identify), services.metrics, config.handshake_seconds
    )
    streams = DeviceStreams(
        ingest=services.ingest,
        enroll=services.enroll,
        identification=services.identification,
        director=services.director,
        class_measurements=services.class_measurements,
        signals=services.signals,
        streams=services.streams,
        admission=Admission(config.connect_burst, config.connects_per_second, time.monotonic),
        settings=device_pb2.Settings(
            telemetry_window_seconds=config.telemetry_window_seconds,
            status_interval_seconds=config.status_interval_seconds,
        ),
    )
    servicer = DeviceServicer(
        enroll=services.enroll,
        identification=services.identification,
        repository=services.repository,
        deltas=services.deltas,
        signals=services.signals,
        bandwidth=Bandwidth(
            config.device_bytes_per_second, config.site_bytes_per_second, time.monotonic
        ),
        metrics=services.metrics,
    )
    add_device_servicer(streams, servicer, server)
    address = add_port(server, config.device, services.keys, mutual=True)
    # Callbacks run in reverse order: the streams are ended, the server waits for their calls, and
    # then the records of their ends are awaited.
    stack.push_async_callback(streams.drain)
    await _start(server, services, stack)
    stack.callback(services.streams.end_all)
    return address


async def start_public_port(
    services: Services, device: Address, stack: contextlib.AsyncExitStack
) -> Address:
    config = services.config
    server = grpc_server(PublicDoor(services.access), services.metrics, config.handshake_seconds)
    advertised = Address(config.advertised_host, device.port)
    enrollment_pb2_grpc.add_EnrollmentServiceServicer_to_server(
        EnrollmentServicer(services.enroll, str(advertised)), server
    )
    access_pb2_grpc.add_AccessServiceServicer_to_server(AccessServicer(services.access), server)
    fleet_pb2_grpc.add_FleetServiceServicer_to_server(
        FleetServicer(
            inventory=services.inventory,
            states=services.states,
            join_tokens=services.join_tokens,
        ),
        server,
    )
    model_pb2_grpc.add_ModelServiceServicer_to_server(
        ModelServicer(
            repository=services.repository,
            uploads=services.uploads,
            releases=services.releases,
            comparison=services.comparison,
            restore=services.restore,
        ),
        server,
    )
    rollout_pb2_grpc.add_RolloutServiceServicer_to_server(
        RolloutServicer(services.rollouts), server
    )
    telemetry_pb2_grpc.add_TelemetryServiceServicer_to_server(
        TelemetryServicer(services.telemetry), server
    )
    server_keys_pb2_grpc.add_ServerKeyServiceServicer_to_server(
        ServerKeyServicer(services.authorities, services.director), server
    )
    await add_health_and_reflection(server, PUBLIC_SERVICES)
    address = add_port(server, config.public, services.keys, mutual=False)
    await _start(server, services, stack)
    return address


async def _start(
    server: grpc.aio.Server, services: Services, stack: contextlib.AsyncExitStack
) -> None:
    await server.start()
    stack.push_async_callback(server.stop, services.config.shutdown_grace_seconds)


async def _stop_http(server: HttpServer, serving: asyncio.Task[None]) -> None:
    server.should_exit = True
    await serving
