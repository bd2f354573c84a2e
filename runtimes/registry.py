"""Which runtimes there are, found by the entry point group ``flotilla.runtimes``.

Nothing here imports an engine: the agent's daemon asks what a box could load and stays small.
"""

from functools import cache
from importlib.metadata import entry_points

from runtimes.base import Runtime
from runtimes.errors import UnsupportedModelError

GROUP = "flotilla.runtimes"
FAKE = "fake"


@cache
def _runtimes() -> dict[str, Runtime]:
    found: dict[str, Runtime] = {
        point.name: point.load() for point in sorted(entry_points(group=GROUP))
    }
    return found


@cache
def _locations() -> dict[str, str]:
    return {point.name: point.value for point in entry_points(group=GROUP)}


def names() -> tuple[str, ...]:
    """Every runtime that is installed, loadable here or not."""
    return tuple(_runtimes())


def advised() -> tuple[str, ...]:
    """Those to tell people of: the fake one is for tests, and only where it is switched on."""
    return tuple(name for name, runtime in _runtimes().items() if name != FAKE or runtime.version())


def advised_endings() -> str:
    """The endings of their files, as a sentence names them."""
    return ", ".join(sorted(f".{_runtimes()[name].format}" for name in advised()))


def find(name: str) -> Runtime:
    """The runtime of this name; UnsupportedModelError when there is none."""
    try:
        return _runtimes()[name]
    except KeyError:
        raise UnsupportedModelError(
            f"there is no runtime {name[:64]!r}", advice=f"Use one of: {', '.join(advised())}."
        ) from None


def location(name: str) -> str:
    """Where a runtime is imported from, as MODULE:ATTRIBUTE; for another process."""
    return _locations()[find(name).name]


def find_by_format(ending: str) -> Runtime:
    """The runtime whose files end so (no dot); UnsupportedModelError when there is none."""
    for runtime in _runtimes().values():
        if runtime.format == ending:
            return runtime
    raise UnsupportedModelError(
        f"no runtime reads files that end in {ending[:64]!r}",
        advice=f"Use one of: {advised_endings()}.",
    )


def available() -> dict[str, str]:
    """Name and version of every runtime that this box can load."""
    versions = {name: runtime.version() for name, runtime in _runtimes().items()}
    return {name: version for name, version in versions.items() if version is not None}
