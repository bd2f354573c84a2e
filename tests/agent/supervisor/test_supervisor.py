"""Workers are real processes around the fake runtime."""

import array
import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import endless
import msgspec
import pytest
from fake_fleet import worker_spec

from agent.errors import (
    LoadFailedError,
    ModelRefusedError,
    WorkerCrashedError,
    WorkerFailedError,
    WorkerUnavailableError,
)
from agent.supervisor import Supervisor, Worker, launch
from agent.supervisor.spec import WorkerTimeouts
from artifact.manifest import Task
from runtimes.base import Sampling, TensorValue
from runtimes.environment import engine_environment
from runtimes.fake import FakeModel, Faults
from tests.agent.box import eventually

TIMEOUTS = WorkerTimeouts(backoff_first_seconds=0.02, backoff_most_seconds=0.1)


@pytest.fixture
async def supervisor() -> AsyncIterator[Supervisor]:
    supervisor = Supervisor(timeouts=TIMEOUTS)
    yield supervisor
    await supervisor.close()


async def text_of(worker: Worker, max_tokens: int = 8, prompt: str = "hi") -> str:
    generation = worker.generate(prompt, None, Sampling(max_tokens=max_tokens))
    return "".join([piece.text async for pieces in generation for piece in pieces])


def children() -> list[int]:
    return [
        int(pid)
        for task in Path("/proc/self/task").iterdir()
        for pid in (task / "children").read_text().split()
    ]


def environment_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/environ").read_text().split("\0")


def running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


async def gone(pid: int) -> bool:
    """Return True if a process ends within five seconds."""
    for _ in range(500):
        if not running(pid):
            return True
        await asyncio.sleep(0.01)
    return False


async def test_text_comes_in_pieces_and_usage_follows(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    worker = await supervisor.start(worker_spec(tmp_path, FakeModel(reply="abcdefgh")))
    generation = worker.generate("hello", None, Sampling(max_tokens=6))
    pieces = [piece async for some in generation for piece in some]
    assert [piece.text for piece in pieces] == list("abcdef")
    assert [piece.finish_reason for piece in pieces] == [None] * 5 + ["length"]
    assert generation.usage is not None
    assert (generation.usage.prompt_tokens, generation.usage.generated_tokens) == (5, 6)


async def test_conversations_are_rendered_by_the_model(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    worker = await supervisor.start(worker_spec(tmp_path))
    generation = worker.generate(None, [{"role": "user", "content": "hi"}], Sampling(max_tokens=1))
    assert len([piece async for some in generation for piece in some]) == 1
    assert generation.usage is not None
    assert generation.usage.prompt_tokens == len("user: hi\n")


async def test_scores_and_tensors(supervisor: Supervisor, tmp_path: Path) -> None:
    text = await supervisor.start(worker_spec(tmp_path, FakeModel(perplexity=8)))
    score = await text.score("twelve bytes")
    assert score.tokens == 11
    tensor = await supervisor.start(
        worker_spec(tmp_path, FakeModel(task=Task.TENSOR, width=2), slot="digits")
    )
    values = array.array("f", [1, 2, 3, 4]).tobytes()
    (output,) = await tensor.infer([TensorValue("input", "FP32", (2, 2), values)])
    assert array.array("f", output.data).tolist() == [2, 4, 6, 8]
    inputs, outputs = tensor.tensors()
    assert (inputs[0].name, outputs[0].name) == ("input", "output")


async def test_stats_are_of_the_process(supervisor: Supervisor, tmp_path: Path) -> None:
    model = FakeModel(allocate_bytes=32 << 20, memory_bytes=32 << 20)
    worker = await supervisor.start(worker_spec(tmp_path, model))
    stats = worker.stats()
    assert stats.live
    assert 32 << 20 < stats.memory_bytes <= stats.peak_memory_bytes < 256 << 20


@pytest.mark.parametrize(
    ("faults", "reason"),
    [
        (Faults(on_load="error"), "refused"),
        (Faults(on_load="crash"), "crashed"),
        (Faults(on_load="out_of_memory"), "out_of_memory"),
        (Faults(on_load="hang"), "timed_out"),
    ],
)
async def test_a_failed_load_says_why_and_leaves_nothing(
    tmp_path: Path, faults: Faults, reason: str
) -> None:
    supervisor = Supervisor(timeouts=replace(TIMEOUTS, load_seconds=2))
    with pytest.raises(LoadFailedError) as caught:
        await supervisor.start(worker_spec(tmp_path, FakeModel(faults=faults)))
    assert caught.value.reason == reason
    assert "demo/fake@1" in str(caught.value)
    assert children() == []


@pytest.mark.parametrize(
    ("size_gib", "seconds_per_gib", "loads"), [(7, 100, True), (7, 2000, False), (0.1, 400, True)]
)
def test_the_time_to_load_grows_with_the_files(
    size_gib: float, seconds_per_gib: float, loads: bool
) -> None:
    """7 GiB from a card that reads 10 MiB/s take 12 minutes, which is slow and not stuck."""
    limit = WorkerTimeouts().load_limit_seconds(round(size_gib * (1 << 30)))
    assert (size_gib * seconds_per_gib < limit) == loads


async def test_an_unknown_runtime_is_named(supervisor: Supervisor, tmp_path: Path) -> None:
    spec = worker_spec(tmp_path)
    spec = replace(spec, variant=msgspec.structs.replace(spec.variant, runtime="nobody-has"))
    with pytest.raises(LoadFailedError, match="nobody-has") as caught:
        await supervisor.start(spec)
    assert caught.value.reason == "no_runtime"


async def test_room_is_what_the_budget_leaves_beside_the_loaded_workers(tmp_path: Path) -> None:
    free = budget = 1 << 30
    supervisor = Supervisor(free_bytes=lambda: free, budget_bytes=lambda: budget)
    assert supervisor.room() == budget
    model = FakeModel(allocate_bytes=32 << 20, memory_bytes=32 << 20)
    spec = worker_spec(tmp_path, model, memory_limit_bytes=256 << 20)
    workers = [await supervisor.start(spec) for _ in range(2)]
    taken = sum(worker.stats().peak_memory_bytes for worker in workers)
    assert taken > 2 * (32 << 20)
    assert supervisor.room() == budget - taken
    free = 1 << 20
    assert supervisor.room() == free
    budget = 1 << 20
    assert supervisor.room() == 0
    for worker in workers:
        await supervisor.stop(worker)
    assert supervisor.room() == budget
    await supervisor.close()


async def test_a_model_that_outgrows_its_limit_is_killed(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    # It allocates 300 MiB and keeps running: no error and no crash by itself.
    model = FakeModel(allocate_bytes=300 << 20)
    spec = worker_spec(tmp_path, model, memory_limit_bytes=64 << 20)
    with pytest.raises(LoadFailedError, match=r"limit 64\.0 MiB") as caught:
        await supervisor.start(spec)
    assert caught.value.reason == "out_of_memory"
    assert caught.value.advice


async def test_an_allocation_too_fast_for_the_watch_fails_by_itself(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    model = FakeModel(allocate_bytes=2 << 30)
    spec = worker_spec(tmp_path, model, memory_limit_bytes=16 << 20)
    with pytest.raises(LoadFailedError) as caught:
        await supervisor.start(spec)
    assert caught.value.reason == "out_of_memory"


async def test_bad_input_is_the_callers_and_the_worker_lives(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    worker = await supervisor.start(worker_spec(tmp_path, FakeModel(context_length=8)))
    pid = worker.pid
    with pytest.raises(ModelRefusedError, match="context holds 8") as caught:
        await text_of(worker, prompt="much longer than eight")
    assert not caught.value.unsupported
    with pytest.raises(ModelRefusedError) as caught:
        await worker.infer([TensorValue("input", "FP32", (1, 4), bytes(16))])
    assert await text_of(worker, max_tokens=1)
    assert worker.pid == pid


async def test_a_cancelled_call_of_onnx_runtime_makes_room_for_the_next(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    fake = worker_spec(tmp_path)
    spec = replace(
        fake,
        model=msgspec.structs.replace(fake.model, task=Task.TENSOR),
        variant=msgspec.structs.replace(fake.variant, runtime="onnx"),
        files={"model.onnx": endless.write_model(tmp_path / "model.onnx")},
        memory_limit_bytes=256 << 20,
    )
    worker = await supervisor.start(spec)

    def rounds(count: int) -> TensorValue:
        return TensorValue("rounds", "INT64", (), count.to_bytes(8, "little"))

    pid = worker.pid
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await worker.infer([rounds(1 << 62)])
    (output,) = await worker.infer([rounds(3)])
    assert int.from_bytes(output.data, "little") == 3
    assert worker.pid == pid


async def test_an_engine_error_is_told_and_the_worker_lives(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    model = FakeModel(faults=Faults(fail_after_tokens=3))
    worker = await supervisor.start(worker_spec(tmp_path, model))
    pid = worker.pid
    with pytest.raises(WorkerFailedError, match="staged failure"):
        await text_of(worker)
    assert len(await text_of(worker, max_tokens=2)) == 2
    assert (worker.pid, worker.stats().restarts) == (pid, 0)


async def test_a_crash_costs_its_request_one_error_and_one_restart(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    worker = await supervisor.start(worker_spec(tmp_path, FakeModel(token_seconds=0.01)))
    before = worker.pid
    generation = worker.generate("hi", None, Sampling(max_tokens=400))
    for _ in range(3):
        await anext(generation)
    os.kill(before, signal.SIGKILL)
    with pytest.raises(WorkerCrashedError, match="SIGKILL"):
        [piece async for piece in generation]
    assert len(await text_of(worker, max_tokens=4)) == 4
    assert worker.pid != before
    assert worker.stats().restarts == 1


@pytest.mark.parametrize(
    ("number", "ran_out_of_memory"), [(signal.SIGKILL, True), (signal.SIGABRT, False)]
)
async def test_what_the_kernel_kills_has_starved(
    supervisor: Supervisor, tmp_path: Path, number: signal.Signals, *, ran_out_of_memory: bool
) -> None:
    worker = await supervisor.start(worker_spec(tmp_path, FakeModel()))
    assert not worker.ran_out_of_memory
    os.kill(worker.pid, number)
    assert len(await text_of(worker, max_tokens=4)) == 4
    assert worker.ran_out_of_memory is ran_out_of_memory


async def test_a_request_that_is_sent_to_a_dying_process_is_no_suspect(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    worker = await supervisor.start(worker_spec(tmp_path, FakeModel(reply="xyz")))
    os.kill(worker.pid, signal.SIGSTOP)
    answer = asyncio.create_task(text_of(worker, max_tokens=2))
    await eventually(lambda: worker._lifecycle.process._unanswered)
    os.kill(worker.pid, signal.SIGKILL)
    assert await answer == "xy"
    assert worker.stats().restarts == 1


async def test_requests_wait_in_line(supervisor: Supervisor, tmp_path: Path) -> None:
    worker = await supervisor.start(worker_spec(tmp_path, FakeModel(token_seconds=0.002)))
    order: list[int] = []

    async def ask(number: int) -> None:
        await text_of(worker, max_tokens=5)
        order.append(number)

    await asyncio.gather(*(ask(number) for number in range(8)))
    assert order == list(range(8))


async def test_as_many_are_answered_at_once_as_the_engine_can_do(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    """The first request would take 100 s: two others run beside it, a fourth waits."""
    model = FakeModel(token_seconds=0.01, context_length=20_000, parallel=3)
    worker = await supervisor.start(worker_spec(tmp_path, model))
    long = worker.generate("hi", None, Sampling(max_tokens=10_000))
    await anext(long)
    async with asyncio.timeout(20):
        assert await asyncio.gather(*(text_of(worker, max_tokens=3) for _ in range(2)))
        second = worker.generate("hi", None, Sampling(max_tokens=10_000))
        third = worker.generate("hi", None, Sampling(max_tokens=10_000))
        await anext(second)
        await anext(third)
        fourth = asyncio.create_task(text_of(worker, max_tokens=2))
        while worker.stats().waiting != 1:
            await anext(long)
        assert not fourth.done()
        await third.aclose()
        assert len(await fourth) == 2
        await second.aclose()
        await long.aclose()


async def test_a_component_may_ask_for_fewer_at_once(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    spec = worker_spec(tmp_path, FakeModel(token_seconds=0.01, context_length=2000, parallel=3))
    worker = await supervisor.start(replace(spec, max_concurrency=1))
    long = worker.generate("hi", None, Sampling(max_tokens=1000))
    await anext(long)
    waiting = asyncio.create_task(text_of(worker, max_tokens=2))
    async with asyncio.timeout(20):
        while worker.stats().waiting != 1:
            await anext(long)
    await long.aclose()
    assert len(await waiting) == 2


async def test_a_worker_gets_the_environment_that_engines_want(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    await supervisor.start(worker_spec(tmp_path, FakeModel()))
    (pid,) = children()
    wanted = engine_environment().get("GLIBC_TUNABLES", "")
    told = [each for each in environment_of(pid) if each.startswith("GLIBC_TUNABLES=")]
    assert told == [f"GLIBC_TUNABLES={wanted}"] * bool(wanted)


async def test_one_that_waits_for_others_is_no_sign_of_silence(tmp_path: Path) -> None:
    """A first token may take longer than the allowed silence while others receive events."""
    supervisor = Supervisor(timeouts=replace(TIMEOUTS, silence_seconds=0.4))
    model = FakeModel(token_seconds=0.05, parallel=12)
    worker = await supervisor.start(worker_spec(tmp_path, model))
    texts = await asyncio.gather(*(text_of(worker, max_tokens=3) for _ in range(12)))
    assert [len(text) for text in texts] == [3] * 12
    assert worker.stats().restarts == 0
    await supervisor.close()


async def test_closing_a_generation_stops_it(supervisor: Supervisor, tmp_path: Path) -> None:
    worker = await supervisor.start(
        worker_spec(tmp_path, FakeModel(token_seconds=0.02, context_length=10_000))
    )
    generation = worker.generate("hi", None, Sampling(max_tokens=5000))
    async with aclosing(generation):
        async for _ in generation:
            break
    # The 5000 tokens would take 100 s.
    async with asyncio.timeout(5):
        assert len(await text_of(worker, max_tokens=2)) == 2
    assert worker.stats().restarts == 0


async def test_a_cancelled_caller_stops_its_generation(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    worker = await supervisor.start(
        worker_spec(tmp_path, FakeModel(token_seconds=0.02, context_length=10_000))
    )
    running = asyncio.create_task(text_of(worker, max_tokens=5000))
    waiting = asyncio.create_task(text_of(worker, max_tokens=5000))
    await eventually(lambda: worker.stats().waiting == 1)
    for task in (running, waiting):
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    async with asyncio.timeout(5):
        assert len(await text_of(worker, max_tokens=2)) == 2


async def test_a_stopped_worker_answers_no_more(supervisor: Supervisor, tmp_path: Path) -> None:
    worker = await supervisor.start(worker_spec(tmp_path, FakeModel(token_seconds=0.01)))
    running = asyncio.create_task(text_of(worker, max_tokens=400))
    await eventually(lambda: worker._lifecycle.process._unanswered)
    pid = worker.pid
    await supervisor.stop(worker)
    with pytest.raises(WorkerUnavailableError):
        await running
    with pytest.raises(WorkerUnavailableError):
        await text_of(worker)
    assert await gone(pid)
    assert children() == []
    await supervisor.stop(worker)


_DAEMON = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from fake_fleet import worker_spec
from agent.supervisor import Supervisor

async def main():
    worker = await Supervisor().start(worker_spec(Path(sys.argv[1])))
    print(worker.pid, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_no_worker_outlives_a_killed_daemon(tmp_path: Path) -> None:
    support = Path(sys.modules["fake_fleet"].__file__ or "").parent
    daemon = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _DAEMON, tmp_path, support, stdout=asyncio.subprocess.PIPE
    )
    assert daemon.stdout is not None
    pid = int(await daemon.stdout.readline())
    assert running(pid)
    daemon.kill()
    await daemon.wait()
    assert await gone(pid)


async def test_a_process_that_cannot_be_started_is_a_clear_error(
    supervisor: Supervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "with_raised_oom_score", lambda *_: [str(tmp_path / "no-program")])
    with pytest.raises(LoadFailedError, match="could not be started") as caught:
        await supervisor.start(worker_spec(tmp_path))
    assert caught.value.reason == "not_started"


async def test_a_restart_that_fails_is_tried_again(
    supervisor: Supervisor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec = worker_spec(tmp_path)
    worker = await supervisor.start(spec)
    model = spec.files["model.fake"]
    hidden = model.rename(tmp_path / "hidden")
    os.kill(worker.pid, signal.SIGKILL)
    await worker._lifecycle.process.gone.wait()
    answer = asyncio.create_task(text_of(worker))
    await eventually(lambda: caplog.text.count("worker_restart_failed") > 1)
    assert not answer.done()
    hidden.rename(model)
    assert await answer
    assert worker.stats().live


async def test_an_answer_that_nobody_reads_keeps_nobody_waiting(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    worker = await supervisor.start(worker_spec(tmp_path, FakeModel(reply="abcdefgh")))
    unread = worker.generate("hello", None, Sampling(max_tokens=8))
    first = await anext(unread)
    async with asyncio.timeout(10):
        assert await text_of(worker, 4) == "abcd"
    rest = [piece async for some in unread for piece in some]
    assert "".join(piece.text for piece in [*first, *rest]) == "abcdefgh"
    assert unread.usage is not None
