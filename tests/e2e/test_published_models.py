"""Downloaded models, built as they were published, rolled out to a device and served."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from demo_fleet.processes import Box, ControlPlane, wait_until
from demo_fleet.traffic import call

from runtimes import registry
from runtimes.base import Scheme

RELEASE = """\
name: acme/downloaded
version: 1.0.0
components:
  - {slot: gguf, model: gguf}
  - {slot: onnx, model: onnx}
routes:
  - {name: gguf, slot: gguf}
  - {name: onnx, slot: onnx}
probation: {benchmark_tokens: 8, benchmark_repetitions: 2}
"""
PROMPT = "The import statement combines two operations; it searches"


def quantized(source: Path, scheme: str, destination: Path) -> None:
    runtime = registry.find_by_format(source.suffix[1:])
    runtime.quantizer().quantize(source, Scheme(scheme), destination, lambda *_: None)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    plane = ControlPlane(tmp_path_factory.mktemp("server"))
    try:
        plane.start()
        yield plane
    finally:
        plane.stop()


@pytest.mark.e2e
def test_a_q4_gguf_and_an_fp16_onnx_are_served_as_published(
    server: ControlPlane, demo_models: Path, tmp_path: Path
) -> None:
    downloads = tmp_path / "downloads"
    shutil.copytree(demo_models / "base-onnx", downloads / "fp16")
    quantized(demo_models / "base.gguf", "q4_k_m", downloads / "tiny.Q4_K_M.gguf")
    quantized(demo_models / "base-onnx" / "model.onnx", "fp16", downloads / "fp16" / "model.onnx")
    models: dict[str, dict[str, Any]] = {}
    for name, source in (("gguf", "tiny.Q4_K_M.gguf"), ("onnx", "fp16")):
        models[name] = server.cli(
            *("model", "build", str(downloads / source), "--out", str(tmp_path / name)),
            *("--name", f"acme/tiny-{name}", "--version", "1"),
        )
    quantizations = {name: built["variants"][0]["quantization"] for name, built in models.items()}
    assert quantizations == {"gguf": "q4_k_m", "onnx": "fp16"}

    keys = str(tmp_path / "keys")
    server.cli("keys", "init", "--publisher", "acme", "--dir", keys)
    (tmp_path / "release.yaml").write_text(RELEASE)
    server.cli("publish", str(tmp_path / "release.yaml"), "--keys", keys)
    box = Box(tmp_path, "box-1", "512MiB", {"site": "lab"})
    box.enroll(server.public, server.cli("token", "create")["secret"])
    try:
        box.start()
        wait_until("the box being connected", lambda: _connected(server))
        rollout = server.cli(
            *("rollout", "start", "acme/downloaded@1.0.0", "--to", "site=lab", "--wait")
        )
        assert rollout["state"] == "succeeded", json.dumps(rollout)[:2000]
        texts = set()
        for route in ("gguf", "onnx"):
            body = {"model": route, "prompt": PROMPT, "max_tokens": 8}
            status, answer = call(box.gateway, "/v1/completions", body)
            assert status == 200, answer
            texts.add(answer["choices"][0]["text"])
        assert all(text.strip() for text in texts)
        (device,) = server.cli("device", "list")["devices"]
        assert device["variants"] == {"gguf": "source", "onnx": "source"}
    finally:
        box.stop()


def _connected(server: ControlPlane) -> bool:
    devices = server.cli("device", "list")["devices"]
    return len(devices) == 1 and bool(devices[0]["connected"])
