"""The data directory: files are written completely and privately, and validated on reading."""

import os
import stat
from pathlib import Path

import pytest

from agent.config import AgentConfig, DataDir, load_config, parse_size, save_config
from agent.errors import InvalidConfigError, NotEnrolledError
from agent.storage.atomic_file import write_file

CONFIG = AgentConfig(
    device_id="d1",
    name="box-1",
    labels={"site": "lab"},
    server="fleet.example:8443",
    device_endpoint="[::1]:8444",
    model_memory_bytes=5 << 20,
)


def test_a_configuration_is_read_back_as_it_was_saved(tmp_path: Path) -> None:
    save_config(DataDir(tmp_path), CONFIG)
    assert load_config(DataDir(tmp_path)) == CONFIG
    assert stat.S_IMODE((tmp_path / "config.json").stat().st_mode) == 0o600


def test_an_empty_directory_is_not_enrolled(tmp_path: Path) -> None:
    with pytest.raises(NotEnrolledError) as refused:
        load_config(DataDir(tmp_path))
    assert "flotilla-agent enroll" in refused.value.advice


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{}",
        b'{"device_id": "d1", "name": "Box 1"}',
        b"\xff",
        b"[" * 100_000,
    ],
)
def test_a_damaged_configuration_is_named(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(InvalidConfigError, match=r"config\.json"):
        load_config(DataDir(tmp_path))


@pytest.mark.parametrize(
    ("text", "size"), [("0", 0), ("1024", 1024), ("5MiB", 5 << 20), (" 2GiB ", 2 << 30)]
)
def test_sizes_are_read_in_binary_units(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "5 MB", "5MB", "-1", "1.5GiB", "9" * 20])
def test_anything_else_is_no_size(text: str) -> None:
    with pytest.raises(InvalidConfigError):
        parse_size(text)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "file"
    write_file(target, b"old")
    with pytest.raises(TypeError):
        write_file(target, "text")  # type: ignore[arg-type]
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_a_power_cut_left_of_a_write_is_gone_after_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "file"

    def die(*_: object) -> None:
        os._exit(0)

    child = os.fork()
    if child == 0:
        monkeypatch.setattr(Path, "replace", die)
        write_file(target, b"first")
    os.waitpid(child, 0)
    assert [path.name for path in tmp_path.iterdir()] != []
    write_file(target, b"second")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
