"""What several folders of tests share."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from artifact.manifest import Lineage, Relation
from runtimes.build import BuildRequest, VariantRequest, build

# How long an example takes is the machine's business.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")

SCRIPTS = Path(__file__).parents[1] / "scripts"
LANGUAGE_VARIANTS = (
    VariantRequest("gguf-f16", "f16", "llama_cpp"),
    VariantRequest("gguf-q8", "q8_0", "llama_cpp"),
    VariantRequest("gguf-q4", "q4_k_m", "llama_cpp"),
    VariantRequest("onnx-fp32", "fp32", "onnx"),
    VariantRequest("onnx-int8", "int8", "onnx"),
    VariantRequest("onnx-int4", "int4", "onnx"),
)


def require(name: str, *, missing: str | None) -> None:
    """Skip when something that a test needs is ``missing`` (the reason), and say so.

    With FLOTILLA_REQUIRE=name,other the skip is a failure: whoever runs the tests has promised it.
    """
    if missing is None:
        return
    if name in os.environ.get("FLOTILLA_REQUIRE", "").split(","):
        pytest.fail(f"{name} is required here, but {missing}", pytrace=False)
    pytest.skip(f"{missing}")


@pytest.fixture(name="require", scope="session")
def _require() -> object:
    return require


@pytest.fixture(scope="session")
def demo_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that scripts/build_demo_models makes; 4 s of processor time.

    {base,finetune,broken}.gguf, {base,finetune,broken}-onnx/, embed-onnx/, digits.onnx,
    digits-eval.npz, digits-golden.json.
    """
    folder = tmp_path_factory.mktemp("demo-models")
    script = SCRIPTS / "build_demo_models"
    subprocess.run([sys.executable, "-W", "error", script, folder], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="session")
def built_models(demo_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `flotilla model build` makes of them: base/, finetune/ and digits/; 8 s on busy cores.

    Measured on the first 4,000 characters of the held-out text, and on the held-out digits.
    """
    folder = tmp_path_factory.mktemp("built-models")
    text = folder / "heldout-4000.txt"
    heldout = (SCRIPTS / "demo_models" / "heldout.txt").read_text(encoding="utf-8")
    text.write_text(heldout[:4000], encoding="utf-8")
    lineage = Lineage(relation=Relation.FINETUNE, name="acme/tiny-llama", version="1.0.0")
    for name, version, from_base in (("base", "1.0.0", None), ("finetune", "2.0.0", lineage)):
        request = BuildRequest(
            sources=(demo_models / f"{name}.gguf", demo_models / f"{name}-onnx"),
            name="acme/tiny-llama",
            version=version,
            variants=LANGUAGE_VARIANTS,
            out=folder / name,
            evaluation=text,
            lineage=from_base,
        )
        build(request, lambda *_: None)
    request = BuildRequest(
        sources=(demo_models / "digits.onnx",),
        name="acme/digits",
        version="1.0.0",
        variants=(VariantRequest("fp32", "fp32"), VariantRequest("int8", "int8")),
        out=folder / "digits",
        evaluation=demo_models / "digits-eval.npz",
    )
    build(request, lambda *_: None)
    return folder
