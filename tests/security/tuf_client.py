"""Our TUF client behind the command line of theupdateframework's conformance suite.

The suite (https://github.com/theupdateframework/tuf-conformance, CLIENT-CLI.md) is fetched by
whoever runs it, into an environment of its own; it needs Debian's faketime:

    pytest tuf_conformance --entrypoint="$REPO/tests/security/tuf_client_entrypoint"

``TufClient`` is the class that devices use, floors and all; what stands here is HTTP, files and
the download of targets, which Flotilla does otherwise.
"""

import argparse
import json
import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from urllib.parse import quote, urlsplit

from tuf.api.exceptions import LengthOrHashMismatchError
from tuf.api.metadata import TargetFile

from artifact.errors import UntrustedError
from artifact.trust.client import TufClient

TIMEOUT_SECONDS = 10
# As many as python-tuf allows; Flotilla's own repositories need one.
MAX_DELEGATIONS = 32
NOT_THERE = (HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND)


class FileFloors:
    """Floors in a JSON file, for want of an agent's journal."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def floors(self) -> Mapping[str, int]:
        numbers: dict[str, int] = json.loads(self._path.read_text()) if self._path.exists() else {}
        return numbers

    def raise_floors(self, numbers: Mapping[str, int]) -> None:
        before = self.floors()
        risen = {name: max(number, before.get(name, 0)) for name, number in numbers.items()}
        self._path.write_text(json.dumps({**before, **risen}))


class Device:
    """A metadata folder as the suite sees it; what only we need lies in a folder below."""

    def __init__(self, metadata_dir: Path) -> None:
        self._metadata = metadata_dir
        self._private = metadata_dir / "flotilla"

    def trust(self, root: Path) -> None:
        self._private.mkdir(parents=True)
        data = root.read_bytes()
        (self._private / "first-root").write_bytes(data)
        (self._metadata / "root.json").write_bytes(data)

    def client(self, metadata_url: str) -> TufClient:
        return TufClient(
            "conformance",
            self._metadata,
            (self._private / "first-root").read_bytes(),
            lambda name: fetch(f"{metadata_url.rstrip('/')}/{quote(name, safe='')}"),
            clock=lambda: datetime.now(UTC),
            floors=FileFloors(self._private / "floors"),
            max_delegations=MAX_DELEGATIONS,
        )


def fetch(url: str) -> bytes | None:
    """None when the server says that there is no such thing."""
    parts = urlsplit(url)
    connection = HTTPConnection(parts.hostname or "", parts.port, timeout=TIMEOUT_SECONDS)
    try:
        connection.request("GET", parts.path)
        answer = connection.getresponse()
        if answer.status in NOT_THERE:
            return None
        if answer.status != HTTPStatus.OK:
            raise HTTPException(f"{url}: {answer.status}")
        return answer.read()
    finally:
        connection.close()


def download(client: TufClient, names: list[str], base_url: str, directory: Path) -> None:
    """The targets, verified; UntrustedError when one is not listed or is not what was signed."""
    walk = client.walk("the targets", *names)
    for name, target in zip(names, walk.found, strict=True):
        if target is None:
            raise UntrustedError(f"nobody lists {name}")
        path = directory / quote(name, safe="")
        if not (path.exists() and is_intact(target, path.read_bytes())):
            data = fetch(f"{base_url.rstrip('/')}/{hashed(target)}")
            if data is None or not is_intact(target, data):
                raise UntrustedError(f"{name} is not what was signed")
            path.write_bytes(data)


def hashed(target: TargetFile) -> str:
    """Where a target lies in a repository with consistent snapshots."""
    folder, slash, file = target.path.rpartition("/")
    return f"{folder}{slash}{next(iter(target.hashes.values()))}.{file}"


def is_intact(target: TargetFile, data: bytes) -> bool:
    try:
        target.verify_length_and_hashes(data)
    except LengthOrHashMismatchError:
        return False
    return True


def main() -> int:
    parser = argparse.ArgumentParser(prog="tuf_client")
    parser.add_argument("--metadata-dir", type=Path, required=True)
    parser.add_argument("--metadata-url")
    parser.add_argument("--target-name", action="append", default=[])
    parser.add_argument("--target-dir", type=Path)
    parser.add_argument("--target-base-url")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("init").add_argument("trusted_root", type=Path)
    commands.add_parser("refresh")
    commands.add_parser("download")
    options = parser.parse_args()
    logging.basicConfig(level=logging.DEBUG)
    device = Device(options.metadata_dir)
    try:
        if options.command == "init":
            device.trust(options.trusted_root)
        elif options.command == "refresh":
            device.client(options.metadata_url).walk("the repository")
        else:
            download(
                device.client(options.metadata_url),
                options.target_name,
                options.target_base_url,
                options.target_dir,
            )
    except (UntrustedError, HTTPException, OSError) as error:
        logging.getLogger("tuf_client").error("refused: %s", error)  # noqa: TRY400 - no bug
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
