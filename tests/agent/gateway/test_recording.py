"""The telemetry of a request, with a clock of the test."""

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from fake_fleet import worker_spec

from agent.errors import AgentError, ModelRefusedError, WorkerCrashedError
from agent.gateway.http.asgi import ClientGoneError
from agent.gateway.recording import Recording
from agent.gateway.refusals import RequestRefusedError
from agent.supervisor import Worker
from agent.telemetry import Collector
from runtimes.base import Usage
from runtimes.fake import FakeModel


@pytest.fixture
def worker(tmp_path: Path) -> Worker:
    """The part of a worker that a recording reads."""
    return cast("Worker", SimpleNamespace(spec=worker_spec(tmp_path, FakeModel(), slot="chat")))


def test_tokens_of_a_caller_who_hung_up_took_the_time_in_which_they_came(worker: Worker) -> None:
    collector = Collector()
    clock = iter((1.5, 2.5, 4.0, 9.0))
    recording = Recording(collector, worker, 1.0, lambda: next(clock))
    recording.__enter__()
    for _ in range(3):
        recording.count_tokens(2)
    recording.__exit__(ClientGoneError, ClientGoneError(), None)
    (window,) = collector.roll([])
    assert (window.generated_tokens, window.decode_seconds, window.errors) == (6, 2.5, 0)


@pytest.mark.parametrize(
    ("error", "errors"),
    [
        (ModelRefusedError("the wrong shape"), 0),
        (RequestRefusedError(400, "invalid_value", "no such output"), 0),
        (WorkerCrashedError("died"), 1),
    ],
)
def test_a_callers_mistake_is_no_error_of_the_model(
    worker: Worker, error: AgentError, errors: int
) -> None:
    collector = Collector()
    with pytest.raises(type(error)), Recording(collector, worker, 1.0):
        raise error
    (window,) = collector.roll([])
    assert (window.requests, window.errors) == (1, errors)
    # A refused request has no latency.
    assert window.latency_seconds.count == errors


def test_what_the_engine_says_goes_before_what_was_seen(worker: Worker) -> None:
    collector = Collector()
    clock = iter((1.5, 4.0, 9.0))
    with Recording(collector, worker, 1.0, lambda: next(clock)) as recording:
        recording.count_tokens(1)
        recording.count_tokens(1)
        recording.usage = Usage(7, 2, 0.25, 0.125)
    (window,) = collector.roll([])
    assert (window.prefill_seconds, window.decode_seconds) == (0.25, 0.125)
