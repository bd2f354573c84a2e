"""Tokenizing texts on which llama.cpp's regular expressions recurse deeply."""

import subprocess
import sys
from pathlib import Path

import pytest
from gguf_files import rewrite

from artifact.manifest import Task
from runtimes import registry
from runtimes.base import LoadSpec, Sampling
from runtimes.errors import ContextExceededError, InvalidInputError
from runtimes.llama_cpp.native import Model
from runtimes.llama_cpp.tokenizing import MAX_STRETCH, SHORT_STRETCH, longest_stretch

# Pre-tokenizers whose regular expressions llama.cpp runs by std::regex, which recurses per
# character: with 8 MiB of stack, 32,000 letters ended the process.
RECURSIVE = ("gpt-4o", "tekken", "deepseek-v3", "exaone-moe")


@pytest.fixture
def model(request: pytest.FixtureRequest, demo_models: Path, tmp_path: Path) -> Path:
    changes: dict[str, str | bool | list[object] | None] = {"tokenizer.ggml.pre": request.param}
    return rewrite(demo_models / "base.gguf", tmp_path / "model.gguf", changes)


@pytest.mark.parametrize("model", RECURSIVE, indirect=True)
def test_long_words_are_tokenized_with_every_pre_tokenizer(model: Path) -> None:
    """Run in a child process, because a failure is a segmentation fault."""
    script = f"""
import threading
from pathlib import Path
from runtimes.llama_cpp.native import Model
from runtimes.llama_cpp.tokenizing import MAX_STRETCH
model = Model(Path({str(model)!r}), 64, 1)
texts = ["x" * 40000, "X" * MAX_STRETCH, "a b " * 20000, " " * 40000, "\\u4e16" * 40000]
for text in texts:
    tokens = model.tokenize(text)
    assert b"".join(map(model.piece, tokens)).decode() == text
# Threads started by others have small stacks.
threading.stack_size(256 << 10)
thread = threading.Thread(target=model.tokenize, args=("x" * 40000,))
thread.start()
thread.join()
print("survived")
"""
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert run.stdout == "survived\n", (run.returncode, run.stderr[-500:])


@pytest.mark.parametrize("model", ["gpt-4o"], indirect=True)
def test_a_chat_of_long_words_is_refused_and_the_engine_goes_on(model: Path) -> None:
    engine = registry.find("llama_cpp").load(
        LoadSpec({"m": model}, Task.TEXT_GENERATION, 64, threads=1)
    )
    with pytest.raises(ContextExceededError):
        engine.generate("x" * 40000, Sampling())
    with pytest.raises(InvalidInputError, match=f"{MAX_STRETCH + 1:,} characters") as caught:
        engine.generate("x" * (MAX_STRETCH + 1), Sampling())
    assert "line" in caught.value.advice
    assert list(engine.generate("The import", Sampling(max_tokens=2)))
    engine.close()


def test_the_same_tokens_on_either_stack(demo_models: Path) -> None:
    model = Model(demo_models / "base.gguf", 64, 1)
    words = "The import statement "
    count = SHORT_STRETCH // len(words)
    short, long = model.tokenize(words * count), model.tokenize(words * 2 * count)
    assert long[: len(short) - 1] == short[:-1]
    model.close()


@pytest.mark.parametrize(
    ("text", "length"),
    [
        ("", 0),
        ("one line", 8),
        ("first\nsecond line", 11),
        ("first\n\n\n  \nsecond", 11),
        ("\n" * 9, 9),
        ("x" * 5 + "\r\n" + "y" * 4, 7),
    ],
)
def test_a_stretch_ends_where_no_regular_expression_goes_on(text: str, length: int) -> None:
    """Count line feeds and blanks after a line with it: one match may cover them all."""
    assert longest_stretch(text) == length
