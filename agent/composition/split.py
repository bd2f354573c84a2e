"""Splits: distribute requests over targets by weight."""

from collections.abc import Sequence

from artifact.manifest import Share


class Split:
    """Smooth weighted round-robin: every run of requests is divided evenly by weight.

    Per request each share gains its weight as credit; the share with the most credit is chosen and
    pays the sum of all weights.
    """

    def __init__(self, shares: Sequence[Share]) -> None:
        self._shares = shares
        self._credit = [0] * len(shares)

    def next(self) -> Share:
        """Return the share that the next request goes to."""
        # The credits sum to 0 before and after, so they stay within the sum of all weights.
        for at, share in enumerate(self._shares):
            self._credit[at] += share.weight
        chosen = max(range(len(self._shares)), key=self._credit.__getitem__)
        self._credit[chosen] -= sum(share.weight for share in self._shares)
        return self._shares[chosen]
