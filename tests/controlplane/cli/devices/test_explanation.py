"""What someone new reads when they ask why a box runs what it runs."""

import pytest
from flotilla.v1 import fleet_pb2
from flotilla.v1.device_pb2 import ProbationCheck
from flotilla.v1.selection_pb2 import SelectionCandidate, SelectionDecision

from controlplane.cli.devices.explanation import print_explanation

RELEASE = "acme/assistant@1.0.0"


def explained(current: str = RELEASE, chosen: str = "gguf-q4") -> fleet_pb2.ExplainDeviceResponse:
    return fleet_pb2.ExplainDeviceResponse(
        device=fleet_pb2.Device(name="lab-small-1", current_release=current),
        release=RELEASE,
        decisions=[
            SelectionDecision(
                slot="chat",
                model="acme/tiny-llama@1.0.0",
                chosen_variant=chosen,
                objective="tokens_per_second",
                reason="the best quality that fits",
                memory_budget_bytes=5 << 20,
                candidates=[
                    SelectionCandidate(
                        variant="gguf-q4",
                        runtime="llama_cpp",
                        bucket="chosen",
                        reason="measured 300 tokens/s",
                        predicted_memory_bytes=4 << 20,
                        measured_memory_bytes=3 << 20,
                        measured_tokens_per_second=300.0,
                        predicted_tokens_per_second=281.0,
                        prediction_source="calibrated roofline",
                    ),
                    SelectionCandidate(
                        variant="gguf-q8",
                        runtime="llama_cpp",
                        bucket="ranked",
                        reason="fits",
                        predicted_tokens_per_second=150.0,
                        prediction_source="same hardware class",
                    ),
                    SelectionCandidate(
                        variant="gguf-f16",
                        runtime="llama_cpp",
                        bucket="excluded",
                        reason="needs 9.0 MiB, budget 5.0 MiB",
                        predicted_memory_bytes=9 << 20,
                        quality="perplexity 11.2",
                    ),
                ],
            )
        ],
        checks=[ProbationCheck(slot="chat", name="reads-english", outcome="passed", detail="11.4")],
    )


def test_one_sentence_then_every_candidate_with_its_why(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_explanation(explained())
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"lab-small-1 runs {RELEASE} with gguf-q4 in slot chat."
    (chosen,) = [line for line in lines if line.startswith("gguf-q4 ")]
    assert "3.0 MiB (~4.0 MiB)" in chosen
    assert "300.0 (~281.0)  " in chosen
    assert "calibrated roofline" in chosen
    assert chosen.count("unmeasured") == 2  # energy, quality
    (excluded,) = [line for line in lines if line.startswith("gguf-f16")]
    assert "ruled out" in excluded
    assert "~9.0 MiB" in excluded
    assert "needs 9.0 MiB, budget 5.0 MiB" in excluded
    (untried,) = [line for line in lines if line.startswith("gguf-q8")]
    assert "fits, not tried" in untried
    assert "~150.0" in untried
    assert "same hardware class" in untried
    assert any("reads-english" in line and "passed" in line for line in lines)


def test_a_release_that_was_not_taken_is_not_said_to_run(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_explanation(explained(current="", chosen=""))
    first = capsys.readouterr().out.splitlines()[0]
    assert first == f"lab-small-1 runs nothing; it tried {RELEASE}, of which nothing fits."


def test_a_new_device_has_decided_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    print_explanation(fleet_pb2.ExplainDeviceResponse(device=fleet_pb2.Device(name="new")))
    assert capsys.readouterr().out.startswith("new has not reported on a release")
