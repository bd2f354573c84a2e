"""A device's own faults are assigned again, and only the release's count at once."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from agent import errors
from agent.errors import DownloadError
from controlplane.fleet import UpdateState
from controlplane.services.ingest import DEVICE_FAULTS, update_result
from controlplane.store.receipts import Receipt

RECEIPT = Receipt(
    generation=1,
    release="acme/a@1",
    outcome=UpdateState.REJECTED,
    reason="",
    detail="",
    bytes_downloaded=0,
    switch_seconds=0.0,
    decisions=(),
    checks=(),
    finished_at=datetime(2026, 12, 1, tzinfo=UTC),
    current_release="",
    last_good_release="",
)


@pytest.mark.parametrize("reason", sorted(DEVICE_FAULTS))
def test_a_fault_of_the_device_is_no_failure_of_the_release_yet(reason: str) -> None:
    result = update_result(replace(RECEIPT, reason=reason))
    assert result.interrupted
    assert not result.committed


@pytest.mark.parametrize(
    "reason", ["probation_failed", "untrusted", "no_variant_fits", "download_corrupt", "crashed"]
)
def test_a_fault_of_the_release_counts_at_once(reason: str) -> None:
    assert not update_result(replace(RECEIPT, reason=reason)).interrupted


def test_the_reasons_of_downloads_are_those_of_the_agent() -> None:
    reasons = {
        kind.reason
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, DownloadError)
    }
    others = {"clock_set_back", "interrupted", "metadata_expired"}
    assert reasons >= DEVICE_FAULTS - others
