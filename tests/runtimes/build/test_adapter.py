"""Building adapters: binding a LoRA to the files of a built base."""

import hashlib
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from artifact.manifest import Adapter
from runtimes.build.adapter import AdapterRequest, build_adapter
from runtimes.build.folder import read_model
from runtimes.errors import BuildError, UnsafeFileError


@pytest.fixture
def request_(demo_models: Path, built_models: Path, tmp_path: Path) -> AdapterRequest:
    return AdapterRequest(
        source=demo_models / "adapter.gguf",
        base=built_models / "base",
        label="polite",
        name="acme/polite",
        version="1.0.0",
        out=tmp_path / "polite",
    )


def test_an_adapter_is_bound_to_every_variant_that_it_fits(request_: AdapterRequest) -> None:
    adapter = build_adapter(request_)
    model = read_model(request_.base)
    assert model is not None
    gguf = {v.name: v.files[0].sha256 for v in model.variants if v.runtime == "llama_cpp"}
    assert set(adapter.bases) == set(gguf.values())
    written = (request_.out / "adapter.json").read_bytes()
    assert msgspec.json.decode(written, type=Adapter) == adapter
    data = (request_.out / adapter.file.name).read_bytes()
    assert (len(data), hashlib.sha256(data).hexdigest()) == (adapter.file.size, adapter.file.sha256)


def test_what_is_there_is_replaced_only_when_asked_for(request_: AdapterRequest) -> None:
    build_adapter(request_)
    with pytest.raises(BuildError, match="exists already"):
        build_adapter(request_)
    assert build_adapter(replace(request_, version="2", force=True)).version == "2"


def test_force_replaces_nothing_else(request_: AdapterRequest) -> None:
    request_.out.mkdir()
    (request_.out / "letter.txt").write_text("dear")
    with pytest.raises(BuildError, match="exists already"):
        build_adapter(replace(request_, force=True))
    assert (request_.out / "letter.txt").read_text() == "dear"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"source": "finetune.gguf"}, "fits no variant of acme/tiny-llama.*not a LoRA"),
        ({"source": "digits.onnx"}, "fits no variant.*ONNX models"),
        ({"base": "nowhere"}, "no readable model.json"),
        ({"label": "Not A Label"}, "adapter's description is invalid"),
        ({"source": "cut.gguf"}, "truncated"),
    ],
)
def test_what_cannot_be_one_is_refused_and_leaves_nothing(
    request_: AdapterRequest,
    demo_models: Path,
    tmp_path: Path,
    change: dict[str, str],
    reason: str,
) -> None:
    cut = (demo_models / "adapter.gguf").read_bytes()[:-5000]
    (tmp_path / "cut.gguf").write_bytes(cut)
    paths = {
        name: (tmp_path if value in {"cut.gguf", "nowhere"} else demo_models) / value
        for name, value in change.items()
        if name != "label"
    }
    with pytest.raises((BuildError, UnsafeFileError), match=reason):
        build_adapter(replace(request_, **(change | paths)))  # type: ignore[arg-type]
    assert not request_.out.exists()


def test_an_adapter_of_another_base_fits_nothing(
    request_: AdapterRequest, built_models: Path
) -> None:
    with pytest.raises(BuildError, match=r"fits no variant of acme/digits"):
        build_adapter(replace(request_, base=built_models / "digits"))
