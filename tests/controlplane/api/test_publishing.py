"""A release is published complete and signed by its own publisher, or refused."""

import hashlib
from pathlib import Path

import grpc
import pytest
from control_plane import Plane, Publisher, request_id
from flotilla.v1 import device_pb2, model_pb2

from artifact.chunks import MAX_INDEX_BYTES
from artifact.manifest import File
from artifact.trust.keys import generate_key

Code = grpc.StatusCode
# Three chunks, all different.
CONTENT = b"".join(hashlib.sha256(str(i).encode()).digest() for i in range(70_000))


@pytest.fixture
def file(publisher: Publisher, tmp_path: Path) -> tuple[File, list[bytes]]:
    return publisher.make_file(tmp_path / "model.gguf", CONTENT)


async def refused(call: object) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call  # type: ignore[misc]
    return caught.value


def publish(plane: Plane, manifest: bytes, targets: bytes, request: str = "") -> object:
    return plane.model().PublishRelease(
        model_pb2.PublishReleaseRequest(
            request_id=request or request_id(), manifest=manifest, targets=targets
        )
    )


async def no_release(plane: Plane) -> bool:
    answer = await plane.model().ListReleases(model_pb2.ListReleasesRequest())
    metadata = await plane.model().GetMetadata(model_pb2.GetMetadataRequest(name="timestamp.json"))
    return not answer.releases and b'"version": 1' in metadata.data.replace(b":1", b": 1")


async def test_a_complete_and_signed_release_is_published(
    plane: Plane, publisher: Publisher, file: tuple[File, list[bytes]]
) -> None:
    answer = await publisher.upload(file[1])
    assert answer.chunks_stored == 4
    assert answer.bytes_stored == sum(map(len, file[1]))
    manifest = publisher.manifest(file[0])
    release = await publisher.publish(manifest)
    assert (release.reference, release.counter) == ("acme/chat@1.0.0", 1)
    assert release.components[0].variants[0].size_bytes == len(CONTENT)

    got = await plane.model().GetRelease(model_pb2.GetReleaseRequest(reference="acme/chat@1.0.0"))
    assert got.manifest == manifest
    assert got.release == release
    listed = await plane.model().GetMetadata(model_pb2.GetMetadataRequest(name="2.acme.json"))
    assert listed.data == publisher.current["acme"]
    # Devices fetch the manifest like files, by its digest.
    box = await plane.enroll("box-1")
    assert b"".join(await box.fetch([bytes.fromhex(release.manifest_sha256)])) == manifest


async def test_publishing_the_same_again_changes_nothing(
    plane: Plane, publisher: Publisher, file: tuple[File, list[bytes]]
) -> None:
    assert (await publisher.upload(file[1])).chunks_stored == 4
    assert (await publisher.upload(file[1])).chunks_stored == 0
    manifest = publisher.manifest(file[0])
    targets = publisher.sign(manifest)
    first = await publish(plane, manifest, targets, "one")  # type: ignore[misc]
    repeated = await publish(plane, manifest, targets, "one")  # type: ignore[misc]
    another = await publish(plane, manifest, targets, "two")  # type: ignore[misc]
    assert first.release == repeated.release == another.release


async def test_missing_chunks_are_named_then_uploaded(
    plane: Plane, publisher: Publisher, file: tuple[File, list[bytes]]
) -> None:
    digests = [hashlib.sha256(data).digest() for data in file[1]]
    ask = model_pb2.MissingChunksRequest(digests=[*digests, digests[0]])
    assert list((await plane.model().MissingChunks(ask)).digests) == digests
    await publisher.upload(file[1][:2])
    assert list((await plane.model().MissingChunks(ask)).digests) == digests[2:]


@pytest.mark.parametrize(("leave_out", "words"), [(0, "its index is missing"), (2, "the chunk")])
async def test_a_release_with_a_missing_chunk_is_refused(
    plane: Plane,
    publisher: Publisher,
    file: tuple[File, list[bytes]],
    leave_out: int,
    words: str,
) -> None:
    await publisher.upload([data for i, data in enumerate(file[1]) if i != leave_out])
    error = await refused(publisher.publish(publisher.manifest(file[0])))
    assert error.code() is Code.FAILED_PRECONDITION
    assert words in error.details()
    assert await no_release(plane)


async def test_an_index_of_another_file_is_refused(
    plane: Plane, publisher: Publisher, file: tuple[File, list[bytes]], tmp_path: Path
) -> None:
    other, chunks = publisher.make_file(tmp_path / "other.gguf", b"another file")
    await publisher.upload([*file[1], *chunks])
    wrong = File(name="m", size=file[0].size, sha256=file[0].sha256, index=other.index)
    error = await refused(publisher.publish(publisher.manifest(wrong)))
    assert error.code() is Code.INVALID_ARGUMENT
    assert "index of m describes 12 bytes" in error.details()
    assert await no_release(plane)


async def test_a_signature_by_another_key_is_refused(
    plane: Plane, publisher: Publisher, file: tuple[File, list[bytes]]
) -> None:
    await publisher.upload(file[1])
    manifest = publisher.manifest(file[0])
    forged = publisher.sign(manifest, signer=generate_key())
    error = await refused(publish(plane, manifest, forged))
    assert error.code() is Code.FAILED_PRECONDITION
    assert "not signed" in error.details()
    assert await no_release(plane)


async def test_a_publisher_cannot_publish_under_anothers_name(
    plane: Plane, publisher: Publisher, file: tuple[File, list[bytes]]
) -> None:
    await publisher.upload(file[1])
    manifest = publisher.manifest(file[0], name="beta/chat")
    # Signed by acme, but only beta may sign this name.
    targets = publisher.sign(manifest, publisher="acme")
    error = await refused(publish(plane, manifest, targets))
    assert error.code() is Code.FAILED_PRECONDITION
    assert await no_release(plane)


async def test_a_publisher_nobody_delegated_to_is_refused(
    plane: Plane, publisher: Publisher, file: tuple[File, list[bytes]]
) -> None:
    await publisher.upload(file[1])
    manifest = publisher.manifest(file[0], name="stranger/chat")
    error = await refused(publish(plane, manifest, publisher.sign(manifest)))
    assert error.code() is Code.FAILED_PRECONDITION
    assert "'stranger' is not a publisher" in error.details()


async def test_an_altered_manifest_is_refused(
    plane: Plane, publisher: Publisher, file: tuple[File, list[bytes]]
) -> None:
    await publisher.upload(file[1])
    targets = publisher.sign(publisher.manifest(file[0]))
    altered = publisher.manifest(file[0]).replace(b'"q8"', b'"q9"')
    error = await refused(publish(plane, altered, targets))
    assert error.code() is Code.FAILED_PRECONDITION
    assert await no_release(plane)


@pytest.mark.parametrize("size", [0, MAX_INDEX_BYTES + 1])
async def test_a_chunk_out_of_bounds_is_refused(
    plane: Plane, publisher: Publisher, size: int
) -> None:
    error = await refused(publisher.upload([b"x" * size]))
    assert error.code() is Code.INVALID_ARGUMENT


async def test_the_repository_is_founded_once(plane: Plane, publisher: Publisher) -> None:
    error = await refused(Publisher(plane).initialise())
    assert error.code() is Code.FAILED_PRECONDITION
    assert "already has an image repository" in error.details()
    trust = await plane.model().GetTrust(model_pb2.GetTrustRequest())
    assert trust.root_version == 1


@pytest.mark.parametrize("name", ["../1.root.json", "1.root", "9.root.json", "root.json", "x" * 90])
async def test_metadata_is_found_by_its_name_alone(
    plane: Plane, publisher: Publisher, name: str
) -> None:
    error = await refused(plane.model().GetMetadata(model_pb2.GetMetadataRequest(name=name)))
    assert error.code() in {Code.NOT_FOUND, Code.INVALID_ARGUMENT}


async def test_devices_fetch_exactly_the_bytes(
    plane: Plane, publisher: Publisher, file: tuple[File, list[bytes]]
) -> None:
    await publisher.upload(file[1])
    box = await plane.enroll("box-1")
    digests = [hashlib.sha256(data).digest() for data in file[1][1:]]
    messages = await box.fetch(digests)
    assert b"".join(messages) == CONTENT
    assert max(map(len, messages)) <= 1 << 20
    assert b"".join(await box.fetch(digests, offset=1000)) == CONTENT[1000:]
    # The same chunks twice, in another order.
    assert b"".join(await box.fetch([digests[1], digests[1]])) == file[1][2] * 2
    metadata = await box.stub.FetchMetadata(device_pb2.FetchMetadataRequest(name="1.root.json"))
    assert b"root" in metadata.data


@pytest.mark.parametrize(
    ("digests", "code"),
    [
        ([], Code.INVALID_ARGUMENT),
        ([b"short"], Code.INVALID_ARGUMENT),
        ([b"\x01" * 32], Code.NOT_FOUND),
        ([b"\x01" * 32] * 4097, Code.INVALID_ARGUMENT),
    ],
)
async def test_chunks_that_are_not_there_are_refused(
    plane: Plane, publisher: Publisher, digests: list[bytes], code: Code
) -> None:
    box = await plane.enroll("box-1")
    error = await refused(box.fetch(digests))
    assert error.code() is code
