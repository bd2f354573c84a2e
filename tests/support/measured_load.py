"""Measures, in a process of its own, what loading a model and filling its context takes.

Prints resident memory beside the engine's code, as JSON.

    python measured_load.py RUNTIME TASK CONTEXT_LENGTH FILE...
"""

import importlib
import json
import sys
from pathlib import Path

from artifact.manifest import Task
from runtimes import registry
from runtimes.base import Engine, LoadSpec, Sampling
from runtimes.errors import InvalidInputError
from runtimes.text.steps import whole


def status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def embed_full_passes(engine: Engine, context_length: int) -> None:
    """Several of one shape, of texts about as long as they may be."""
    words = context_length
    while True:
        try:
            whole(engine.embed(["quick " * words] * 12))
        except InvalidInputError:
            words = words * 15 // 16
        else:
            return


def main() -> None:
    runtime, task, context_length, *files = sys.argv[1:]
    importlib.import_module(f"runtimes.{runtime}.engine")
    before = status("VmRSS")
    spec = LoadSpec(
        files={Path(file).name: Path(file) for file in files},
        task=Task(task),
        context_length=int(context_length),
        threads=1,
    )
    engine = registry.find(runtime).load(spec)
    loaded = status("VmRSS")
    if spec.task is Task.TEXT_GENERATION:
        prompt = "the quick brown fox "
        while engine.generate(prompt, Sampling()).usage.prompt_tokens < spec.context_length - 100:
            prompt += "the quick brown fox "
        list(engine.generate(prompt, Sampling(max_tokens=spec.context_length)))
    elif spec.task is Task.EMBEDDING:
        embed_full_passes(engine, spec.context_length)
    figures = {
        "loaded_bytes": loaded - before,
        "peak_bytes": status("VmHWM") - before,
        "reported_bytes": engine.memory_bytes(),
    }
    sys.stdout.write(json.dumps(figures))


if __name__ == "__main__":
    main()
