"""Rules by which a publisher's new listing may follow its old one.

The publisher checks them before signing and the server before storing: a listed release never
changes; a release may be delisted; one release is added at a time, with a counter above those of
all earlier releases of its name; ``min_release`` is one number per name, never falls, and never
excludes every release.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from artifact.errors import UntrustedError
from artifact.manifest import SemanticVersion, parse_version
from artifact.trust.metadata import ListedRelease

Listing = Mapping[str, ListedRelease]


def next_counter(listing: Listing, name: str) -> int:
    """Return the counter of the next release of publisher/name."""
    return 1 + max((release.counter for release in _of_name(listing, name)), default=0)


def min_release(listing: Listing, name: str) -> int:
    """Return the lowest counter of publisher/name that devices accept; 0 before the first."""
    return max((release.min_release for release in _of_name(listing, name)), default=0)


def below(listing: Listing, path: str) -> list[ListedRelease]:
    """Return the releases of the same name below this one, by version.

    Versions that are not semantic, from before these were required, are ordered by publication.
    """
    release = listing[path]
    return sorted(
        (other for other in _of_name(listing, release.name) if _is_below(other, release)),
        key=lambda each: each.counter,
    )


def floor_counter(listing: Listing, path: str) -> int:
    """Return the lowest counter among this release and those that are not below it."""
    withdrawn = {release.path for release in below(listing, path)}
    return min(
        release.counter
        for release in _of_name(listing, listing[path].name)
        if release.path not in withdrawn
    )


def _is_below(release: ListedRelease, floor: ListedRelease) -> bool:
    version, lowest = _version(release), _version(floor)
    if version is None or lowest is None or version == lowest:
        return release.counter < floor.counter
    return version < lowest


def _version(release: ListedRelease) -> SemanticVersion | None:
    return parse_version(release.path.rpartition("/")[2].removesuffix(".json"))


def _of_name(listing: Listing, name: str) -> Iterable[ListedRelease]:
    return (release for release in listing.values() if release.name == name)


def check_succession(publisher: str, old: Listing, new: Listing, added: str) -> None:
    """Raise UntrustedError unless ``new`` may follow ``old`` by adding the target ``added``."""
    check_listing(publisher, old, new)
    for path in new:
        if path not in old and path != added:
            raise UntrustedError(
                f"{publisher} also lists {path}, whose manifest was not sent",
                advice="Publish one release at a time with `flotilla publish`.",
            )
    if added in new and added not in old:
        release = new[added]
        lowest = next_counter(old, release.name)
        if release.counter < lowest:
            raise UntrustedError(
                f"{added} has the counter {release.counter}, which an earlier release of "
                f"{release.name} has reached",
                advice=f"Run `flotilla publish` again: it will take {lowest}.",
            )


def check_listing(publisher: str, old: Listing, new: Listing) -> None:
    """Raise UntrustedError if ``new`` contradicts ``old`` or itself; any release may be added."""
    for path, release in new.items():
        if not _is_own(publisher, path):
            raise UntrustedError(
                f"{publisher} lists {path!r}, which is not one of its paths",
                advice=f"List only {publisher}/NAME/VERSION.json.",
            )
        if path in old:
            _check_unchanged(publisher, old[path], release)
        _check_min_release(release, old, new)


def _is_own(publisher: str, path: str) -> bool:
    match path.split("/"):
        case [owner, name, file]:
            return owner == publisher and bool(name) and file.endswith(".json")
    return False


def _check_unchanged(publisher: str, before: ListedRelease, after: ListedRelease) -> None:
    if replace(before, min_release=after.min_release) != after:
        raise UntrustedError(
            f"{publisher} changes {before.path}, which is published already",
            advice="Releases are immutable: publish the change under a new version.",
        )


def _check_min_release(release: ListedRelease, old: Listing, new: Listing) -> None:
    name = release.name
    lowest, highest = min_release(old, name), next_counter(new, name) - 1
    if release.min_release != min_release(new, name):
        raise UntrustedError(
            f"{release.path} has min_release {release.min_release}; another release of {name} has "
            f"{min_release(new, name)}",
            advice="It is one number per name: run `flotilla publish`, which writes it so.",
        )
    if not lowest <= release.min_release <= highest:
        raise UntrustedError(
            f"min_release {release.min_release} of {name} is outside {lowest} to {highest}",
            advice="It never falls, and may not exclude the newest release.",
        )
