from dataclasses import replace
from datetime import UTC, datetime

import pytest

from artifact.sketch import Sketch
from artifact.window import Energy, Provenance, Window
from controlplane.errors import InvalidInputError
from controlplane.telemetry import DeviceWindow, Grouping, Summary, check_window, summarise
from controlplane.telemetry.windows import MAX_NAME

RAPL = Energy(10.0, Provenance("rapl", "package", "counter"))
WINDOW = Window(
    sequence=1,
    started_at=datetime(2026, 1, 1, tzinfo=UTC),
    duration_seconds=10,
    release="acme/assistant@1.0.0",
    slot="chat",
    model_version="acme/tiny@1.0.0",
    variant="q4",
    runtime="llama_cpp",
    requests=2,
    errors=1,
    prompt_tokens=20,
    generated_tokens=100,
    decode_seconds=2.0,
    ttft_seconds=Sketch.of([0.1, 0.1]),
    latency_seconds=Sketch.of([1.0, 3.0]),
    peak_memory_bytes=1000,
    energy=RAPL,
)
ONE = DeviceWindow("box-1", "class-a", WINDOW)
TWO = DeviceWindow(
    "box-2",
    "class-b",
    replace(WINDOW, decode_seconds=8.0, ttft_seconds=Sketch.of([0.9] * 8), peak_memory_bytes=3000),
)


def test_a_row_adds_up_its_windows() -> None:
    (row,) = summarise([ONE, TWO], Grouping.VARIANT)
    assert (row.group, row.devices, row.requests, row.errors) == ("q4", 2, 4, 2)
    assert (row.prompt_tokens, row.generated_tokens) == (40, 200)
    # The first tokens of the ten answers come from the prefill.
    assert row.tokens_per_second == pytest.approx((200 - 10) / 10)
    assert row.peak_memory_bytes == 3000
    assert row.joules == pytest.approx(20)
    assert row.tokens_per_joule == pytest.approx(10)
    assert row.energy_provenance == "rapl/package/counter"


def test_quantiles_are_merged_never_averaged() -> None:
    (row,) = summarise([ONE, TWO], Grouping.VARIANT)
    assert row.ttft_p50_seconds == pytest.approx(0.9, rel=0.011)
    assert row.ttft_p95_seconds == pytest.approx(0.9, rel=0.011)


@pytest.mark.parametrize(
    ("grouping", "groups"),
    [
        (Grouping.DEVICE, ["box-1", "box-2"]),
        (Grouping.HARDWARE_CLASS, ["class-a", "class-b"]),
        (Grouping.VARIANT, ["q4"]),
    ],
)
def test_rows_are_grouped_as_asked(grouping: Grouping, groups: list[str]) -> None:
    assert [row.group for row in summarise([TWO, ONE], grouping)] == groups


def test_a_route_shows_what_each_of_its_targets_did() -> None:
    small = replace(WINDOW, route="assistant", requests=8, escalations=2, prefill_seconds=0.5)
    large = replace(WINDOW, route="assistant", slot="large", requests=2)
    windows = [DeviceWindow("box-1", "class-a", window) for window in (small, large, WINDOW)]
    first, second = summarise(windows, Grouping.ROUTE)
    assert (first.group, first.slot, first.requests, first.escalations) == (
        "assistant",
        "chat",
        8,
        2,
    )
    assert first.busy_seconds == pytest.approx(2.5)
    assert (second.slot, second.requests, second.escalations) == ("large", 2, 0)
    # Grouped by variant, windows of all routes count.
    assert sum(row.requests for row in summarise(windows, Grouping.VARIANT)) == 12


def test_releases_and_slots_stay_apart() -> None:
    other = replace(TWO, window=replace(TWO.window, slot="embed"))
    newer = replace(TWO, window=replace(TWO.window, release="acme/assistant@2.0.0"))
    assert len(summarise([ONE, TWO, other, newer], Grouping.VARIANT)) == 3


def test_unmeasured_stays_unmeasured() -> None:
    bare = replace(ONE, window=replace(WINDOW, energy=None, generated_tokens=0))
    (row,) = summarise([bare], Grouping.DEVICE)
    assert row.joules is None
    assert row.tokens_per_joule is None
    assert row.energy_provenance == ""
    assert row.tokens_per_second is None


def test_tokens_of_unmeasured_windows_do_not_improve_the_energy_figure() -> None:
    bare = replace(ONE, window=replace(WINDOW, energy=None, generated_tokens=10_000))
    (row,) = summarise([ONE, bare], Grouping.DEVICE)
    assert row.tokens_per_joule == pytest.approx(10)


def test_energy_of_different_provenance_is_not_added() -> None:
    board = Energy(5.0, Provenance("ina3221", "board", "integrated"))
    other = replace(TWO, window=replace(TWO.window, energy=board))
    (row,) = summarise([ONE, other], Grouping.VARIANT)
    assert row.joules is None
    assert row.tokens_per_joule is None
    assert row.energy_provenance == "ina3221/board/integrated + rapl/package/counter"


@pytest.mark.parametrize(
    "change",
    [
        {"requests": -1},
        {"generated_tokens": 1 << 60},
        {"decode_seconds": float("nan")},
        {"duration_seconds": 1e9},
        {"variant": "x" * 257},
        {"latency_seconds": Sketch(zeros=-1)},
        {"ttft_seconds": Sketch(zeros=-1)},
        {"errors": -1},
        {"peak_memory_bytes": (1 << 53) + 1},
        {"throttled_seconds": -0.1},
        {"throttled_seconds": 7 * 86400 + 1.0},
        {"energy": replace(RAPL, joules=1e12 + 1e3)},
        {"energy": replace(RAPL, provenance=Provenance("rapl", "moon", "counter"))},
        {"energy": replace(RAPL, provenance=Provenance("rapl", "package", "felt"))},
        {"energy": replace(RAPL, provenance=Provenance("guess", "package", "counter"))},
        {"energy": replace(RAPL, joules=-1.0)},
    ],
)
def test_window_from_outside_is_bounded(change: dict[str, object]) -> None:
    check_window(WINDOW)
    with pytest.raises(InvalidInputError):
        check_window(replace(WINDOW, **change))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("generated", "seconds", "expected"),
    # Two answers: their first tokens fall out of the prompts.
    [(2, 2.0, None), (3, 2.0, 0.5), (100, 0.0, None), (3, 0.5, 2.0)],
)
def test_speed_needs_a_decoded_token_and_a_decode_time(
    generated: int, seconds: float, expected: float | None
) -> None:
    window = replace(WINDOW, generated_tokens=generated, decode_seconds=seconds)
    (row,) = summarise([DeviceWindow("box-1", "class-a", window)], Grouping.VARIANT)
    assert row.tokens_per_second == expected


@pytest.mark.parametrize(
    ("generated", "joules", "expected"),
    [(0, 10.0, None), (100, 0.0, None), (100, 0.5, 200.0), (1, 10.0, 0.1)],
)
def test_tokens_per_joule_need_tokens_and_joules(
    generated: int, joules: float, expected: float | None
) -> None:
    energy = replace(RAPL, joules=joules)
    window = replace(WINDOW, generated_tokens=generated, energy=energy)
    (row,) = summarise([DeviceWindow("box-1", "class-a", window)], Grouping.VARIANT)
    assert row.tokens_per_joule == expected


def test_peak_memory_is_the_largest_window() -> None:
    window = replace(WINDOW, peak_memory_bytes=0)
    (row,) = summarise([DeviceWindow("box-1", "class-a", window)], Grouping.VARIANT)
    assert row.peak_memory_bytes == 0


@pytest.mark.parametrize(
    "change",
    [
        {"requests": 0, "errors": 0, "generated_tokens": 1 << 53},
        {"decode_seconds": 0.0, "duration_seconds": 7 * 86400.0},
        {"variant": "x" * 256, "route": ""},
        {"energy": replace(RAPL, joules=0.0)},
        {"energy": replace(RAPL, joules=1e12)},
    ],
)
def test_a_window_at_its_bounds_is_taken(change: dict[str, object]) -> None:
    check_window(replace(WINDOW, **change))  # type: ignore[arg-type]


def row_of(**change: object) -> Summary:
    window = replace(WINDOW, **change)  # type: ignore[arg-type]
    (row,) = summarise([DeviceWindow("box-1", "class-a", window)], Grouping.VARIANT)
    return row


def test_without_decoded_tokens_or_time_there_is_no_rate() -> None:
    one = Sketch.of([0.1])
    assert row_of(generated_tokens=1, ttft_seconds=one).tokens_per_second is None
    assert row_of(decode_seconds=0.0).tokens_per_second is None
    assert row_of(generated_tokens=2, ttft_seconds=one).tokens_per_second == pytest.approx(0.5)


def test_without_tokens_or_joules_there_is_no_efficiency() -> None:
    unused = row_of(generated_tokens=0)
    assert (unused.joules, unused.tokens_per_joule) == (10.0, None)
    nothing = row_of(energy=replace(RAPL, joules=0.0))
    assert (nothing.joules, nothing.tokens_per_joule) == (0.0, None)
    assert row_of(energy=None).energy_provenance == ""


def test_a_name_at_its_bound_is_accepted() -> None:
    check_window(replace(WINDOW, variant="x" * MAX_NAME))
    with pytest.raises(InvalidInputError):
        check_window(replace(WINDOW, variant="x" * (MAX_NAME + 1)))
