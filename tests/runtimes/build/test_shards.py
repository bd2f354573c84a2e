"""Building from a model that is published in several GGUF files."""

import shutil
from pathlib import Path

import gguf
import pytest

from artifact.manifest import ModelVersion
from runtimes.base import Scheme
from runtimes.build import BuildRequest, VariantRequest, build
from runtimes.errors import BuildError
from runtimes.llama_cpp.inspect import GgufInspector

SHARDS = 4


@pytest.fixture
def shards(demo_models: Path, tmp_path: Path) -> Path:
    """Split the demo model as ``llama-gguf-split`` does; return the folder."""
    folder = tmp_path / "shards"
    folder.mkdir()
    reader = gguf.GGUFReader(demo_models / "base.gguf")
    per_file = -(-len(reader.tensors) // SHARDS)
    for number in range(SHARDS):
        writer = gguf.GGUFWriter(folder / name(number), "llama")
        if number == 0:
            for key, field in reader.fields.items():
                if not key.startswith("GGUF.") and key != "general.architecture":
                    element = field.types[-1] if len(field.types) > 1 else None
                    writer.add_key_value(key, field.contents(), field.types[0], element)
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", SHARDS)
        writer.add_int32("split.tensors.count", len(reader.tensors))
        for tensor in reader.tensors[number * per_file : (number + 1) * per_file]:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return folder


def name(number: int) -> str:
    return f"tiny-{number + 1:05}-of-{SHARDS:05}.gguf"


def built(source: Path, out: Path, *schemes: str) -> ModelVersion:
    variants = tuple(VariantRequest(scheme, Scheme(scheme)) for scheme in schemes)
    return build(BuildRequest((source,), "acme/m", "1", variants, out), lambda *_: None).model


def test_all_files_are_built_from_any_of_them(
    shards: Path, demo_models: Path, tmp_path: Path
) -> None:
    whole = GgufInspector().inspect(demo_models / "base.gguf")
    for number, source in enumerate((shards, shards / name(0), shards / name(2))):
        out = tmp_path / f"out-{number}"
        (variant,) = built(source, out, "f16").variants
        made = GgufInspector().inspect(out / "f16" / "model.gguf")
        assert variant.parameters == whole.parameters
        assert {(t.name, t.shape, t.type) for t in made.tensors} == {
            (t.name, t.shape, t.type) for t in whole.tensors
        }
        assert "split.count" not in made.metadata


def test_as_published_and_quantized(shards: Path, demo_models: Path, tmp_path: Path) -> None:
    whole = GgufInspector().inspect(demo_models / "base.gguf")
    variants = built(shards, tmp_path / "out", "source", "q8_0").variants
    assert [variant.parameters for variant in variants] == [whole.parameters] * 2


def test_missing_and_mixed_files_are_refused(shards: Path, tmp_path: Path) -> None:
    (shards / name(2)).rename(tmp_path / "aside.gguf")
    with pytest.raises(BuildError, match=f"1 of the model's 4 files are missing: {name(2)}"):
        built(shards, tmp_path / "out", "f16")
    shutil.copyfile(shards / name(1), shards / name(2))
    with pytest.raises(BuildError, match="is number 2 of 4"):
        built(shards, tmp_path / "out", "f16")
    with pytest.raises(BuildError, match="name does not end in"):
        built((shards / name(1)).rename(shards / "part.gguf"), tmp_path / "out", "f16")
    assert not (tmp_path / "out").exists()
