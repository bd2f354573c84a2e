"""What `flotilla rollout show` prints."""

import pytest
from flotilla.v1 import rollout_pb2

from controlplane.cli.rollouts.view import print_rollout


def test_reasons_are_told_whole_beneath_their_tables(capsys: pytest.CaptureFixture[str]) -> None:
    why = "probation_failed: " + "the answers differ from those of the publisher; " * 20 + "done"
    print_rollout(
        rollout_pb2.Rollout(
            id="r1",
            release="acme/a@2",
            reason=why,
            waves=[
                rollout_pb2.Wave(name="canary", targeted=1, failed=1, reason=f"1 of 1: {why}"),
                rollout_pb2.Wave(name="full", targeted=1),
            ],
            devices=[
                rollout_pb2.RolloutDevice(
                    name="box-1", wave=0, state="failed", detail=why, generation=4
                ),
                rollout_pb2.RolloutDevice(
                    name="box-3", wave=0, state="reverted", detail="rejected", sent_back=True
                ),
                rollout_pb2.RolloutDevice(name="box-2", wave=1, state="pending"),
            ],
        )
    )
    lines = capsys.readouterr().out.splitlines()
    assert f"canary  1 of 1: {why}" in lines
    assert f"box-1  {why}" in lines
    assert sum(line.startswith("box-2") for line in lines) == 1
    # The receipts that tell why.
    assert "  flotilla device explain box-1 --generation 4" in lines
    assert "  flotilla device explain box-3 --release acme/a@2" in lines
    assert any(line.startswith("why") and line.endswith(why) for line in lines)


def test_a_rollout_without_reasons_prints_its_tables_alone(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_rollout(rollout_pb2.Rollout(id="r1", waves=[rollout_pb2.Wave(name="full")]))
    assert capsys.readouterr().out.splitlines()[-1] == "No devices."
