"""Installed runtimes, found by the entry point group ``flotilla.runtimes``.

This module imports no engine, because the agent's daemon uses it and must stay small.
"""

from functools import cache
from importlib.metadata import entry_points

from runtimes.base import Runtime
from runtimes.errors import UnsupportedModelError

GROUP = "flotilla.runtimes"
FAKE = "fake"


# Cached, because entry points are read from the metadata of every installed package.
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
    """Return the names of all installed runtimes, loadable on this device or not."""
    return tuple(_runtimes())


def advised() -> tuple[str, ...]:
    """Return the runtimes to mention in messages; the fake one only if it is switched on."""
    return tuple(name for name, runtime in _runtimes().items() if name != FAKE or runtime.version())


def advised_endings() -> str:
    """Return the file endings of the advised runtimes as a comma-separated list."""
    return ", ".join(sorted(f".{_runtimes()[name].format}" for name in advised()))


def find(name: str) -> Runtime:
    """Return the runtime of this name; raise UnsupportedModelError if it is not installed."""
    try:
        return _runtimes()[name]
    except KeyError:
        raise UnsupportedModelError(
            f"there is no runtime {name[:64]!r}", advice=f"Use one of: {', '.join(advised())}."
        ) from None


def location(name: str) -> str:
    """Return the import path of a runtime, MODULE:ATTRIBUTE, for use in another process."""
    return _locations()[find(name).name]


def find_by_format(ending: str) -> Runtime:
    """Return the runtime for a file ending (without the dot); raise UnsupportedModelError."""
    for runtime in _runtimes().values():
        if runtime.format == ending:
            return runtime
    raise UnsupportedModelError(
        f"no runtime reads files that end in {ending[:64]!r}",
        advice=f"Use one of: {advised_endings()}.",
    )


def available() -> dict[str, str]:
    """Return name and version of every runtime that this device can load."""
    versions = {name: runtime.version() for name, runtime in _runtimes().items()}
    return {name: version for name, version in versions.items() if version is not None}
