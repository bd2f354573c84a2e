"""The watchdog is notified only while the daemon has no fault."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fake_fleet import worker_spec

from agent.gateway import Gateway
from agent.health import daemon_fault, feed_watchdog
from agent.serving import Serving
from agent.supervisor import Supervisor
from agent.supervisor.process import WorkerProcess
from agent.supervisor.spec import WorkerTimeouts
from agent.telemetry import Collector

QUICK = WorkerTimeouts(backoff_first_seconds=0.01, backoff_most_seconds=0.02)


@pytest.fixture
async def supervisor() -> AsyncIterator[Supervisor]:
    supervisor = Supervisor(timeouts=QUICK)
    yield supervisor
    await supervisor.close()


@pytest.fixture(params=["127.0.0.1", "unix"])
async def address(
    request: pytest.FixtureRequest, supervisor: Supervisor, tmp_path: Path
) -> AsyncIterator[str]:
    gateway = Gateway(Serving(supervisor), Collector(None), dict)
    host = f"unix:{tmp_path}/gateway" if request.param == "unix" else request.param
    yield await gateway.start(host)
    await gateway.stop()


async def test_a_daemon_whose_gateway_answers_is_well(address: str, supervisor: Supervisor) -> None:
    assert await daemon_fault(address, supervisor) == ""


async def test_a_gateway_that_is_gone_is_a_fault(supervisor: Supervisor) -> None:
    assert "127.0.0.1:1" in await daemon_fault("127.0.0.1:1", supervisor)


async def test_a_gateway_that_answers_nonsense_is_a_fault(supervisor: Supervisor) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 500 no\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        assert "500" in await daemon_fault(f"127.0.0.1:{port}", supervisor)


async def test_a_worker_that_nothing_would_restart_is_a_fault(
    supervisor: Supervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = await supervisor.start(worker_spec(tmp_path))
    assert supervisor.unsupervised() == []

    async def no_more_processes(
        self: WorkerProcess, timeouts: WorkerTimeouts, threads: int
    ) -> None:
        raise BlockingIOError("fork")

    monkeypatch.setattr(WorkerProcess, "start", no_more_processes)
    os.kill(worker.pid, 9)
    await asyncio.wait({worker._lifecycle._keeper}, timeout=20)
    assert "chat" in await daemon_fault("127.0.0.1:1", supervisor)


async def test_the_watchdog_hears_nothing_while_something_is_wrong_or_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = str(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    answers = iter(["broken", "hang", ""])
    silent_before: list[bool] = []

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        manager.setblocking(False)

        async def check() -> str:
            try:
                manager.recv(100)
            except BlockingIOError:
                silent_before.append(True)
            else:
                silent_before.append(False)
            answer = next(answers)
            if answer == "hang":
                await asyncio.Event().wait()
            return answer

        feeding = asyncio.create_task(feed_watchdog(check, interval_seconds=0.05))
        assert await asyncio.wait_for(asyncio.get_running_loop().sock_recv(manager, 100), 20) == (
            b"WATCHDOG=1"
        )
        feeding.cancel()
    assert silent_before == [True, True, True]


async def test_without_a_watchdog_it_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)

    async def never() -> str:
        raise AssertionError

    await asyncio.wait_for(feed_watchdog(never), 5)
