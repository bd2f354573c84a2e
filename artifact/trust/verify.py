"""The device's side of the image repository: checks that a publisher lists a release.

It adds to the TUF workflow (``client``) the checks that TUF leaves to its users: the publisher's
role lists the release, the manifest is the signed target and has its name, and its counter is the
signed one and not below any ``min_release`` seen so far.
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

    Calls block, and only one may run at a time; see ``client``.
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
        """``cache`` is a folder that only this verifier uses; ``root`` is the pinned first root."""
        self._cache = cache
        self._floors = floors
        self._client = TufClient(IMAGE, cache, root, fetch, clock=clock, floors=floors)

    def resolve(self, reference: str) -> VerifiedRelease:
        """Return the publisher's entry of a release.

        Raises UntrustedError if it is not listed, or if any metadata fails. Its subclass
        ExpiredMetadataError does not affect running releases.
        """
        path = target_path(reference)
        publisher = path.partition("/")[0]
        walk = self._client.walk(reference, path)
        target = walk.found[0]
        # If targets itself lists the release, which it may not, the walk ends there and never
        # loads the publisher's role.
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
        """Return a publisher's current metadata, verified, from which its next version is made.

        Raises UntrustedError if the repository does not delegate to this publisher.
        """
        # Any path of the publisher leads to its role, listed or not.
        walk = self._client.walk(publisher, f"{publisher}/-/-.json")
        targets = walk.targets()
        delegations = targets.delegations if targets else None
        if delegations is None or publisher not in (delegations.roles or {}):
            raise UntrustedError(
                f"{publisher!r} is not a publisher of this repository",
                advice="Publish under a name that `flotilla keys init` was given.",
            )
        return self._signed(publisher)

    def roles(self) -> dict[str, bytes]:
        """Return the verified metadata of root, snapshot, targets and each publisher.

        Changes by the offline keys are made from it.
        """
        targets = self._client.walk("the repository").targets()
        delegations = targets.delegations if targets else None
        publishers = list(delegations.roles or {}) if delegations else []
        self._client.walk("the repository", *(f"{name}/-/-.json" for name in publishers))
        return {role: self._signed(role) for role in ("root", "snapshot", "targets", *publishers)}

    def _signed(self, role: str) -> bytes:
        return (self._cache / f"{role}.json").read_bytes()

    def _accepted(self, reference: str, target: TargetFile) -> ListedRelease:
        """Return the entry of a target; UntrustedError if the publisher has withdrawn it."""
        listed = listed_release(target)
        floor = f"{IMAGE}/min_release/{listed.name}"
        floors = self._floors.floors() if self._floors else {}
        lowest = max(listed.min_release, floors.get(floor, 0))
        # Raised before the comparison: a release that is refused now stays refused.
        if self._floors is not None and lowest > floors.get(floor, 0):
            self._floors.raise_floors({floor: lowest})
        if listed.counter < lowest:
            raise UntrustedError(
                f"{reference} has the counter {listed.counter}, below the publisher's min_release "
                f"{lowest}",
                advice="The publisher withdrew it: choose a newer release.",
            )
        return listed
