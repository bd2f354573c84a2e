"""Hostile model files at the entry points of operator and box, and fuzzed ones.

tests/runtimes/*/test_inspect.py covers each file and its reader,
tests/controlplane/cli/publishing/test_hostile_files.py covers `flotilla publish`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.update.machine import State
from artifact.device_facts import DeviceFacts
from artifact.manifest import File, Task, Variant
from controlplane.cli.command import cli
from controlplane.cli.exit_codes import ExitCode
from runtimes import registry
from runtimes.errors import UnsafeFileError
from runtimes.onnx import side_files, wire
from runtimes.onnx.side_files import read_config, read_tokenizer_config
from tests.security.fuzz_model_files import FORMATS, try_one
from tests.security.hostile_files import AT_EVERY_DOOR, RICH_GGUF, rich_onnx, write_onnx
from tests.security.model_mutations import config
from tests.security.signed_world import Box, SignedWorld

ONE = "acme/assistant@1"
AT_A_DOOR = [
    pytest.param(runtime, content, id=f"{runtime}: {name}")
    for runtime, files in AT_EVERY_DOOR.items()
    for name, content in files.items()
]


def flotilla(*arguments: Any) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def written(runtime: str, content: bytes, folder: Path) -> Path:
    if runtime == "onnx":
        return write_onnx(folder, content)
    path = folder / "model.gguf"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(("runtime", "content"), AT_A_DOOR)
def test_the_operator_is_told_and_nothing_is_built(
    runtime: str, content: bytes, tmp_path: Path
) -> None:
    path = written(runtime, content, tmp_path)
    built = ("--name", "acme/x", "--version", "1", "--variant", "x=copy", "--out", tmp_path / "out")
    for result in (
        flotilla("model", "inspect", path),
        flotilla("model", "build", path, *built),
    ):
        assert result.exit_code == ExitCode.REFUSED, result.output
        assert f"Error: {path.name}" in result.stderr
        assert "Traceback" not in result.output
        assert len(result.stderr.splitlines()) >= 2, "there is no advice"
    assert not (tmp_path / "out").exists()


@dataclass(frozen=True)
class Hostile:
    """A hostile file in place of the FakeModel of tests.agent.box."""

    runtime: str
    content: bytes
    task: Task


class HostileWorld(SignedWorld):
    """A world whose publisher signs any file of a real runtime."""

    def variant(self, name: str, model: Any) -> Variant:
        if not isinstance(model, Hostile):
            return super().variant(name, model)
        ending = registry.find(model.runtime).format
        path = self.root / f"model.{ending}"
        path.write_bytes(model.content)
        file: File = self.server.add(path)
        return Variant(
            name=name,
            runtime=model.runtime,
            format=ending,
            quantization="f16",
            files=(file,),
            memory_bytes=1 << 20,
            context_length=64,
        )

    def facts(self) -> DeviceFacts:
        facts = super().facts()
        facts.runtimes.update(dict.fromkeys(FORMATS, "1"))
        return facts


async def test_a_box_rejects_every_one_that_its_publisher_signed_and_serves_on(
    tmp_path: Path,
) -> None:
    world = HostileWorld(tmp_path)
    # Room for a whole worker process of each runtime.
    world.model_memory_bytes = 1 << 30
    async with Box(world) as box:
        assert (await box.do(world.publish("1"))).outcome == State.COMMITTED
        assert box.serving.deployment is not None
        worker = box.serving.deployment.workers["chat"]
        pid = worker.pid
        version = 1
        for runtime, files in AT_EVERY_DOOR.items():
            task = Task.TENSOR if runtime == "onnx" else Task.TEXT_GENERATION
            for name, content in files.items():
                version += 1
                hostile = Hostile(runtime, content, task)
                receipt = await box.do(world.publish(str(version), hostile, checks=()))
                assert receipt.outcome == State.REJECTED, name
                assert receipt.reason == "load_unsafe_file", (name, receipt.detail)
                assert box.serves == ONE, name
                assert box.pointers == ("", ONE, ""), name
                assert (worker.pid, worker.stats().restarts) == (pid, 0), name


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzzed")
    (folder / "there.bin").write_bytes(bytes(64))
    (folder / "link.bin").symlink_to("there.bin")
    return folder


@pytest.mark.parametrize("runtime", FORMATS)
@settings(max_examples=300, suppress_health_check=list(HealthCheck))
@given(chance=st.randoms(use_true_random=False))
def test_a_spoiled_file_is_refused_or_found_sound(
    runtime: str, chance: Random, workshop: Path
) -> None:
    try_one(runtime, chance, workshop)


@pytest.mark.parametrize("read", [read_config, read_tokenizer_config])
@settings(max_examples=200, suppress_health_check=list(HealthCheck))
@given(chance=st.randoms(use_true_random=False))
def test_a_spoiled_configuration_is_refused_or_read(
    read: Callable[[Path], object], chance: Random, workshop: Path
) -> None:
    path = workshop / "config.json"
    path.write_bytes(config(chance))
    try:
        assert read(path)
    except UnsafeFileError as error:
        assert error.advice  # noqa: PT017 - either outcome is right


def test_a_small_file_that_is_large_is_not_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(side_files, "MAX_CONFIG_BYTES", 1000)
    path = tmp_path / "config.json"
    path.write_bytes(b" " * 998 + b"{}")
    assert read_config(path).model_type == ""
    path.write_bytes(b" " * 999 + b"{}")
    with pytest.raises(UnsafeFileError, match="more than 1,000 bytes") as caught:
        read_config(path)
    assert caught.value.advice


@pytest.mark.parametrize(("runtime", "sound"), [("llama_cpp", RICH_GGUF), ("onnx", None)])
def test_what_is_spoiled_was_sound(runtime: str, sound: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / f"model.{registry.find(runtime).format}"
    path.write_bytes(sound or rich_onnx().SerializeToString())
    assert registry.find(runtime).inspector().inspect(path).tensors


def test_names_without_end_are_refused_before_they_take_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = rich_onnx()
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    monkeypatch.setattr(wire, "MAX_TEXT_BYTES", 1000)
    assert registry.find("onnx").inspector().inspect(path)
    for number in range(100):
        model.metadata_props.add(key=str(number), value="x" * 1000)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(UnsafeFileError, match="names and values have more than 1,000 bytes"):
        registry.find("onnx").inspector().inspect(path)
