"""GGUF models with weights that are NaN or infinite are refused at build."""

from pathlib import Path

import gguf
import numpy as np
import pytest

from runtimes.errors import BuildError
from runtimes.llama_cpp.finite import check_finite
from runtimes.llama_cpp.runtime import RUNTIME

TYPES = {
    np.float16: gguf.GGMLQuantizationType.F16,
    np.float32: gguf.GGMLQuantizationType.F32,
    np.uint16: gguf.GGMLQuantizationType.BF16,
}


def model(path: Path, weights: np.ndarray) -> Path:  # type: ignore[type-arg]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("fine.weight", np.ones((2, 32), np.float32))
    kind = TYPES[weights.dtype.type]
    writer.add_tensor("table.weight", weights, raw_shape=weights.shape, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_one_value_that_is_not_finite_refuses_the_model(
    dtype: type[np.float32], value: float, tmp_path: Path
) -> None:
    weights = np.ones((3, 32), dtype)
    check_finite(model(tmp_path / "sound.gguf", weights))
    weights[2, 31] = value
    path = model(tmp_path / "broken.gguf", weights)
    with pytest.raises(BuildError, match=r"1 of 96 values of 'table\.weight' are NaN or inf"):
        check_finite(path)
    with pytest.raises(BuildError):
        RUNTIME.write_servable(path, tmp_path / "copy.gguf")
    assert not (tmp_path / "copy.gguf").exists()


@pytest.mark.parametrize("bits", [0x7F80, 0xFF80, 0x7FC0])
def test_bfloat16_too(bits: int, tmp_path: Path) -> None:
    weights = np.full((3, 32), 0x3F80, np.uint16)
    check_finite(model(tmp_path / "sound.gguf", weights))
    weights[0, 0] = bits
    with pytest.raises(BuildError, match="1 of 96"):
        check_finite(model(tmp_path / "broken.gguf", weights))
