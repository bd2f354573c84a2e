"""Unattended enrolment from the owner's file and systemd's credential, on any start."""

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio
import pytest

from agent.config import AgentConfig, DataDir, PowerModel, load_config
from agent.enrollment.provisioning import load_settings, provision
from agent.errors import EnrollmentError, InvalidConfigError, NotEnrolledError
from tests.agent.enrollment_server import Servicer, join_token, start
from tests.agent.tls import Authority

MIB = 1 << 20


@dataclass
class World:
    """A server, a box, and its owner's two files."""

    servicer: Servicer
    port: int
    data_dir: DataDir
    settings: Path

    def write(self, **more: str) -> None:
        text = {"server": f"127.0.0.1:{self.port}", "name": "box-1"} | more
        self.settings.write_text("".join(f"{key}: {value}\n" for key, value in text.items()))

    async def start(self, sleep: Callable[[float], object] | None = None) -> AgentConfig:
        if sleep is None:
            return await provision(self.data_dir, self.settings)
        return await provision(self.data_dir, self.settings, sleep=sleep)  # type: ignore[arg-type]


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    servicer = Servicer(Authority())
    server, port = await start(servicer, servicer.authority.server_credentials("127.0.0.1"))
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "join-token").write_text(join_token(servicer.authority) + "\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credentials))
    world = World(servicer, port, DataDir(tmp_path / "box"), tmp_path / "agent.yaml")
    world.write()
    yield world
    await server.stop(None)


async def test_the_first_start_enrols_and_the_next_asks_nobody(world: World) -> None:
    config = await world.start()
    assert (config.name, config.device_id) == ("box-1", "device-1")
    assert await world.start() == config == load_config(world.data_dir)
    assert len(world.servicer.requests) == 1


async def test_the_token_is_not_needed_once_enrolled(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.start()
    monkeypatch.delenv("CREDENTIALS_DIRECTORY")
    world.settings.unlink()
    assert (await world.start()).name == "box-1"


async def test_without_a_name_the_host_gives_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "Press-3.plant.example")
    world.settings.write_text(f"server: 127.0.0.1:{world.port}\n")
    assert (await world.start()).name == "press-3"


async def test_a_server_that_is_away_is_waited_for_and_systemd_told(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = str(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    world.servicer.lost_replies = 3
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        assert (await world.start(sleep)).name == "box-1"
        heard = manager.recv(4096)
        assert b"READY=1" in heard, "a boot must not wait for a server"
        assert b"waiting to enrol" in manager.recv(4096)
    assert len(waits) == 3
    assert max(waits) <= 60


async def test_a_refusal_ends_it_since_only_a_person_can_mend_that(world: World) -> None:
    world.servicer.refusal = (grpc.StatusCode.PERMISSION_DENIED, "the join token was used")
    with pytest.raises(EnrollmentError, match="was used"):
        await asyncio.wait_for(world.start(), 20)
    assert len(world.servicer.requests) == 1


async def test_a_missing_token_is_told_with_where_to_put_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY")
    with pytest.raises(NotEnrolledError) as told:
        await world.start()
    assert "/etc/credstore/flotilla.join-token" in told.value.advice


async def test_gateway_and_memory_follow_the_file_the_identity_does_not(world: World) -> None:
    before = await world.start()
    world.write(gateway="127.0.0.1:9000", model_memory="64MiB", name="other", server="other:1")
    after = await world.start()
    assert (after.gateway, after.model_memory_bytes) == ("127.0.0.1:9000", 64 * MIB)
    assert (after.name, after.server, after.device_id) == (
        before.name,
        before.server,
        before.device_id,
    )
    assert load_config(world.data_dir) == after


async def test_a_power_model_is_taken_over_and_given_up_again(world: World) -> None:
    await world.start()
    world.write(power_model="{idle_watts: 2.7, full_watts: 8}")
    assert (await world.start()).power_model == PowerModel(idle_watts=2.7, full_watts=8)
    world.write()
    assert (await world.start()).power_model is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "server: nowhere\n",
        "server: a:1\nname: Not A Name\n",
        "server: a:1\nmodel_memory: much\n",
        "server: a:1\ntypo: 1\n",
        "server: a:1\nlabels: {'a b': c}\n",
        "server: a:1\npower_model: {idle_watts: 9, full_watts: 8}\n",
        "server: a:1\npower_model: {idle_watts: -1, full_watts: 8}\n",
        "[" * 20_000,
        "\x00\xff",
        "a: &a [*a, *a]\n",
    ],
)
async def test_wrong_settings_are_refused_but_never_stop_an_enrolled_box(
    world: World, text: str
) -> None:
    good = world.settings.read_text()
    world.settings.write_text(text)
    with pytest.raises(InvalidConfigError, match=r"agent\.yaml|size"):
        load_settings(world.settings)
    with pytest.raises(InvalidConfigError):
        await world.start()
    world.settings.write_text(good)
    config = await world.start()
    world.settings.write_text(text)
    assert await world.start() == config


def agent(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "agent", *arguments],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **environment},
        check=False,
        timeout=60,
    )


def test_the_unit_is_told_by_code_78_that_starting_again_would_not_help(tmp_path: Path) -> None:
    settings = tmp_path / "agent.yaml"
    settings.write_text("server: 127.0.0.1:1\n")
    arguments = ("run", "--data-dir", str(tmp_path / "box"), "--settings", str(settings))
    result = agent(*arguments, CREDENTIALS_DIRECTORY=str(tmp_path))
    assert result.returncode == os.EX_CONFIG
    assert "/etc/credstore/flotilla.join-token" in result.stderr
    assert "Traceback" not in result.stderr


def test_enroll_takes_the_token_from_systemds_credential(tmp_path: Path) -> None:
    (tmp_path / "join-token").write_text("rubbish")
    arguments = ("enroll", "--server", "127.0.0.1:1", "--name", "b", "--data-dir", str(tmp_path))
    assert "is not a join token" in agent(*arguments, CREDENTIALS_DIRECTORY=str(tmp_path)).stderr
    without = agent(*arguments, CREDENTIALS_DIRECTORY="")
    assert without.returncode == 2
    assert "--token" in without.stderr
