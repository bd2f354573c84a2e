"""release.yaml is refused with the line and the field, never half understood."""

import json
from pathlib import Path

import pytest

from artifact.manifest import (
    CompletionCheck,
    Embedding,
    EmbeddingCheck,
    Objective,
    PerplexityCheck,
    TensorCheck,
)
from controlplane.cli.app import RefusedError
from controlplane.cli.publishing.release_file import load_release_file
from controlplane.cli.yaml_file import parse_size

WHOLE = """\
name: acme/assistant
version: "1.0"
description: A small assistant
components:
  - slot: chat
    model: build/tiny
    max_memory: 64MiB
    variants: [q8, q4]
  - {slot: vision, model: /srv/digits}
routes:
  - {name: assistant, slot: chat}
probation:
  soak_seconds: 1
  checks:
    - {check: perplexity, name: reads, slot: chat, text_file: heldout.txt, maximum: 30}
    - {check: completion, name: talks, slot: chat, prompt: "The ", min_tokens: 8}
    - {check: tensor, name: sees, slot: vision, file: golden.json, argmax_only: true}
    - {check: embedding, name: means, slot: embed, file: expected.json, min_cosine: 0.95}
selection:
  {objective: quality, pins: {chat: q8}, max_memory: 2GiB, slots: {chat: {max_memory: 32MiB}}}
min_release: "0.9"
"""
TENSOR = {"name": "x", "datatype": "FP32", "shape": [1], "data": [0.5]}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "heldout.txt").write_text("Ships that pass in the night.")
    (tmp_path / "golden.json").write_text(json.dumps({"inputs": [TENSOR], "outputs": [TENSOR]}))
    expected = {"expected": [{"text": "Ships", "vector": [0.6, 0.8]}]}
    (tmp_path / "expected.json").write_text(json.dumps(expected))
    path = tmp_path / "release.yaml"
    path.write_text(WHOLE)
    return path


def refused(path: Path, text: str) -> RefusedError:
    path.write_text(text)
    with pytest.raises(RefusedError) as raised:
        load_release_file(path)
    assert raised.value.advice
    return raised.value


def test_every_field_arrives(path: Path) -> None:
    release = load_release_file(path)
    assert (release.name, release.version, release.min_release) == ("acme/assistant", "1.0", "0.9")
    chat, vision = release.components
    assert (chat.slot, chat.model, chat.variants) == ("chat", "build/tiny", ("q8", "q4"))
    assert (chat.max_memory_bytes, vision.max_memory_bytes) == (64 << 20, 0)
    assert release.selection.objective is Objective.QUALITY
    assert release.selection.pins == {"chat": "q8"}
    assert release.selection.max_memory_bytes == 2 << 30
    assert release.selection.of("chat").max_memory_bytes == 32 << 20
    reads, talks, sees, means = release.probation.checks
    assert isinstance(reads, PerplexityCheck)
    assert reads.text == "Ships that pass in the night."
    assert isinstance(talks, CompletionCheck)
    assert isinstance(sees, TensorCheck)
    assert sees.outputs[0].data == (0.5,)
    assert sees.argmax_only
    assert isinstance(means, EmbeddingCheck)
    assert means.expected == (Embedding(text="Ships", vector=(0.6, 0.8)),)


@pytest.mark.parametrize(
    ("old", "new", "line", "field"),
    [
        ('"1.0"', "1.0", 2, "version: Expected `str`, got `float`"),
        ("name: acme/assistant", "name: assistant", 1, "name: "),
        ("slot: chat\n    model", "slot: Chat\n    model", 5, "components[0].slot: "),
        ("64MiB", "64 parsecs", 7, "components[0].max_memory: "),
        ("{slot: vision, model: /srv/digits}", "{slot: vision}", 9, "components[1]: "),
        ("soak_seconds: 1", "soak_seconds: -1", 13, "probation.soak_seconds: "),
        ("maximum: 30", "maximum: 1", 15, "probation.checks[0].maximum: "),
        ("maximum: 30", "maximum: 30, colour: red", 15, "probation.checks[0]: "),
        ("check: completion", "check: smell", 16, "probation.checks[1].check: "),
        ("objective: quality", "objective: beauty", 20, "selection.objective: "),
        ("2GiB", "much", 20, "selection.max_memory: 'much' is not a size"),
        ("32MiB", "-1", 20, "selection.slots.chat.max_memory: "),
        ('min_release: "0.9"', "minrelease: 1", 1, "minrelease"),
    ],
)
def test_a_mistake_is_shown_with_its_line_and_field(
    path: Path, old: str, new: str, line: int, field: str
) -> None:
    assert WHOLE.count(old) == 1
    message = refused(path, WHOLE.replace(old, new)).message
    assert f"{path}, line {line}: " in message
    assert field in message


def test_a_version_without_quotes_gets_the_advice_to_add_them(path: Path) -> None:
    assert "quotes" in refused(path, WHOLE.replace('"1.0"', "1.0")).advice


def test_a_repeated_key_is_refused(path: Path) -> None:
    message = refused(path, WHOLE + "version: '2'\n").message
    assert "line 22: the key 'version' occurs twice" in message


@pytest.mark.parametrize("text", ["", "- a\n", "a: [", "just words", "components: {}\n", "!!x 1"])
def test_what_is_no_release_file_is_refused(path: Path, text: str) -> None:
    refused(path, text)


def test_a_missing_file_is_refused_by_its_path(path: Path) -> None:
    (path.parent / "heldout.txt").unlink()
    assert "heldout.txt" in refused(path, WHOLE).message
    path.unlink()
    with pytest.raises(RefusedError, match=r"release\.yaml: No such file"):
        load_release_file(path)


def test_tensors_that_are_no_json_are_refused(path: Path) -> None:
    (path.parent / "golden.json").write_text("[1, 2")
    assert "golden.json is not JSON" in refused(path, WHOLE).message


def test_an_endless_file_is_refused(path: Path) -> None:
    assert "more than" in refused(path, "#" * (5 << 20)).message


@pytest.mark.parametrize(
    ("value", "size"),
    [(0, 0), (1024, 1024), ("1024", 1024), ("1KiB", 1024), ("2 gib", 2 << 30), ("7B", 7)],
)
def test_sizes_are_binary(value: int | str, size: int) -> None:
    assert parse_size(value) == size


def test_the_documented_release_file_is_valid(path: Path) -> None:
    page = (Path(__file__).parents[4] / "docs" / "release-file.md").read_text()
    path.write_text(page.partition("```yaml\n")[2].partition("```")[0])
    release = load_release_file(path)
    assert len(release.probation.checks) == 4
    assert release.min_release == release.version == "1.0.0"
