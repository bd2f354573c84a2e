"""Deltas and chunks between an agent's downloader and a server, and their speed."""

import asyncio
import random
import time
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from control_plane import Box, Plane, Publisher, running_plane
from flotilla.v1 import device_pb2, model_pb2

from agent.backoff import Backoff
from agent.identity.keys import Identity
from agent.link.connection import Connection
from agent.storage.download import Downloader
from agent.storage.file_store import FileStore
from agent.storage.transfer import TransferProgress
from artifact.manifest import File
from controlplane.server.running import running

MIB = 1 << 20
BASE = random.Random(1).randbytes(3 * MIB)  # noqa: S311 - bytes to move, no secret
# Every chunk differs.
TUNED = bytearray(BASE)
TUNED[:: MIB // 4] = bytes(byte ^ 1 for byte in BASE[:: MIB // 4])


async def publish(publisher: Publisher, path: Path, data: bytes, version: str) -> File:
    file, chunks = publisher.make_file(path, data)
    await publisher.upload(chunks)
    number = int(version.partition(".")[0])
    await publisher.publish(publisher.manifest(file, version=version, counter=number))
    return file


@pytest.fixture
async def files(publisher: Publisher, tmp_path: Path) -> tuple[File, File]:
    """Two published versions of one file."""
    return (
        await publish(publisher, tmp_path / "base", BASE, "1.0.0"),
        await publish(publisher, tmp_path / "tuned", bytes(TUNED), "2.0.0"),
    )


class Agent:
    """The agent's own downloader on an enrolled box."""

    def __init__(self, box: Box, folder: Path) -> None:
        identity = Identity(box.key, box.certificate_pem, box.plane.ca_pem).credentials
        self.connection = Connection(str(box.plane.endpoints.device), identity)
        self.store = FileStore(folder)
        self.downloader = Downloader(
            self.store, self.connection, backoff=lambda: Backoff(0.01, 0.1)
        )

    async def fetch(self, file: File) -> int:
        """Number of bytes received over the wire."""
        progress = TransferProgress()
        await self.downloader.fetch([file], progress, lambda: None)
        return progress.received_bytes


async def test_a_box_that_holds_a_version_fetches_the_difference(
    plane: Plane, files: tuple[File, File], tmp_path: Path
) -> None:
    base, tuned = files
    box = await plane.enroll("box-1")
    # A box waits for a delta according to the file's size; here the delta exists already.
    await made(box, base, tuned)
    await made(box, tuned, base)
    agent = Agent(box, tmp_path / "box")
    assert await agent.fetch(base) >= len(BASE)
    assert await agent.fetch(tuned) < 10_000
    assert agent.store.path(tuned).read_bytes() == TUNED
    # The other direction.
    agent.store.keep_only({tuned.sha256})
    assert await agent.fetch(base) < 10_000
    assert agent.store.path(base).read_bytes() == BASE
    await agent.connection.close()


async def test_a_box_that_holds_nothing_fetches_the_chunks(
    plane: Plane, files: tuple[File, File], tmp_path: Path
) -> None:
    agent = Agent(await plane.enroll("box-1"), tmp_path / "box")
    assert await agent.fetch(files[1]) >= len(TUNED)
    await agent.connection.close()


async def test_nothing_is_left_of_the_making(
    plane: Plane, files: tuple[File, File], tmp_path: Path
) -> None:
    base, tuned = files
    box = await plane.enroll("box-1")
    await made(box, base, tuned)
    assert list((tmp_path / "server" / "deltas" / "work").iterdir()) == []


def digests(file: File) -> device_pb2.FileDigests:
    return device_pb2.FileDigests(
        sha256=bytes.fromhex(file.sha256), index=bytes.fromhex(file.index)
    )


async def made(box: Box, base: File, target: File) -> None:
    """Wait until the delta exists."""
    request = device_pb2.GetDeltaRequest(bases=[digests(base)], target=digests(target))
    while (await box.stub.GetDelta(request)).state != device_pb2.DELTA_STATE_READY:
        pass


async def test_a_request_that_names_no_digests_is_refused(
    plane: Plane, files: tuple[File, File]
) -> None:
    box = await plane.enroll("box-1")
    good = digests(files[0])
    bad = device_pb2.FileDigests(sha256=b"../..", index=b"")
    for request in (
        device_pb2.GetDeltaRequest(bases=[], target=good),
        device_pb2.GetDeltaRequest(bases=[good] * 9, target=good),
        device_pb2.GetDeltaRequest(bases=[bad], target=good),
        device_pb2.GetDeltaRequest(bases=[good], target=bad),
        device_pb2.GetDeltaRequest(bases=[good]),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await box.stub.GetDelta(request)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_files_that_nobody_published_have_no_delta(
    plane: Plane, files: tuple[File, File]
) -> None:
    box = await plane.enroll("box-1")
    unknown = device_pb2.FileDigests(sha256=bytes(32), index=bytes(32))
    for bases, target in (([unknown], digests(files[0])), ([digests(files[0])], unknown)):
        request = device_pb2.GetDeltaRequest(bases=bases, target=target)
        assert (await box.stub.GetDelta(request)).state == device_pb2.DELTA_STATE_NONE


async def compare(plane: Plane, held: str, wanted: str) -> model_pb2.CompareReleasesResponse:
    request = model_pb2.CompareReleasesRequest(held=held, wanted=wanted)
    while True:
        answer: model_pb2.CompareReleasesResponse = await plane.model().CompareReleases(request)
        if not answer.being_made:
            return answer


async def test_what_a_change_of_release_costs_is_measured(
    plane: Plane, files: tuple[File, File], tmp_path: Path
) -> None:
    answer = await compare(plane, "acme/chat@1.0.0", "acme/chat@2.0.0")
    (variant,) = answer.variants
    assert (variant.slot, variant.variant) == ("chat", "q8")
    assert variant.size_bytes == len(TUNED)
    assert len(TUNED) < variant.chunk_bytes < len(TUNED) + 1000
    # Equal to the bytes that a box then fetches.
    agent = Agent(await plane.enroll("box-1"), tmp_path / "box")
    await agent.fetch(files[0])
    assert await agent.fetch(files[1]) == variant.delta_bytes
    await agent.connection.close()


async def test_nothing_is_fetched_for_a_release_that_is_held(
    plane: Plane, files: tuple[File, File]
) -> None:
    (variant,) = (await compare(plane, "acme/chat@1.0.0", "acme/chat@1.0.0")).variants
    assert (variant.chunk_bytes, variant.delta_bytes) == (0, 0)


async def test_only_published_releases_are_compared(plane: Plane, files: tuple[File, File]) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await compare(plane, "acme/chat@1.0.0", "acme/chat@9.0.0")
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_download_goes_on_where_it_was_when_the_server_restarts(tmp_path: Path) -> None:
    progress, begun = TransferProgress(), asyncio.Event()

    def changed() -> None:
        if progress.done_bytes >= MIB:
            begun.set()

    async with running_plane(tmp_path / "server", device_bytes_per_second=MIB) as plane:
        publisher = Publisher(plane)
        await publisher.initialise()
        file = await publish(publisher, tmp_path / "file", BASE, "1.0.0")
        agent = Agent(await plane.enroll("box-1"), tmp_path / "box")
        download = asyncio.create_task(agent.downloader.fetch([file], progress, changed))
        await begun.wait()
        assert not download.done()
    config = replace(plane.config, device=plane.endpoints.device, device_bytes_per_second=None)
    async with running(config):
        await download
    await agent.connection.close()
    assert agent.store.path(file).read_bytes() == BASE
    # The interrupted chunk is sent again.
    assert len(BASE) <= progress.received_bytes < len(BASE) + 1.1 * MIB


async def test_downloads_keep_to_their_rate(tmp_path: Path) -> None:
    async with running_plane(tmp_path / "server", device_bytes_per_second=4 * MIB) as plane:
        publisher = Publisher(plane)
        await publisher.initialise()
        file = await publish(publisher, tmp_path / "file", BASE, "1.0.0")
        agent = Agent(await plane.enroll("box-1"), tmp_path / "box")
        began = time.monotonic()
        await agent.fetch(file)
        # 3 MiB at 4 MiB/s, the first MiB at once.
        assert time.monotonic() - began >= 0.49
        await agent.connection.close()
