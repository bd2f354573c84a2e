"""What the box measured outlasts its process, and nothing that no longer holds does."""

from dataclasses import replace
from pathlib import Path

from agent.selection import Prior
from agent.update.measurements import MAX_MEASUREMENTS, Experience
from tests.agent.selection.test_memory import load
from tests.agent.selection.test_ranking import FACTS


def test_measurements_are_kept_newest_first_one_per_variant(tmp_path: Path) -> None:
    path = tmp_path / "measurements.json"
    experience = Experience(path)
    experience.add(FACTS, load("q4", 1, 1))
    experience.add(FACTS, load("q8", 1, 2))
    experience.add(FACTS, load("q4", 1, 3))
    again = Experience(path).measured(FACTS)
    assert [(one.variant, one.memory_bytes >> 30) for one in again] == [("q4", 3), ("q8", 2)]


def test_they_end_with_the_hardware_or_the_limits_that_they_were_made_under(tmp_path: Path) -> None:
    experience = Experience(tmp_path / "measurements.json")
    experience.add(FACTS, load("q4", 1, 1))
    assert experience.measured(replace(FACTS, cores=2)) == ()
    assert experience.measured(replace(FACTS, model_memory_bytes=1)) != ()
    assert experience.measured(replace(FACTS, runtimes={"llama_cpp": "2"})) == ()


def test_they_are_bounded(tmp_path: Path) -> None:
    experience = Experience(tmp_path / "measurements.json")
    for number in range(MAX_MEASUREMENTS + 3):
        experience.add(FACTS, load(f"v{number}", 1, 1))
    assert len(experience.measured(FACTS)) == MAX_MEASUREMENTS


def test_a_damaged_or_unwritable_file_is_no_experience_and_no_error(tmp_path: Path) -> None:
    path = tmp_path / "measurements.json"
    path.write_text('{"hardware": 3')
    assert Experience(path).measured(FACTS) == ()
    homeless = Experience(tmp_path / "gone" / "measurements.json")
    homeless.add(FACTS, load("q4", 1, 1))
    assert len(homeless.measured(FACTS)) == 1


def test_priors_are_of_one_model_version() -> None:
    experience = Experience()
    prior = Prior(tokens_per_second=4)
    experience.hear([("a/b@1", "q4", prior), ("a/b@2", "q4", replace(prior, devices=9))])
    assert experience.priors("a/b@1") == {"q4": prior}
    experience.hear([])
    assert experience.priors("a/b@1") == {}
