"""``python -m tests.security.fuzz_model_files --seconds 60``: endless hostile model files.

Each file of tests.security.model_mutations must be refused by UnsafeFileError or be inspected with
plausible results, within seconds and within the memory of an inspecting process. A finding is
stored, and its seed makes the same file again.
"""

import argparse
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Final

from runtimes import registry
from runtimes.errors import RuntimeFault, UnsafeFileError
from runtimes.inspection.answer import Found, decode, encode
from tests.security.model_mutations import config, gguf, onnx

SECONDS_EACH: Final = 10
MEMORY_BYTES: Final = 512 << 20
FORMATS: Final[dict[str, Callable[[Random], bytes]]] = {"llama_cpp": gguf, "onnx": onnx}


def try_one(runtime_name: str, chance: Random, folder: Path) -> str:
    """Make a file and inspect it in this process; return "found" or "refused"."""
    runtime = registry.find(runtime_name)
    path = folder / f"model.{runtime.format}"
    path.write_bytes(FORMATS[runtime_name](chance))
    (folder / "config.json").write_bytes(config(chance) if chance.random() < 0.2 else b"{}")
    try:
        found = runtime.inspector().inspect(path)
    except UnsafeFileError as error:
        return _advised(error, "refused")
    size = path.stat().st_size
    answer = decode(encode(Found(found, "")))
    assert isinstance(answer, Found)
    assert answer.inspection == found
    assert all(t.offset + t.size <= size for t in found.tensors if not t.file), found.tensors
    assert all((folder / t.file).parent == folder for t in found.tensors if t.file)
    assert 0 <= found.context_length <= 1 << 24, found.context_length
    try:
        assert runtime.estimate_memory(found, size, 0) >= 0
    except RuntimeFault as error:
        return _advised(error, "found, memory unknown")
    return "found"


def _advised(error: RuntimeFault, end: str) -> str:
    assert error.advice, error
    return end


def _too_long(*_: object) -> None:
    raise AssertionError(f"reading took longer than {SECONDS_EACH} s")


def _limit_memory() -> None:
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY_BYTES, held + MEMORY_BYTES))


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.security.fuzz_model_files", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=time.time_ns())
    parser.add_argument("--keep", type=Path, default=Path("fuzz-finding"))
    arguments = parser.parse_args()
    _limit_memory()
    signal.signal(signal.SIGALRM, _too_long)
    ends: Counter[str] = Counter()
    deadline = time.monotonic() + arguments.seconds
    seed = arguments.seed
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "there.bin").write_bytes(bytes(64))
        (folder / "link.bin").symlink_to("there.bin")
        while time.monotonic() < deadline:
            for runtime in FORMATS:
                signal.alarm(SECONDS_EACH)
                try:
                    # A seeded generator, because a seed must make the same file again.
                    end = try_one(runtime, Random(seed), folder)  # noqa: S311
                except BaseException:
                    sys.stderr.write(f"seed {seed} of {runtime}: see {arguments.keep}\n")
                    shutil.copytree(folder, arguments.keep, symlinks=True, dirs_exist_ok=True)
                    raise
                signal.alarm(0)
                ends[f"{runtime} {end}"] += 1
            seed += 1
    counts = ", ".join(f"{end}: {count}" for end, count in sorted(ends.items()))
    sys.stdout.write(f"{counts}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
