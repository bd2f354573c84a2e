"""The demo's models and releases, built by the same commands that an operator uses."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from demo_fleet.processes import FleetError, command

SCRIPTS = Path(__file__).parents[1]
PUBLISHER = "acme"
# The best quality is ONNX Runtime's: its process needs 20 MiB more than llama.cpp's, so that a
# memory budget can keep it off a box. The files themselves differ too little for that.
LANGUAGE_VARIANTS = (
    "gguf-q4=llama_cpp:q4_k_m",
    "gguf-q4-0=llama_cpp:q4_0",
    "onnx-fp32=onnx:fp32",
    "onnx-int4=onnx:int4",
)
DIGITS_VARIANTS = ("fp32=onnx:fp32", "int8=onnx:int8")
# Far below chance (512), and above the perplexity of every sound variant of the demo model.
MAX_PERPLEXITY = 30.0
PROMPT = "The import statement "


@dataclass(frozen=True)
class BuiltModels:
    """Directories written by `flotilla model build`."""

    base: Path
    finetune: Path
    broken: Path
    digits: Path
    golden: Path
    heldout: Path


def run(*arguments: str) -> None:
    result = subprocess.run(
        arguments, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if result.returncode != 0:
        raise FleetError(f"{' '.join(arguments[:4])} failed:\n{result.stderr[-3000:]}")


def build_model(
    sources: list[Path], name: str, version: str, out: Path, variants: tuple[str, ...], *more: str
) -> Path:
    chosen = [part for variant in variants for part in ("--variant", variant)]
    run(
        *(command("flotilla"), "model", "build", *map(str, sources)),
        *("--name", name, "--version", version, "--out", str(out), *chosen, *more),
    )
    return out


def build_models(directory: Path) -> BuiltModels:
    """Export the committed weights, quantize every variant, and measure its quality."""
    sources = directory / "sources"
    run(sys.executable, str(SCRIPTS / "build_demo_models"), str(sources))
    heldout = SCRIPTS / "demo_models" / "heldout.txt"
    language = f"{PUBLISHER}/tiny-llama"
    evaluate = ("--eval", str(heldout), "--context-length", "512")
    return BuiltModels(
        base=build_model(
            [sources / "base.gguf", sources / "base-onnx"],
            *(language, "1.0.0", directory / "tiny-llama-1", LANGUAGE_VARIANTS, *evaluate),
        ),
        finetune=build_model(
            [sources / "finetune.gguf", sources / "finetune-onnx"],
            *(language, "2.0.0", directory / "tiny-llama-2", LANGUAGE_VARIANTS, *evaluate),
            *("--lineage", f"finetune:{language}@1.0.0"),
        ),
        broken=build_model(
            [sources / "broken.gguf"],
            *(language, "3.0.0", directory / "tiny-llama-3", LANGUAGE_VARIANTS[:2], *evaluate),
        ),
        digits=build_model(
            [sources / "digits.onnx"],
            *(f"{PUBLISHER}/digits", "1.0.0", directory / "digits-1", DIGITS_VARIANTS),
            *("--eval", str(sources / "digits-eval.npz")),
        ),
        golden=sources / "digits-golden.json",
        heldout=heldout,
    )


def write_release(directory: Path, version: str, language: Path, models: BuiltModels) -> Path:
    """Write a release file as a publisher would by hand."""
    golden: dict[str, Any] = json.loads(models.golden.read_text())
    text = models.heldout.read_text()[:4000]
    release = {
        "name": f"{PUBLISHER}/assistant",
        "version": version,
        "description": "A small language model and a digits classifier",
        "components": [
            {"slot": "chat", "model": str(language)},
            {"slot": "vision", "model": str(models.digits)},
        ],
        "routes": [{"name": "assistant", "slot": "chat"}, {"name": "digits", "slot": "vision"}],
        "probation": {
            "checks": [
                {
                    "check": "perplexity",
                    "name": "reads-english",
                    "slot": "chat",
                    "text": text,
                    "maximum": MAX_PERPLEXITY,
                },
                {
                    "check": "completion",
                    "name": "keeps-talking",
                    "slot": "chat",
                    "prompt": PROMPT,
                    "max_tokens": 16,
                    "min_tokens": 8,
                },
                {"check": "tensor", "name": "reads-digits", "slot": "vision", **golden},
            ],
            "soak_seconds": 1,
        },
        # Prefer the best quality that fits the device; speed and energy are reported either way.
        "selection": {"objective": "quality", "min_tokens_per_second": 5},
    }
    path = directory / f"assistant-{version}.yaml"
    path.write_text(yaml.safe_dump(release, sort_keys=False))
    return path
