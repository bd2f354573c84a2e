"""The release that a box would fall back to after a commit."""

import hashlib
from pathlib import Path

import msgspec
import pytest
from fake_fleet import release_of, worker_spec

from agent.journal import HeldRelease, Pointers
from agent.update.commit import commit
from artifact.manifest import encode_release


def held(folder: Path, number: int, name: str = "acme/a") -> HeldRelease:
    """Return a release whose version is also its counter."""
    release = release_of(worker_spec(folder))
    release = msgspec.structs.replace(release, name=name, version=str(number), counter=number)
    manifest = encode_release(release)
    digest = hashlib.sha256(manifest).hexdigest()
    return HeldRelease(reference=release.reference, manifest=manifest, manifest_sha256=digest)


@pytest.mark.parametrize(
    ("pointers", "new", "fell_back", "after"),
    [
        ((1, 0), 2, False, (2, 1)),
        # The same release again keeps the one to fall back to.
        ((2, 1), 2, False, (2, 1)),
        # What did not load is never last_good.
        ((2, 1), 3, True, (3, 1)),
        # Serving nothing keeps last_good for the next release.
        ((0, 1), 2, False, (2, 1)),
        ((2, 1), 0, False, (0, 2)),
        # A rollback: the releases after the chosen one are not good any more.
        ((2, 1), 1, False, (1, 0)),
        ((3, 2), 1, False, (1, 0)),
        ((3, 1), 2, False, (2, 1)),
        ((0, 2), 1, False, (1, 0)),
    ],
)
def test_a_commit_moves_the_pointers(
    tmp_path: Path,
    pointers: tuple[int, int],
    new: int,
    fell_back: bool,
    after: tuple[int, int],
) -> None:
    """Pointers are versions of current and last_good; 0 is no release."""

    def of(number: int) -> HeldRelease | None:
        return held(tmp_path, number) if number else None

    candidate = of(new)
    before = Pointers(candidate=candidate, current=of(pointers[0]), last_good=of(pointers[1]))
    found = commit(candidate, before, fell_back=fell_back)
    assert found == Pointers(current=of(after[0]), last_good=of(after[1]))


def test_releases_of_different_names_are_not_compared(tmp_path: Path) -> None:
    other = held(tmp_path, 9, "acme/b")
    found = commit(held(tmp_path, 1), Pointers(current=other), fell_back=False)
    assert found.last_good == other
