"""States of an update that a receipt may report."""

from controlplane.fleet import UpdateState


def test_four_states_end_an_update() -> None:
    assert {state for state in UpdateState if state.final} == {
        UpdateState.COMMITTED,
        UpdateState.REJECTED,
        UpdateState.ROLLED_BACK,
        UpdateState.INCONSISTENT,
    }
