"""FetchChunks over mTLS with SHA-256 on the receiver, against nginx, curl and sha256sum."""

import asyncio
import hashlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from demo_fleet.processes import Box, ControlPlane

from benchmarks import nginx
from benchmarks.result import Result

BAR = 1.5
REPETITIONS = 5
# Each fetch reads the file once, so the page cache serves both sides alike.
CHUNKS = 256
CHUNK_BYTES = 1 << 20
MEGABYTE = 1e6


def run(directory: Path) -> list[Result]:
    """Fetch the same bytes by both sides alternately; report medians."""
    lacking = nginx.missing()
    what = "artifact stream, mTLS, sha256"
    if lacking:
        note = f"the peer needs {lacking}"
        return [Result(what, "unmeasured", "nginx -> curl -> sha256sum", f">= {BAR} x", None, note)]
    server, box, digests = _serve_chunks(directory)
    payload = directory / "payload.bin"
    try:
        ours, theirs = [], []
        with nginx.serving(directory / "nginx", payload) as url:
            for _ in range(REPETITIONS):
                ours.append(_seconds_in_new_process(box, digests))
                theirs.append(nginx.seconds_to_fetch(url))
    finally:
        server.stop()
    megabytes = CHUNKS * CHUNK_BYTES / MEGABYTE
    here, there = megabytes / statistics.median(ours), megabytes / statistics.median(theirs)
    return [
        Result(
            what,
            f"{here:.0f} MB/s = {here / there:.2f} x",
            f"{there:.0f} MB/s nginx -> curl -> sha256sum",
            f">= {BAR} x",
            here / there >= BAR,
        )
    ]


def _serve_chunks(directory: Path) -> tuple[ControlPlane, Box, list[bytes]]:
    """Start a control plane with random chunks, and enrol a device."""
    directory.mkdir(parents=True)
    payload = directory / "payload.bin"
    digests = []
    with payload.open("wb") as file:
        for _ in range(CHUNKS):
            data = os.urandom(CHUNK_BYTES)
            digests.append(hashlib.sha256(data).digest())
            file.write(data)
    server = ControlPlane(directory / "server")
    server.start()
    keys = str(directory / "keys")
    server.cli("keys", "init", "--publisher", "acme", "--dir", keys)
    _upload(server, payload)
    token = server.cli("token", "create", "--uses", "1")["secret"]
    box = Box(directory, "bench", "1GiB", {})
    box.enroll(server.public, token)
    return server, box, digests


def _upload(server: ControlPlane, payload: Path) -> None:
    from flotilla.v1 import model_pb2, model_pb2_grpc

    from controlplane.cli.app import GlobalOptions
    from controlplane.cli.client import connect

    settings = GlobalOptions(server.directory / "admin.json")
    with connect(settings) as channel, payload.open("rb") as file:
        pieces = iter(lambda: file.read(CHUNK_BYTES), b"")
        model_pb2_grpc.ModelServiceStub(channel).UploadChunks(
            model_pb2.UploadChunksRequest(data=piece) for piece in pieces
        )


def _seconds_in_new_process(box: Box, digests: Sequence[bytes]) -> float:
    """Fetch as the agent does, in a separate process; connecting is not timed."""
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.stream", str(box.directory)],
        input=b"".join(digests),
        capture_output=True,
        check=True,
    )
    return float(result.stdout)


async def _fetch(directory: Path, digests: Sequence[bytes]) -> float:
    from agent.config import DataDir, load_config
    from agent.identity.keys import load_identity
    from agent.link.connection import Connection

    data_dir = DataDir(directory)
    connection = Connection(
        load_config(data_dir).device_endpoint, load_identity(data_dir).credentials
    )
    async for _ in connection.fetch(digests[:1]):
        pass
    began = time.perf_counter()
    digest, size = hashlib.sha256(), 0
    async for piece in connection.fetch(digests):
        digest.update(piece)
        size += len(piece)
    seconds = time.perf_counter() - began
    await connection.close()
    if size != len(digests) * CHUNK_BYTES:
        raise ValueError(f"{size} bytes came")
    return seconds


if __name__ == "__main__":
    raw = sys.stdin.buffer.read()
    asked = [raw[at : at + 32] for at in range(0, len(raw), 32)]
    sys.stdout.write(str(asyncio.run(_fetch(Path(sys.argv[1]), asked))))
