"""Models and release files as they lie on a publisher's disk."""

import hashlib
from pathlib import Path
from typing import Any

import msgspec
import yaml

from artifact.chunks import encode_index
from artifact.manifest import File, ModelVersion, Task, Variant
from runtimes import registry
from runtimes.build.chunk_index import index_files
from runtimes.fake import FakeModel, write_model


def build_model(directory: Path, *, padding: int = 0, version: str = "1") -> Path:
    """A folder as `flotilla model build` leaves it: two variants of a fake model."""
    variants = []
    for name, share in (("full", 1), ("half", 2)):
        path = directory / name / "model.fake"
        path.parent.mkdir(parents=True)
        text = "".join(f"{version}{n:09d}" for n in range(padding // share // 10))
        write_model(path, FakeModel(quantization=name, padding=text))
        index = index_files(registry.find("fake"), {path.name: path})[path.name]
        file = File(
            name=path.name,
            size=index.size,
            sha256=index.sha256.hex(),
            index=hashlib.sha256(encode_index(index)).hexdigest(),
        )
        variants.append(
            Variant(
                name=name,
                runtime="fake",
                format="fake",
                quantization=name,
                files=(file,),
                memory_bytes=1 << 20,
                context_length=512,
            )
        )
    model = ModelVersion(
        name="acme/tiny", version=version, task=Task.TEXT_GENERATION, variants=tuple(variants)
    )
    (directory / "model.json").write_bytes(msgspec.json.encode(model))
    return directory


def write_release(directory: Path, **fields: Any) -> Path:
    release: dict[str, Any] = {
        "name": "acme/assistant",
        "version": "1",
        "components": [{"slot": "chat", "model": "tiny"}],
        "routes": [{"name": "assistant", "slot": "chat"}],
    }
    path = directory / "release.yaml"
    path.write_text(yaml.safe_dump(release | fields, sort_keys=False))
    return path
