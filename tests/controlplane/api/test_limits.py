"""Limits of reconnects, and the statuses and texts of refusals."""

import grpc
import pytest

from artifact.errors import ChunkMismatchError, UntrustedError
from controlplane import errors
from controlplane.api import streams
from controlplane.api.error_statuses import ADVICE_KEY, CATALOG, plain, status_of
from controlplane.api.streams import DEVICE_BURST, Admission
from controlplane.api.token_bucket import TokenBucket

Code = grpc.StatusCode


def test_a_bucket_lets_a_burst_through_and_refills() -> None:
    now = 0.0
    bucket = TokenBucket(burst=3, per_second=0.5, clock=lambda: now)
    assert [bucket.take_one() for _ in range(4)] == [0, 0, 0, pytest.approx(2.0)]
    now = 2.0
    assert [bucket.take_one() for _ in range(2)] == [0, pytest.approx(2.0)]
    now = 1000.0
    assert bucket.is_full
    assert [bucket.take_one() for _ in range(4)] == [0, 0, 0, pytest.approx(2.0)]


def test_a_bucket_goes_into_debt_that_time_repays() -> None:
    now = 0.0
    bucket = TokenBucket(burst=3, per_second=0.5, clock=lambda: now)
    assert bucket.spend(3) == 0
    assert bucket.spend(1) == pytest.approx(2.0)
    now = 1.0
    assert bucket.spend(0) == pytest.approx(1.0)
    assert not bucket.is_full


def test_a_device_that_connects_without_end_takes_nobodys_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(streams, "MAX_BUCKETS", 2)
    now = 0.0
    admission = Admission(burst=DEVICE_BURST + 3, per_second=0.001, clock=lambda: now)
    for _ in range(DEVICE_BURST):
        admission.take("loud")
    admission.take("first")
    now = 1.0
    admission.take("loud")
    with pytest.raises(errors.OverloadedError, match="this device"):
        admission.take("loud")
    # Full buckets are dropped to make room; the busy device's bucket is not full.
    admission.take("second")
    with pytest.raises(errors.OverloadedError, match="this device"):
        admission.take("loud")
    with pytest.raises(errors.OverloadedError, match="are connecting"):
        admission.take("third")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.InvalidSelectorError("x"), Code.INVALID_ARGUMENT),
        (errors.NotFoundError("x"), Code.NOT_FOUND),
        (errors.NameTakenError("x"), Code.ALREADY_EXISTS),
        (errors.StaleError("x"), Code.ABORTED),
        (errors.DeviceBusyError("x"), Code.FAILED_PRECONDITION),
        (errors.JoinRefusedError("x"), Code.PERMISSION_DENIED),
        (UntrustedError("x"), Code.FAILED_PRECONDITION),
        (ChunkMismatchError("x"), Code.INVALID_ARGUMENT),
        (TimeoutError(), Code.DEADLINE_EXCEEDED),
        (KeyError("secret"), Code.INTERNAL),
    ],
)
def test_every_error_has_its_status(error: Exception, code: Code) -> None:
    assert status_of(error, "/a/B").code is code


def test_a_general_kind_never_hides_a_special_one() -> None:
    kinds = [kind for kind, _ in CATALOG]
    for position, kind in enumerate(kinds):
        assert not any(issubclass(later, kind) for later in kinds[position + 1 :])


def test_what_is_not_ours_is_not_told() -> None:
    status = status_of(RuntimeError("password=hunter2"), "/a/B")
    assert "hunter2" not in status.message
    assert dict(status.trailing)[ADVICE_KEY]


def test_texts_become_plain_and_short() -> None:
    assert plain("a\nb\x00\u2603'") == "a\\nb\\x00\\u2603'"
    assert len(plain("x" * 10_000)) == 1500
