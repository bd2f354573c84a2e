"""Hostile and broken GGUF files: every refusal is quick and gives the reason."""

import time
from pathlib import Path

import gguf
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from artifact.manifest import Task
from runtimes.errors import UnsafeFileError
from runtimes.llama_cpp.gguf import TENSOR_TYPES
from runtimes.llama_cpp.inspect import GgufInspector
from tests.security.hostile_files import GGUF, RICH_GGUF, SOUND_GGUF

PROMPT_SECONDS = 5.0


@pytest.mark.parametrize("content", GGUF.values(), ids=GGUF)
def test_a_hostile_file_is_refused_quickly_with_advice(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    started = time.perf_counter()
    with pytest.raises(UnsafeFileError, match=r"model\.gguf") as caught:
        GgufInspector().inspect(path)
    assert time.perf_counter() - started < PROMPT_SECONDS
    assert caught.value.advice


def test_the_file_that_hangs_has_forty_nine_bytes() -> None:
    assert len(GGUF["49 bytes that hang"]) == 49


def test_the_file_that_all_of_these_are_spoiled_from_is_sound(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(SOUND_GGUF)
    (found,) = GgufInspector().inspect(path).tensors
    assert (found.type, found.shape, found.size) == ("f32", (32,), 128)
    assert found.offset + found.size == len(SOUND_GGUF)


@settings(
    max_examples=300,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(noise=st.binary(max_size=24), at=st.integers(0, len(RICH_GGUF)))
def test_any_bytes_are_read_or_refused_but_never_worse(
    noise: bytes, at: int, tmp_path: Path
) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(RICH_GGUF[:at] + noise + RICH_GGUF[at + len(noise) :])
    try:
        found = GgufInspector().inspect(path)
    except UnsafeFileError:
        return
    assert all(t.offset + t.size <= len(RICH_GGUF) for t in found.tensors)


def test_what_a_real_model_is(demo_models: Path) -> None:
    found = GgufInspector().inspect(demo_models / "base.gguf")
    assert found.task is Task.TEXT_GENERATION
    assert (found.architecture, found.quantization, found.context_length) == ("llama", "f16", 512)
    assert found.parameters == 1_312_000
    assert found.metadata["tokenizer.ggml.tokens#"] == "512"


def test_tensors_lie_where_the_gguf_package_says(built_models: Path) -> None:
    for variant in ("gguf-f16", "gguf-q8", "gguf-q4"):
        path = built_models / "base" / variant / "model.gguf"
        theirs = {
            t.name: (
                t.tensor_type.name.lower(),
                tuple(t.shape.tolist()[::-1]),
                t.data_offset,
                t.n_bytes,
            )
            for t in gguf.GGUFReader(path).tensors
        }
        ours = {
            t.name: (t.type, t.shape, t.offset, t.size)
            for t in GgufInspector().inspect(path).tensors
        }
        assert ours == theirs


def test_tensor_types_are_those_of_the_gguf_package() -> None:
    theirs = {int(kind): sizes for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    assert {number: (t.block_values, t.block_bytes) for number, t in TENSOR_TYPES.items()} == theirs
    for number, kind in TENSOR_TYPES.items():
        assert gguf.GGMLQuantizationType(number).name.lower() == kind.name
