"""The operator's settings of a rollout: waves, gates, limits, and the reaction to a failure."""

from enum import StrEnum
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from artifact.manifest import Label
from artifact.yaml_text import YamlTextError, read_yaml
from controlplane.errors import InvalidStrategyError

MAX_STRATEGY_BYTES = 65536
MAX_STRATEGY_VALUES = 2000
MAX_WAVES = 32
WEEK_SECONDS = 7 * 86400.0
DEFAULT_SILENT_TIMEOUT_SECONDS = 600.0
DEFAULT_MAX_FAILURE_PERCENT = 10.0
ALL_PERCENT = 100.0

Seconds = Annotated[float, Meta(ge=0, le=WEEK_SECONDS)]
Percent = Annotated[float, Meta(ge=0, le=100)]
Count = Annotated[int, Meta(ge=1, le=1_000_000)]

# Named in the design but not evaluated yet: refused rather than ignored.
METRIC_GATES = frozenset(
    (
        "error_rate",
        "evaluation_score",
        "peak_memory_bytes",
        "tokens_per_joule",
        "tokens_per_second",
        "ttft_p95_seconds",
    )
)


class Part(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A part of a strategy; unknown fields are refused."""


class WaveSpec(Part, frozen=True):
    """One wave; the first grows to one device of each hardware class, if it has fewer.

    Either ``percent``, the share of all devices that have the release after this wave, or
    ``count``, the number of devices that this wave adds.
    """

    name: Label
    percent: Percent | None = None
    count: Count | None = None
    soak_seconds: Seconds = 0.0


class FailureGate(Part, frozen=True):
    """The most devices of a wave that may fail; ten percent if neither limit is given.

    With fewer than ``min_executed`` reports (or than the wave has devices) the wave is
    inconclusive.
    """

    max_failures: Annotated[int, Meta(ge=0)] | None = None
    max_failure_percent: Percent | None = None
    min_executed: Count = 1

    @property
    def percent_limit(self) -> float | None:
        if self.max_failures is None and self.max_failure_percent is None:
            return DEFAULT_MAX_FAILURE_PERCENT
        return self.max_failure_percent


class Gates(Part, frozen=True):
    """The gates that can stop a wave."""

    failure: FailureGate = FailureGate()


class OnFailure(StrEnum):
    """Reaction to a failed wave."""

    ROLLBACK = "rollback"
    PAUSE = "pause"
    ABORT = "abort"


class Strategy(Part, frozen=True):
    """How a release reaches its devices.

    ``silent_timeout_seconds`` is the longest time to wait for a device that has an assignment and
    does not report. ``max_unavailable`` bounds the devices that change at once. A device whose
    update was interrupted (power cut, restart) gets ``max_retries`` more attempts.
    """

    waves: Annotated[tuple[WaveSpec, ...], Meta(min_length=1, max_length=MAX_WAVES)] = (
        WaveSpec(name="canary", percent=10, soak_seconds=10),
        WaveSpec(name="full", percent=ALL_PERCENT),
    )
    gates: Gates = Gates()
    on_failure: OnFailure = OnFailure.ROLLBACK
    silent_timeout_seconds: Annotated[float, Meta(gt=0, le=WEEK_SECONDS)] = (
        DEFAULT_SILENT_TIMEOUT_SECONDS
    )
    max_unavailable: Count | None = None
    max_retries: Annotated[int, Meta(ge=0, le=10)] = 1


def parse_strategy(text: str) -> Strategy:
    """Parse a strategy in YAML or JSON; a blank text is the default strategy.

    Raises InvalidStrategyError, which names the field that is wrong.
    """
    if len(text.encode()) > MAX_STRATEGY_BYTES:
        raise InvalidStrategyError(
            f"the strategy has {len(text.encode())} bytes, more than {MAX_STRATEGY_BYTES}",
            advice="A strategy is a few lines of waves and gates.",
        )
    if not text.strip():
        return Strategy()
    document = _load(text)
    _refuse_metric_gates(document)
    try:
        strategy = msgspec.convert(document, Strategy)
    except msgspec.ValidationError as error:
        raise InvalidStrategyError(
            f"the strategy is not valid: {error}",
            advice="See `flotilla rollout start --help` for one that is.",
        ) from error
    _check_waves(strategy)
    return strategy


def encode_strategy(strategy: Strategy) -> str:
    """Encode as JSON, for ``decode_strategy``."""
    return msgspec.json.encode(strategy).decode()


def decode_strategy(text: str) -> Strategy:
    """Decode a stored strategy, which was checked when it was parsed; quick enough for a tick."""
    return msgspec.json.decode(text, type=Strategy)


def _load(text: str) -> Any:
    try:
        if text.lstrip().startswith("{"):
            return msgspec.json.decode(text)
        return read_yaml(text, max_nodes=MAX_STRATEGY_VALUES).value
    except (YamlTextError, msgspec.MsgspecError, RecursionError) as error:
        raise InvalidStrategyError(
            f"the strategy is neither YAML nor JSON: {error}",
            advice="See `flotilla rollout start --help` for one that is.",
        ) from error


def _refuse_metric_gates(document: Any) -> None:
    gates = document.get("gates") if isinstance(document, dict) else None
    named = sorted(METRIC_GATES.intersection(gates)) if isinstance(gates, dict) else []
    if named:
        raise InvalidStrategyError(
            f"gates on metrics are not evaluated yet: {', '.join(named)}",
            advice="Gate on failures, and let the release's probation check speed and quality.",
        )


def _check_waves(strategy: Strategy) -> None:
    names = [wave.name for wave in strategy.waves]
    covered = 0.0
    for wave in strategy.waves:
        if names.count(wave.name) > 1:
            raise InvalidStrategyError(
                f"two waves are called {wave.name!r}", advice="Give each its own name."
            )
        if (wave.percent is None) == (wave.count is None):
            raise InvalidStrategyError(
                f"wave {wave.name!r} needs either percent or count",
                advice="percent is the share of all devices after it, count what it adds.",
            )
        if wave.percent is not None:
            if wave.percent <= covered:
                raise InvalidStrategyError(
                    f"wave {wave.name!r} stops at {wave.percent:g} %, where an earlier one was",
                    advice="percent is the share of all devices after the wave; let it rise.",
                )
            covered = wave.percent
    if strategy.waves[-1].percent != ALL_PERCENT:
        raise InvalidStrategyError(
            f"the last wave, {names[-1]!r}, leaves devices out",
            advice="Let the last wave have percent: 100; narrow the selector to leave some out.",
        )
