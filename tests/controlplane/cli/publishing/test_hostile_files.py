"""`flotilla publish` signs no hostile file, however well its folder is made."""

import hashlib
from pathlib import Path

import msgspec
import pytest
from built_models import write_release
from model_service import FakeModelService
from operator_cli import Operator, refusal

from artifact.chunks import encode_index, index_file
from artifact.manifest import File, ModelVersion, Task, Variant
from runtimes import registry
from tests.security.hostile_files import AT_EVERY_DOOR


def folder_with(runtime: str, content: bytes, directory: Path) -> None:
    """As `flotilla model build` would leave it, had it let the file in."""
    ending = registry.find(runtime).format
    path = directory / "full" / f"model.{ending}"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    index = index_file(path, [])
    file = File(
        name=path.name,
        size=index.size,
        sha256=index.sha256.hex(),
        index=hashlib.sha256(encode_index(index)).hexdigest(),
    )
    variant = Variant(
        name="full",
        runtime=runtime,
        format=ending,
        quantization="f16",
        files=(file,),
        memory_bytes=1 << 20,
        context_length=64,
    )
    model = ModelVersion(
        name="acme/tiny", version="1", task=Task.TEXT_GENERATION, variants=(variant,)
    )
    (directory / "model.json").write_bytes(msgspec.json.encode(model))


@pytest.mark.parametrize(
    ("runtime", "content"),
    [
        pytest.param(runtime, content, id=f"{runtime}: {name}")
        for runtime, files in AT_EVERY_DOOR.items()
        for name, content in files.items()
    ],
)
def test_a_hostile_file_is_neither_signed_nor_sent(
    founded: FakeModelService, operator: Operator, runtime: str, content: bytes, tmp_path: Path
) -> None:
    folder_with(runtime, content, tmp_path / "tiny")
    before = dict(founded.metadata)
    said = refusal(operator.publish(write_release(tmp_path)))
    assert f"model.{registry.find(runtime).format} " in said
    assert len(said.splitlines()) >= 2
    assert founded.chunks == {}
    assert founded.metadata == before
