"""Build refuses a model whose chat template fails, on both runtimes."""

import json
import shutil
from pathlib import Path

import pytest
from gguf_files import rewrite

from runtimes.build import BuildRequest, build
from runtimes.errors import VariantFailedError

LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(("template", "reason"), [("{{ x.y.z }}", "undefined"), (LOOPS, "1 s")])
@pytest.mark.parametrize("runtime", ["llama_cpp", "onnx"])
def test_a_model_whose_every_chat_would_fail_is_not_built(
    runtime: str, template: str, reason: str, demo_models: Path, tmp_path: Path
) -> None:
    if runtime == "llama_cpp":
        changes: dict[str, str | bool | list[object] | None] = {"tokenizer.chat_template": template}
        source = rewrite(demo_models / "base.gguf", tmp_path / "model.gguf", changes)
    else:
        source = tmp_path / "onnx"
        shutil.copytree(demo_models / "base-onnx", source)
        config = json.loads((source / "tokenizer_config.json").read_text(encoding="utf-8"))
        (source / "tokenizer_config.json").write_text(
            json.dumps(config | {"chat_template": template}), encoding="utf-8"
        )
    request = BuildRequest((source,), "acme/m", "1", (), tmp_path / "out")
    with pytest.raises(VariantFailedError, match=f"chat template fails.*{reason}") as caught:
        build(request, lambda *_: None)
    assert "every chat" in caught.value.advice
