"""Assignments are signed for one device, by the key that its join token pins."""

import asyncio
import hashlib
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner
from control_plane import Box, Clock, Plane, Publisher, request_id
from flotilla.v1 import (
    access_pb2,
    device_pb2,
    enrollment_pb2,
    fleet_pb2,
    model_pb2,
    rollout_pb2,
    rollout_pb2_grpc,
    server_keys_pb2,
    server_keys_pb2_grpc,
)
from image_world import Numbers
from tuf.api.metadata import Targets

from artifact.errors import UntrustedError
from artifact.join_token import decode_join_token
from artifact.manifest import target_path
from artifact.trust.ceremony import delist, next_version
from artifact.trust.director import DirectorVerifier
from artifact.trust.statements import DirectorMetadata, check_directive
from controlplane.cli.command import cli

CHAT = "acme/chat@1.0.0"
STRATEGY = "waves: [{name: all, percent: 100}]"


@pytest.fixture
async def released(publisher: Publisher, tmp_path: Path) -> str:
    """Publish a release and return its manifest's digest."""
    file, chunks = publisher.make_file(tmp_path / "model.gguf", b"weights" * 1000)
    await publisher.upload(chunks)
    return (await publisher.publish(publisher.manifest(file))).manifest_sha256


async def roll_out(plane: Plane) -> None:
    stub: Any = rollout_pb2_grpc.RolloutServiceStub(plane.channel())
    await stub.StartRollout(
        rollout_pb2.StartRolloutRequest(request_id=request_id(), release=CHAT, strategy=STRATEGY)
    )


async def assigned(box: Box, *, after: int = 0) -> device_pb2.Assignment:
    life = await box.connect()
    async with asyncio.timeout(15):
        while (wanted := await life.read_assignment()).generation <= after:
            pass
    await life.end()
    return wanted


async def verifier(plane: Plane, box: Box) -> DirectorVerifier:
    answer = await plane.enrollment().GetTrustBundle(enrollment_pb2.GetTrustBundleRequest())
    return DirectorVerifier(
        answer.director_root, box.device_id, clock=plane.clock, floors=Numbers()
    )


def metadata(wanted: device_pb2.Assignment) -> DirectorMetadata:
    signed = wanted.director
    return DirectorMetadata(signed.timestamp, signed.snapshot, signed.targets, tuple(signed.roots))


async def test_the_join_token_vouches_for_the_director(plane: Plane, publisher: Publisher) -> None:
    made = await plane.fleet().CreateJoinToken(
        fleet_pb2.CreateJoinTokenRequest(request_id=request_id(), uses=1, lifetime_seconds=60)
    )
    answer = await plane.enrollment().GetTrustBundle(enrollment_pb2.GetTrustBundleRequest())
    digest = hashlib.sha256(answer.director_root).hexdigest()
    assert decode_join_token(made.secret).director == digest


async def test_an_assignment_is_signed_for_its_device(plane: Plane, released: str) -> None:
    box, other = await plane.enroll("box-1"), await plane.enroll("box-2")
    await roll_out(plane)
    wanted = await assigned(box)
    directive = (await verifier(plane, box)).directive(metadata(wanted))
    check_directive(directive, 1, CHAT)
    assert directive.release is not None
    assert (directive.release.sha256, directive.release.counter) == (released, 1)
    for_other = metadata(await assigned(other))
    assert for_other.targets != wanted.director.targets


async def test_what_was_signed_is_the_same_until_it_is_renewed(
    plane: Plane, clock: Clock, released: str
) -> None:
    box = await plane.enroll("box-1")
    await roll_out(plane)
    first, again = await assigned(box), await assigned(box)
    assert again == first
    clock.ahead = timedelta(days=1, hours=1)
    renewed = await assigned(box)
    assert renewed.director != first.director
    seen = await verifier(plane, box)
    for wanted in (first, renewed):
        check_directive(seen.directive(metadata(wanted)), 1, CHAT)


async def test_before_the_first_assignment_nothing_is_signed(
    plane: Plane, publisher: Publisher
) -> None:
    box = await plane.enroll("box-1")
    wanted = await (await box.connect()).read_assignment()
    assert wanted.generation == 0
    assert not wanted.HasField("director")


async def test_a_withdrawn_release_is_not_rolled_out(
    plane: Plane, publisher: Publisher, released: str
) -> None:
    await plane.enroll("box-1")
    listing = next_version(
        Targets,
        publisher.current["acme"],
        "acme",
        [publisher.keys["acme"]],
        now=plane.clock(),
        edit=delist("acme", [target_path(CHAT)]),
    )
    await plane.model().UpdateTrust(
        model_pb2.UpdateTrustRequest(request_id=request_id(), delegated={"acme": listing})
    )
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await roll_out(plane)
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "withdrawn" in (refused.value.details() or "")


async def test_the_directors_keys_are_replaced_on_a_live_fleet(plane: Plane, released: str) -> None:
    box = await plane.enroll("box-1")
    await roll_out(plane)
    seen = await verifier(plane, box)
    before = await assigned(box)
    seen.directive(metadata(before))
    for version, role in enumerate(("director", "director-root", "director"), start=2):
        context = str(plane.config.data_dir / "admin.json")
        arguments = ["--context", context, "--json", "keys", "rotate", role]
        result = await asyncio.to_thread(CliRunner().invoke, cli, arguments)
        assert result.exit_code == 0, result.output
        assert json.loads(result.output) == {"director_root_version": version}
    wanted = await assigned(box)
    check_directive(seen.directive(metadata(wanted)), 1, CHAT)
    # Signatures of the old key are refused from now on; a new device starts from the same root.
    with pytest.raises(UntrustedError):
        seen.directive(metadata(before))
    check_directive((await verifier(plane, box)).directive(metadata(wanted)), 1, CHAT)
    events = await plane.access().ListAuditEvents(access_pb2.ListAuditEventsRequest())
    assert [event.action for event in events.events].count("director.rotate") == 3


async def test_a_connected_device_has_the_new_root_at_once(plane: Plane, released: str) -> None:
    box = await plane.enroll("box-1")
    await roll_out(plane)
    life = await box.connect()
    async with asyncio.timeout(15):
        while not (before := await life.read_assignment()).generation:
            pass
        stub: Any = server_keys_pb2_grpc.ServerKeyServiceStub(plane.channel())
        await stub.RotateDirectorKey(
            server_keys_pb2.RotateDirectorKeyRequest(request_id=request_id())
        )
        after = await life.read_assignment()
    await life.end()
    assert (after.generation, len(after.director.roots)) == (before.generation, 1)
    seen = await verifier(plane, box)
    check_directive(seen.directive(metadata(after)), before.generation, CHAT)
    with pytest.raises(UntrustedError):
        seen.directive(metadata(before))


async def test_a_rotation_asked_for_twice_happens_once(plane: Plane) -> None:
    stub: Any = server_keys_pb2_grpc.ServerKeyServiceStub(plane.channel())
    request = server_keys_pb2.RotateDirectorKeyRequest(request_id=request_id(), root=True)
    for _ in range(2):
        assert (await stub.RotateDirectorKey(request)).root_version == 2
    # Concurrent rotations get different versions.
    more = [
        server_keys_pb2.RotateDirectorKeyRequest(request_id=request_id(), root=root)
        for root in (False, True, False)
    ]
    answers = await asyncio.gather(*map(stub.RotateDirectorKey, more))
    assert sorted(answer.root_version for answer in answers) == [3, 4, 5]
    other: Any = server_keys_pb2_grpc.ServerKeyServiceStub(
        plane.channel(await plane.api_token("operator"))
    )
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await other.RotateDirectorKey(request)
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
