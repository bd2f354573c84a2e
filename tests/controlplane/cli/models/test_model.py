"""`flotilla model build` and `inspect`, as an operator types them."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from controlplane.cli.command import cli
from controlplane.cli.exit_codes import ExitCode
from runtimes.base import Scheme
from runtimes.fake import FakeModel, write_model
from runtimes.llama_cpp.quantize import LlamaCppQuantizer


def flotilla(*arguments: Any) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def build(out: Path, source: Path, *more: Any) -> Result:
    named = ("--name", "acme/tiny", "--version", "1", "--out", out)
    return flotilla("model", "build", source, *named, *more)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_model(tmp_path / "tiny.fake", FakeModel())


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("Some words to measure on.")
    return path


def test_a_build_shows_progress_and_ends_with_a_table(
    tmp_path: Path, source: Path, text: Path
) -> None:
    variants = ("--variant", "big=fake:full", "--variant", "half")
    result = build(tmp_path / "out", source, *variants, "--eval", text)
    assert result.exit_code == 0, result.output
    assert "big: quantizing to full" in result.stderr
    assert "half: measuring" in result.stderr
    header, big, half = result.stdout.splitlines()
    assert header.split() == ["VARIANT", "RUNTIME", "QUANTIZATION", "SIZE", "MEMORY", "QUALITY"]
    assert big.split()[:3] == ["big", "fake", "full"]
    assert half.endswith("perplexity 8.8")


def test_json_is_the_manifest_and_where_it_lies(tmp_path: Path, source: Path) -> None:
    lineage = ("--lineage", "finetune:acme/tiny@0.9")
    result = build(tmp_path / "out", source, "--variant", "full", *lineage, "--json")
    printed = json.loads(result.stdout)
    assert printed["directory"] == str(tmp_path / "out")
    assert printed["lineage"] == {"relation": "finetune", "name": "acme/tiny", "version": "0.9"}
    written = json.loads((tmp_path / "out" / "model.json").read_text())
    assert written.items() <= printed.items()


def test_a_refusal_says_what_to_do_and_leaves_nothing(tmp_path: Path, source: Path) -> None:
    result = build(tmp_path / "out", source, "--variant", "q4_k_m")
    assert result.exit_code == 1
    assert "Error: variant 'q4_k_m'" in result.stderr
    assert "fake: full, half, quarter" in result.stderr
    assert result.stdout == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("--variant", "a=b=c"),
        ("--variant", "full", "--lineage", "acme/base@1"),
        ("--variant", "full", "--lineage", "cousin:acme/base@1"),
        ("--variant", "full", "--compare"),
        ("--variant", "full", "--task", "telepathy"),
        ("--variant", "full", "--context-length", "0"),
        ("--variant", "full", "--eval", "/nowhere"),
    ],
)
def test_misuse_exits_with_two(tmp_path: Path, source: Path, arguments: tuple[str, ...]) -> None:
    assert build(tmp_path / "out", source, *arguments).exit_code == 2


def test_inspect_says_what_a_file_is(demo_models: Path) -> None:
    result = flotilla("model", "inspect", demo_models / "base.gguf")
    assert result.exit_code == 0, result.output
    shown = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    assert shown["architecture"] == "llama"
    assert shown["quantization"] == "f16"
    assert shown["size"] == "2.5 MiB"


def test_inspect_prints_tensors_as_json(demo_models: Path) -> None:
    result = flotilla("--json", "model", "inspect", demo_models / "base-onnx")
    printed = json.loads(result.stdout)
    assert printed["format"] == "onnx"
    assert printed["tensor_count"] == len(printed["tensors"])
    assert {"name", "type", "shape", "offset", "size"} <= set(printed["tensors"][0])


def test_inspect_refuses_a_file_that_is_not_what_its_name_says(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"\x80\x04" + bytes(60))
    result = flotilla("model", "inspect", path)
    assert result.exit_code == ExitCode.REFUSED
    assert "a Python pickle" in result.stderr
    unknown = tmp_path / "model.bin"
    unknown.write_bytes(b"x")
    assert flotilla("model", "inspect", unknown).exit_code == ExitCode.REFUSED


def test_a_model_as_published_is_the_default_and_warnings_are_shown(
    tmp_path: Path, demo_models: Path
) -> None:
    q8 = tmp_path / "q8.gguf"
    LlamaCppQuantizer().quantize(demo_models / "base.gguf", Scheme("q8_0"), q8, lambda *_: None)
    built = build(tmp_path / "out", q8)
    assert built.exit_code == 0, built.output
    assert "source" in built.stdout
    again = build(tmp_path / "again", q8, "--variant", "q4_0")
    assert "quantized again, from q8_0 to q4_0" in again.stderr
    shown = flotilla("model", "inspect", tmp_path / "again")
    assert "quantized again" in shown.stdout
    assert "as published" in flotilla("model", "inspect", tmp_path / "out").stdout


def test_a_folder_that_cannot_be_made_is_reported_with_its_path(source: Path) -> None:
    result = build(Path("/proc/zz"), source)
    assert result.exit_code == ExitCode.FAILED
    assert result.stderr.splitlines()[-2].startswith("Error: /proc/")
    assert "Traceback" not in result.output
