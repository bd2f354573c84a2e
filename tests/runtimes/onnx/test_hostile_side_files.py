"""Side files that crash or confuse a careless reader: refused at build, without a traceback."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from runtimes.build import BuildRequest, VariantRequest, build
from runtimes.errors import RuntimeFault


def panicking(folder: Path) -> None:
    """Write a merge that is shorter than the subword prefix: the tokenizer library panics."""
    document = json.loads((folder / "tokenizer.json").read_text())
    document["model"] = {
        "type": "BPE",
        "vocab": {"a": 0, "ü": 1, "aü": 2},
        "merges": [["a", "ü"]],
        "continuing_subword_prefix": "../x",
    }
    (folder / "tokenizer.json").write_text(json.dumps(document))


SPOILED: dict[str, Callable[[Path], object]] = {
    "a tokenizer that makes its library panic": panicking,
    "a tokenizer that is no JSON": lambda folder: (folder / "tokenizer.json").write_text("{"),
    "a tokenizer that is missing": lambda folder: (folder / "tokenizer.json").unlink(),
    "a configuration of another type": lambda folder: (folder / "config.json").write_text("[]"),
    "a deep configuration": lambda folder: (folder / "config.json").write_text("[" * 100_000),
    "a pooling that is no object": lambda folder: (folder / "pooling.json").write_text("[]"),
    "modules that are no list": lambda folder: (folder / "modules.json").write_text("{}"),
}


@pytest.mark.parametrize("kind", SPOILED)
@pytest.mark.parametrize("scheme", ["source", "int8"])
def test_a_spoiled_side_file_is_refused_at_build(
    kind: str, scheme: str, demo_models: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(demo_models / "embed-onnx", tmp_path / "in")
    SPOILED[kind](folder)
    request = BuildRequest(
        sources=(folder,),
        name="acme/e",
        version="1",
        variants=(VariantRequest("v", scheme),),
        out=tmp_path / "out",
    )
    with pytest.raises(RuntimeFault) as caught:
        build(request, lambda *_: None)
    assert caught.value.advice
    assert not (tmp_path / "out").exists()
    assert "Traceback" not in str(caught.value)
