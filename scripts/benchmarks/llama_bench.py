"""llama-bench, as its users run it.

It is built from the sources that llama-cpp-python brings
(``cmake --build build --target llama-bench``) and found in PATH or by FLOTILLA_LLAMA_BENCH.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

REPETITIONS = 3
ABSENT = "build llama-bench and set FLOTILLA_LLAMA_BENCH"


def rates(
    model: Path, prompt_tokens: int, tokens: int, depth: int = 0
) -> tuple[float, float] | None:
    """Return tokens per second of one prompt batch and of generation; None if not measured.

    Each of them follows ``depth`` tokens that are not timed.
    """
    found = shutil.which(os.environ.get("FLOTILLA_LLAMA_BENCH", "llama-bench"))
    if found is None:
        return None
    threads = str(len(os.sched_getaffinity(0)))
    sizes = ["-p", str(prompt_tokens), "-n", str(tokens), "-d", str(depth)]
    ran = subprocess.run(
        [found, "-m", str(model), *sizes, "-r", str(REPETITIONS), "-t", threads, "-o", "json"],
        capture_output=True,
        check=True,
        timeout=600,
    )
    prompt, generation = json.loads(ran.stdout)
    return float(prompt["avg_ts"]), float(generation["avg_ts"])
