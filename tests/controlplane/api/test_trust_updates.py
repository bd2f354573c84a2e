"""Changes by the offline keys over the wire: all parts or none are accepted, and stored."""

from pathlib import Path

import grpc
import pytest
from control_plane import Clock, Plane, Publisher, request_id, running_plane
from flotilla.v1 import access_pb2, model_pb2
from tuf.api.metadata import Root, Targets

from artifact.manifest import target_path
from artifact.trust.ceremony import delist, next_version, replace_key
from artifact.trust.keys import decode_public_key
from artifact.trust.metadata import parse

CHAT = "acme/chat@1.0.0"


@pytest.fixture
async def published(publisher: Publisher, tmp_path: Path) -> Publisher:
    file, chunks = publisher.make_file(tmp_path / "model.gguf", b"weights" * 1000)
    await publisher.upload(chunks)
    await publisher.publish(publisher.manifest(file))
    return publisher


def without_chat(publisher: Publisher) -> model_pb2.UpdateTrustRequest:
    listing = next_version(
        Targets,
        publisher.current["acme"],
        "acme",
        [publisher.keys["acme"]],
        now=publisher.plane.clock(),
        edit=delist("acme", [target_path(CHAT)]),
    )
    return model_pb2.UpdateTrustRequest(request_id=request_id(), delegated={"acme": listing})


async def is_listed(plane: Plane) -> bool:
    got = await plane.model().GetRelease(model_pb2.GetReleaseRequest(reference=CHAT))
    listed = await plane.model().ListReleases(model_pb2.ListReleasesRequest())
    assert listed.releases[0].listed == got.release.listed
    return bool(got.release.listed)


async def next_root(plane: Plane, publisher: Publisher) -> bytes:
    """Return root version 2, which delegates timestamp to the server's next key."""
    trust = await plane.model().GetTrust(model_pb2.GetTrustRequest())
    first = await plane.model().GetMetadata(model_pb2.GetMetadataRequest(name="1.root.json"))
    (old,) = parse(Root, first.data, "root").signed.roles["timestamp"].keyids
    return next_version(
        Root,
        first.data,
        "root",
        [publisher.root],
        now=plane.clock(),
        edit=replace_key("timestamp", old, decode_public_key(trust.next_timestamp_key)),
    )


async def test_a_delisted_release_stays_known_and_is_no_longer_listed(
    plane: Plane, published: Publisher
) -> None:
    assert await is_listed(plane)
    request = without_chat(published)
    await plane.model().UpdateTrust(request)
    await plane.model().UpdateTrust(request)
    assert not await is_listed(plane)
    events = await plane.access().ListAuditEvents(access_pb2.ListAuditEventsRequest())
    assert [event.action for event in events.events].count("trust.update") == 1


async def test_who_signed_it_counts_and_who_sends_it_must_publish(
    plane: Plane, published: Publisher
) -> None:
    request = without_chat(published)
    viewer = plane.model(await plane.api_token("operator"))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await viewer.UpdateTrust(request)
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    published.keys["acme"] = published.keys["beta"]
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await plane.model().UpdateTrust(without_chat(published))
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert await is_listed(plane)


async def test_the_server_changes_to_the_key_that_a_new_root_names(
    plane: Plane, published: Publisher
) -> None:
    before = await plane.model().GetTrust(model_pb2.GetTrustRequest())
    root = await next_root(plane, published)
    answer = await plane.model().UpdateTrust(
        model_pb2.UpdateTrustRequest(request_id=request_id(), root=root)
    )
    assert answer.root_version == 2
    after = await plane.model().GetTrust(model_pb2.GetTrustRequest())
    assert after.timestamp_key == before.next_timestamp_key
    assert after.next_timestamp_key not in {before.timestamp_key, before.next_timestamp_key}
    assert after.snapshot_key == before.snapshot_key
    assert after.next_snapshot_key == before.next_snapshot_key
    file = (plane.config.data_dir / "keys" / "timestamp.key").stat()
    assert file.st_mode & 0o777 == 0o600
    # From now on the new key signs.
    timestamp = await plane.model().GetMetadata(model_pb2.GetMetadataRequest(name="timestamp.json"))
    assert decode_public_key(after.timestamp_key).keyid.encode() in timestamp.data


async def test_a_crash_before_the_key_changes_hands_is_made_good_at_the_next_start(
    tmp_path: Path, clock: Clock
) -> None:
    keys = tmp_path / "server" / "keys"
    async with running_plane(tmp_path / "server", clock) as plane:
        publisher = Publisher(plane)
        await publisher.initialise()
        root = await next_root(plane, publisher)
        held = {path.name: path.read_bytes() for path in keys.glob("timestamp*.key")}
        await plane.model().UpdateTrust(
            model_pb2.UpdateTrustRequest(request_id=request_id(), root=root)
        )
    for name, data in held.items():
        (keys / name).write_bytes(data)
    async with running_plane(tmp_path / "server", clock) as plane:
        trust = await plane.model().GetTrust(model_pb2.GetTrustRequest())
        assert (keys / "timestamp.key").read_bytes() == held["timestamp.next.key"]
        assert decode_public_key(trust.timestamp_key).keyid in root.decode()
