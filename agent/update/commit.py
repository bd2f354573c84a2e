"""The pointers after a commit: which release the box would fall back to."""

from agent.journal import HeldRelease, Pointers, reference_of
from artifact.manifest import Release, decode_release


def commit(held: HeldRelease | None, pointers: Pointers, *, fell_back: bool) -> Pointers:
    """Return the pointers with ``held`` current and the best release before it as last_good.

    A release that this commit rolls back is never last_good: someone decided against it. It is
    recognised by its counter, which publishers raise with every release of a name. ``fell_back``:
    last_good was serving, because ``current`` did not load.
    """
    if held is not None and held.reference == reference_of(pointers.current):
        return Pointers(current=held, last_good=pointers.last_good)
    # Without a current release, the last_good so far is still the best to fall back to.
    served = pointers.last_good if fell_back else pointers.current
    for candidate in (served, pointers.last_good):
        if candidate is not None and not _is_undone(candidate, held):
            return Pointers(current=held, last_good=candidate)
    return Pointers(current=held)


def _is_undone(candidate: HeldRelease, by: HeldRelease | None) -> bool:
    """Return True if ``by`` is the same release or an earlier one of the same name."""
    if by is None:
        return False
    if candidate.reference == by.reference:
        return True
    undone, chosen = _release(candidate), _release(by)
    return undone.name == chosen.name and undone.counter > chosen.counter


def _release(held: HeldRelease) -> Release:
    return decode_release(held.manifest)
