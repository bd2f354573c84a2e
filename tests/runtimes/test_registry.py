import subprocess
import sys

import pytest

from runtimes import registry
from runtimes.errors import UnsupportedModelError


def test_every_runtime_of_the_distribution_is_found() -> None:
    assert registry.names() == ("fake", "llama_cpp", "onnx")
    for name in registry.names():
        runtime = registry.find(name)
        assert runtime.name == name
        assert registry.find_by_format(runtime.format) is runtime


def test_a_box_offers_the_fake_runtime_only_when_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLOTILLA_FAKE_RUNTIME", raising=False)
    assert set(registry.available()) == {"llama_cpp", "onnx"}
    monkeypatch.setenv("FLOTILLA_FAKE_RUNTIME", "1")
    assert set(registry.available()) == {"fake", "llama_cpp", "onnx"}


def test_errors_name_the_fake_runtime_only_when_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    def advice() -> list[str]:
        with pytest.raises(UnsupportedModelError) as runtime:
            registry.find("vllm")
        with pytest.raises(UnsupportedModelError) as ending:
            registry.find_by_format("vllm")
        return [runtime.value.advice, ending.value.advice]

    monkeypatch.delenv("FLOTILLA_FAKE_RUNTIME", raising=False)
    assert advice() == ["Use one of: llama_cpp, onnx.", "Use one of: .gguf, .onnx."]
    monkeypatch.setenv("FLOTILLA_FAKE_RUNTIME", "1")
    assert advice() == ["Use one of: fake, llama_cpp, onnx.", "Use one of: .fake, .gguf, .onnx."]


@pytest.mark.parametrize("name", ["", "vllm", "../onnx", "x" * 1000])
def test_an_unknown_runtime_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        registry.find(name)
    assert "llama_cpp" in caught.value.advice
    with pytest.raises(UnsupportedModelError):
        registry.find_by_format(name)


def test_asking_what_a_box_can_load_loads_no_engine() -> None:
    code = (
        "import sys; from runtimes import registry; registry.available();"
        "[registry.find(n).inspector for n in registry.names()];"
        "loaded = {'numpy', 'llama_cpp', 'onnxruntime', 'onnx', 'tokenizers'} & set(sys.modules);"
        "sys.exit(str(loaded) if loaded else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
