"""Dealing requests out by weight."""

from collections.abc import Sequence

from artifact.manifest import Share


class Split:
    """Gives each share its part of any run of requests, evenly spread: smooth weighted round-robin.

    Every share earns its weight per request; the one with most pays the whole weight and is taken.
    """

    def __init__(self, shares: Sequence[Share]) -> None:
        self._shares = shares
        self._credit = [0] * len(shares)

    def next(self) -> Share:
        """The share that the next request goes to."""
        for at, share in enumerate(self._shares):
            self._credit[at] += share.weight
        chosen = max(range(len(self._shares)), key=self._credit.__getitem__)
        self._credit[chosen] -= sum(share.weight for share in self._shares)
        return self._shares[chosen]
