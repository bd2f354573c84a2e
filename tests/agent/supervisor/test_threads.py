"""Workers compute with the threads that the box's facts say, also after the limits changed."""

from collections import deque
from dataclasses import replace
from pathlib import Path

import pytest
from fake_fleet import release_of, worker_spec

from agent.supervisor import Supervisor, process
from agent.supervisor.launch import load_command
from agent.supervisor.spec import WorkerTimeouts
from agent.update.loading import _large_models
from runtimes.base import Sampling
from runtimes.fake import FakeModel, Faults
from runtimes.processor.threads import SINGLE_THREAD_BYTES, threads_for_model

LARGE = "x" * SINGLE_THREAD_BYTES


def test_a_load_command_has_the_threads_of_the_one_decision(tmp_path: Path) -> None:
    small, large = worker_spec(tmp_path), worker_spec(tmp_path, FakeModel(padding=LARGE), slot="b")
    assert load_command(1, small, 4).threads == 1
    for models in (1, 2, 4):
        command = load_command(1, replace(large, large_models=models), 4)
        assert command.threads == threads_for_model(4, large.variant.size_bytes, models)


def test_the_large_models_of_a_release_are_counted(tmp_path: Path) -> None:
    specs = [
        worker_spec(tmp_path, FakeModel(padding=padding), slot=slot)
        for slot, padding in (("a", LARGE), ("b", ""), ("c", LARGE))
    ]
    assert _large_models(release_of(*specs)) == 2


async def test_a_restarted_worker_has_the_threads_of_the_present_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[int] = []

    def recorded(*arguments: object) -> object:
        command = load_command(*arguments)  # type: ignore[arg-type]
        loaded.append(command.threads)
        return command

    monkeypatch.setattr(process, "load_command", recorded)
    limits = deque([2, 1])
    supervisor = Supervisor(
        timeouts=WorkerTimeouts(backoff_first_seconds=0.01), threads=limits.popleft
    )
    model = FakeModel(padding=LARGE, faults=Faults(crash_on_text="crash"))
    worker = await supervisor.start(worker_spec(tmp_path, model))
    for prompt in ("crash", "hello"):
        generation = worker.generate(prompt, None, Sampling(max_tokens=1))
        try:
            assert [piece async for piece in generation]
        except Exception:  # noqa: BLE001 - the crash
            assert prompt == "crash"
    await supervisor.close()
    assert loaded == [2, 1]
