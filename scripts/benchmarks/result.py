"""Results of benchmarks and their table."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Result:
    """One row; ``met`` is None if the bar could not be judged, with the reason in ``note``."""

    what: str
    figure: str
    peer: str
    bar: str
    met: bool | None
    note: str = ""

    def cells(self) -> list[str]:
        verdict = {True: "met", False: "NOT met", None: "unmeasured"}[self.met]
        return [self.what, self.figure, self.peer, self.bar, verdict, self.note]


HEADER = ["what", "measured", "peer", "bar", "verdict", "note"]
