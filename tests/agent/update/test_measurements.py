"""Measurements survive a restart, and stale ones are dropped."""

from dataclasses import replace
from pathlib import Path

from agent.selection import Prior
from agent.update.measurements import MAX_MEASUREMENTS, MeasurementStore
from tests.agent.selection.test_memory_prediction import load
from tests.agent.selection.test_ranking import FACTS


def test_measurements_are_kept_newest_first_one_per_variant(tmp_path: Path) -> None:
    path = tmp_path / "measurements.json"
    measurements = MeasurementStore(path)
    measurements.add(FACTS, load("q4", 1, 1))
    measurements.add(FACTS, load("q8", 1, 2))
    measurements.add(FACTS, load("q4", 1, 3))
    again = MeasurementStore(path).measured(FACTS)
    assert [(one.variant, one.memory_bytes >> 30) for one in again] == [("q4", 3), ("q8", 2)]


def test_they_end_with_the_hardware_or_the_limits_that_they_were_made_under(tmp_path: Path) -> None:
    measurements = MeasurementStore(tmp_path / "measurements.json")
    measurements.add(FACTS, load("q4", 1, 1))
    assert measurements.measured(replace(FACTS, cores=2)) == ()
    assert measurements.measured(replace(FACTS, model_memory_bytes=1)) != ()
    assert measurements.measured(replace(FACTS, runtimes={"llama_cpp": "2"})) == ()


def test_they_are_bounded(tmp_path: Path) -> None:
    measurements = MeasurementStore(tmp_path / "measurements.json")
    for number in range(MAX_MEASUREMENTS + 3):
        measurements.add(FACTS, load(f"v{number}", 1, 1))
    assert len(measurements.measured(FACTS)) == MAX_MEASUREMENTS


def test_a_damaged_or_unwritable_file_is_no_experience_and_no_error(tmp_path: Path) -> None:
    path = tmp_path / "measurements.json"
    path.write_text('{"hardware": 3')
    assert MeasurementStore(path).measured(FACTS) == ()
    homeless = MeasurementStore(tmp_path / "gone" / "measurements.json")
    homeless.add(FACTS, load("q4", 1, 1))
    assert len(homeless.measured(FACTS)) == 1


def test_priors_are_of_one_model_version() -> None:
    measurements = MeasurementStore()
    prior = Prior(tokens_per_second=4)
    measurements.set_priors([("a/b@1", "q4", prior), ("a/b@2", "q4", replace(prior, devices=9))])
    assert measurements.priors("a/b@1") == {"q4": prior}
    measurements.set_priors([])
    assert measurements.priors("a/b@1") == {}
