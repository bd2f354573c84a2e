import json
from datetime import UTC, datetime

import pytest
from flotilla.v1 import fleet_pb2, rollout_pb2, telemetry_pb2

from controlplane.cli.output import (
    ago,
    clean,
    duration,
    hanging_indent,
    message_to_json,
    print_fields,
    print_json,
    print_table,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_messages_become_json_that_programs_can_rely_on() -> None:
    rollout = rollout_pb2.Rollout(
        id="r1",
        state=rollout_pb2.ROLLOUT_STATE_ROLLED_BACK,
        devices=[rollout_pb2.RolloutDevice(generation=2**40, switch_seconds=0.5)],
    )
    rollout.created_at.FromDatetime(NOW)
    document = message_to_json(rollout)
    assert document["state"] == "rolled_back"
    assert document["created_at"] == "2026-01-01T00:00:00Z"
    assert document["updated_at"] is None
    assert document["waves"] == []
    assert document["devices"][0]["generation"] == 2**40
    assert set(document) == {field.name for field in rollout.DESCRIPTOR.fields}
    json.dumps(document)


def test_unmeasured_is_null_and_never_zero() -> None:
    document = message_to_json(telemetry_pb2.TelemetrySummary(requests=0))
    assert document["tokens_per_joule"] is None
    assert document["requests"] == 0


def test_maps_and_newer_enum_values_survive() -> None:
    device = fleet_pb2.Device(labels={"b": "2", "a": "1"}, update_state=99)  # type: ignore[arg-type]
    document = message_to_json(device)
    assert list(document["labels"]) == ["a", "b"]
    assert document["update_state"] == "99"
    assert document["facts"] is None


def test_text_from_a_device_cannot_drive_the_terminal() -> None:
    assert clean("ok\x1b[2Jé\n") == "ok\\x1b[2Jé\\n"
    assert len(clean("x" * 500)) == 200


def test_tables_line_up_and_say_when_they_are_empty(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("NAME", "N"), [("a", "1"), ("longer", "2")], empty="none")
    print_table(("NAME",), [], empty="No devices.")
    assert capsys.readouterr().out.splitlines() == [
        "NAME    N",
        "a       1",
        "longer  2",
        "No devices.",
    ]


def test_a_terminal_gets_the_same_cells(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    print_table(("NAME",), [("[bold]box[/bold]",)], empty="none")
    assert "[bold]box[/bold]" in capsys.readouterr().out


def test_fields_leave_out_what_is_empty(capsys: pytest.CaptureFixture[str]) -> None:
    print_fields({"name": "box", "why": "", "release": "r"})
    assert capsys.readouterr().out == "name     box\nrelease  r\n"


def test_a_field_is_told_whole_and_wrapped_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = " ".join(["the probation failed"] * 100)
    print_fields({"why": reason})
    assert capsys.readouterr().out == f"why  {reason}\n"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "60")
    print_fields({"why": reason})
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 60 for line in lines)
    assert all(line.startswith("     ") for line in lines[1:])
    assert " ".join(line[5:] for line in lines) == reason


def test_a_path_stays_whole_in_the_narrowest_terminal() -> None:
    path = "/srv/flotilla/" + "x" * 100
    assert hanging_indent("at  ", f"it lies at {path} now", 10).splitlines() == [
        "at  it lies at",
        f"    {path}",
        "    now",
    ]


def test_json_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": "é"})
    assert capsys.readouterr().out == '{"a": "é"}\n'


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (59, "59s"), (90, "2m"), (3600, "1h"), (200_000, "2d")]
)
def test_durations_in_the_unit_that_fits(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_moments_are_told_from_now() -> None:
    device = fleet_pb2.Device()
    assert ago(device.last_seen_at, NOW) == "never"
    device.last_seen_at.FromDatetime(NOW)
    assert ago(device.last_seen_at, NOW.replace(hour=2)) == "2h ago"
    assert ago(device.last_seen_at, NOW.replace(year=2025)) == "in 365d"
