"""``scripts/mutate``: sample mutants, run each one's nearest tests, and list those that stay alive.

A mutant is killed when its tests fail or take over ``--timeout`` seconds. Each run is a fork of
this process, which has imported the test tools and libraries but none of the project's code. The
fork compiles the changed module instead of the one on disk, so the source tree is never touched.
"""

import argparse
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import random
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from mutation.operators import Mutant, mutants

ROOT = Path(__file__).resolve().parents[2]
# What is mutated, and the tests that should notice.
TARGETS = {
    "agent/selection": ["tests/agent/selection"],
    "agent/update/machine.py": [
        "tests/agent/update/test_machine.py",
        "tests/agent/update/test_engine.py",
    ],
    "agent/journal": ["tests/agent/journal"],
    "artifact/trust": ["tests/artifact/trust"],
    "controlplane/fleet": ["tests/controlplane/fleet"],
    "controlplane/rollouts": [
        "tests/controlplane/rollouts",
        "tests/controlplane/services/rollouts",
    ],
    "controlplane/telemetry": ["tests/controlplane/telemetry"],
}
# Plugins are imported before pytest starts, on purpose.
PYTEST_ARGUMENTS = (
    *("-x", "-q", "-p", "no:cacheprovider"),
    *("-W", "ignore::pytest.PytestAssertRewriteWarning"),
)
PRELOADED = (
    "asyncio",
    "pytest",
    "pytest_asyncio",
    "hypothesis",
    "cryptography.x509",
    "msgspec",
    "sqlalchemy.ext.asyncio",
    "aiosqlite",
    "tuf.api.metadata",
    "yaml",
    "zstandard",
    "numpy",
)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A mutant of a file, and the tests to run on it."""

    path: Path
    tests: Sequence[str]
    mutant: Mutant

    @property
    def place(self) -> str:
        return f"{self.path}:{self.mutant.line}"


class ChangedModule(importlib.abc.MetaPathFinder, importlib.abc.SourceLoader):
    """Import ``name`` from the mutant's source; every other module as usual."""

    def __init__(self, name: str, path: Path, source: str) -> None:
        self._name, self._path, self._source = name, path, source

    def find_spec(
        self, fullname: str, path: object, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        del path, target
        if fullname != self._name:
            return None
        locations = [str(self._path.parent)] if self._path.name == "__init__.py" else None
        return importlib.util.spec_from_file_location(
            fullname, self._path, loader=self, submodule_search_locations=locations
        )

    def get_filename(self, fullname: str) -> str:
        del fullname
        return str(self._path)

    def get_data(self, path: str) -> bytes:
        # The cached bytecode of the unchanged file must not be found.
        if path.endswith(".pyc"):
            raise OSError(path)
        return self._source.encode()


def all_candidates(only: str) -> list[Candidate]:
    found = []
    for target, tests in TARGETS.items():
        where = ROOT / target
        for path in sorted(where.rglob("*.py")) if where.is_dir() else [where]:
            relative = path.relative_to(ROOT)
            if str(relative).startswith(only):
                source = path.read_text(encoding="utf-8")
                found += [Candidate(relative, tests, mutant) for mutant in mutants(source)]
    return found


def start(candidate: Candidate) -> int:
    """Fork a run of the candidate's tests; the process id."""
    pid = os.fork()
    if pid:
        return pid
    os.setsid()
    silent = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(silent, descriptor)
    name = ".".join(candidate.path.with_suffix("").parts).removesuffix(".__init__")
    sys.meta_path.insert(0, ChangedModule(name, ROOT / candidate.path, candidate.mutant.source))
    status = 70
    try:
        pytest = importlib.import_module("pytest")
        status = int(pytest.main([*PYTEST_ARGUMENTS, *candidate.tests]))
    finally:
        os._exit(status)


def run(candidates: Sequence[Candidate], jobs: int, timeout_seconds: float) -> list[Candidate]:
    """Run all candidates, ``jobs`` at a time; those that stayed alive."""
    waiting, running, alive = list(reversed(candidates)), {}, []
    done = 0
    while waiting or running:
        while waiting and len(running) < jobs:
            candidate = waiting.pop()
            running[start(candidate)] = (candidate, time.monotonic() + timeout_seconds)
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            now = time.monotonic()
            for late in [one for one, (_, deadline) in running.items() if deadline < now]:
                os.killpg(late, signal.SIGKILL)
            time.sleep(0.02)
            continue
        candidate, _ = running.pop(pid)
        done += 1
        if os.waitstatus_to_exitcode(status) == 0:
            alive.append(candidate)
            print(f"alive  {candidate.place}  {candidate.mutant.change}", flush=True)
        elif done % 25 == 0:
            print(f"       {done} of {len(candidates)} run, {len(alive)} alive", flush=True)
    return alive


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/mutate", description=__doc__)
    parser.add_argument("--count", type=int, default=300, help="mutants to sample (default 300)")
    parser.add_argument("--seed", type=int, default=1, help="which sample (default 1)")
    parser.add_argument(
        "--only", default="", metavar="PATH", help="only files whose path starts so"
    )
    parser.add_argument("--most", type=int, default=15, help="alive mutants allowed (default 15)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--timeout", type=float, default=120, metavar="SECONDS")
    arguments = parser.parse_args()
    os.chdir(ROOT)
    for module in PRELOADED:
        importlib.import_module(module)
    candidates = all_candidates(arguments.only)
    chosen = random.Random(arguments.seed).sample(  # noqa: S311 - a sample, no secret
        candidates, min(arguments.count, len(candidates))
    )
    unchanged = {
        tests: Candidate(Path("none.py"), list(tests), Mutant(0, "unchanged", ""))
        for tests in {tuple(one.tests) for one in chosen}
    }
    if len(run(list(unchanged.values()), arguments.jobs, arguments.timeout * 5)) != len(unchanged):
        print("The nearest tests fail on the unchanged code; mend them first.")
        return 2
    alive = run(chosen, arguments.jobs, arguments.timeout)
    print(f"{len(alive)} of {len(chosen)} mutants stayed alive (of {len(candidates)} possible)")
    return 0 if len(alive) <= arguments.most else 1


if __name__ == "__main__":
    sys.exit(main())
