"""The device's side of the image repository: whether a publisher lists a release.

Around the TUF workflow (``client``) stand the checks that TUF leaves to us: the publisher's own
role lists the release, the manifest is the signed target and names itself so, and its counter is
the signed one and not below ``min_release``, now or ever before.
"""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from tuf.api.metadata import TargetFile

from artifact.errors import UntrustedError
from artifact.manifest import target_path
from artifact.trust.client import FetchMetadata, TufClient
from artifact.trust.floors import Floors
from artifact.trust.metadata import ListedRelease, listed_release
from artifact.trust.statements import VerifiedRelease

IMAGE = "image"


class ImageVerifier:
    """Verifies releases against the image repository, starting from its first root.

    Blocking, and one call at a time, as ``client`` says.
    """

    def __init__(
        self,
        cache: Path,
        root: bytes,
        fetch: FetchMetadata,
        *,
        clock: Callable[[], datetime],
        floors: Floors | None = None,
    ) -> None:
        """``cache`` is a folder of its own; ``root`` is what the join token's digest named."""
        self._cache = cache
        self._floors = floors
        self._client = TufClient(IMAGE, cache, root, fetch, clock=clock, floors=floors)

    def resolve(self, reference: str) -> VerifiedRelease:
        """What the publisher signs about this release.

        Raises UntrustedError when it is not listed, or when any metadata fails; among these
        ExpiredMetadataError, after which what runs already may keep running.
        """
        path = target_path(reference)
        publisher = path.partition("/")[0]
        walk = self._client.walk(reference, path)
        target = walk.found[0]
        # Targets, which only delegates, may not list a release: then the walk ended before the
        # publisher's role.
        if target is None or walk.targets(publisher) is None:
            raise UntrustedError(
                f"{publisher} does not list {reference}",
                advice="Roll out a release that `flotilla release list` shows.",
            )
        listed = self._accepted(reference, target)
        return VerifiedRelease(
            reference,
            listed.length,
            listed.sha256,
            listed.counter,
            listed.min_release,
            walk.versions,
            listed.hardware_classes,
        )

    def listing(self, publisher: str) -> bytes:
        """A publisher's current metadata, verified: what its next version is made from.

        Raises UntrustedError when the repository delegates nothing to this publisher.
        """
        # Any path of the publisher's leads to its role; whether it is listed does not matter.
        walk = self._client.walk(publisher, f"{publisher}/-/-.json")
        targets = walk.targets()
        delegations = targets.delegations if targets else None
        if delegations is None or publisher not in (delegations.roles or {}):
            raise UntrustedError(
                f"{publisher!r} is no publisher of this repository",
                advice="Publish under a name that `flotilla keys init` was given.",
            )
        return self._signed(publisher)

    def roles(self) -> dict[str, bytes]:
        """Root, snapshot, targets and each publisher's metadata, verified.

        What changes by the offline keys build on.
        """
        targets = self._client.walk("the repository").targets()
        delegations = targets.delegations if targets else None
        publishers = list(delegations.roles or {}) if delegations else []
        self._client.walk("the repository", *(f"{name}/-/-.json" for name in publishers))
        return {role: self._signed(role) for role in ("root", "snapshot", "targets", *publishers)}

    def _signed(self, role: str) -> bytes:
        return (self._cache / f"{role}.json").read_bytes()

    def _accepted(self, reference: str, target: TargetFile) -> ListedRelease:
        """Raises UntrustedError for a release that the publisher has withdrawn."""
        listed = listed_release(target)
        floor = f"{IMAGE}/min_release/{listed.name}"
        floors = self._floors.floors() if self._floors else {}
        lowest = max(listed.min_release, floors.get(floor, 0))
        if self._floors is not None and lowest > floors.get(floor, 0):
            self._floors.raise_floors({floor: lowest})
        if listed.counter < lowest:
            raise UntrustedError(
                f"{reference} has the counter {listed.counter}, below the publisher's min_release "
                f"{lowest}",
                advice="The publisher withdrew it: choose a newer release.",
            )
        return listed
