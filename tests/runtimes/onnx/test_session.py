"""Side effects of loading ONNX Runtime."""

import os
import subprocess
import sys
from pathlib import Path

import onnx


def test_the_library_reports_nothing_and_leaves_no_device_name(
    demo_models: Path, tmp_path: Path
) -> None:
    load = (
        "import sys; from pathlib import Path\n"
        "from artifact.manifest import Task; from runtimes import registry\n"
        "from runtimes.base import LoadSpec\n"
        "spec = LoadSpec({'model.onnx': Path(sys.argv[1])}, Task.CLASSIFICATION)\n"
        "registry.find('onnx').load(spec).close()"
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}
    environment = {**kept, "HOME": str(tmp_path), "ORT_DISABLE_TELEMETRY": "0"}
    subprocess.run(
        [sys.executable, "-c", load, demo_models / "digits.onnx"], check=True, env=environment
    )
    assert not list(tmp_path.rglob("*onnxruntime*"))


def test_weights_beside_the_model_are_there_until_it_is_loaded(
    demo_models: Path, tmp_path: Path
) -> None:
    """Load in a separate process, where a later read of the mapped files would be fatal."""
    beside = tmp_path / "model.onnx"
    onnx.save(
        onnx.load(demo_models / "digits.onnx"),
        beside,
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    infer = (
        "import sys; from pathlib import Path\n"
        "from artifact.manifest import Task; from runtimes import registry\n"
        "from runtimes.base import LoadSpec, TensorValue\n"
        "files = {Path(path).name: Path(path) for path in sys.argv[1:]}\n"
        "engine = registry.find('onnx').load(LoadSpec(files, Task.CLASSIFICATION))\n"
        "((wanted, *_), _) = engine.tensors()\n"
        "row = TensorValue(wanted.name, 'FP32', (1, 64), bytes(range(256)))\n"
        "print(engine.infer([row])[0].data.hex())"
    )
    said = [
        subprocess.run(
            [sys.executable, "-c", infer, *files], check=True, capture_output=True
        ).stdout
        for files in ([demo_models / "digits.onnx"], [beside, tmp_path / "weights.bin"])
    ]
    assert said[0] == said[1] != b""
