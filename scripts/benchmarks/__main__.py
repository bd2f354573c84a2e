"""Run the benchmarks and print one table; a missed bar does not fail the run."""

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from demo_fleet.report import table

from benchmarks import (
    chunks,
    deltas,
    flash,
    generation,
    idle,
    no_change,
    selection,
    stream,
    streams,
    swap,
    tensors,
    verify,
    wire,
)
from benchmarks.deployment import Deployment, deployed
from benchmarks.result import HEADER, Result
from runtimes.environment import LARGE_PAGES, engine_environment

ON_A_BOX: dict[str, Callable[[Deployment], list[Result]]] = {
    "idle": idle.run,
    "wire": wire.run,
    "flash": flash.run,
    "gateway": generation.run,
    "streams": streams.run,
    "swap": swap.run,
    "no-change": no_change.run,
}
ALONE: dict[str, Callable[[Path], list[Result]]] = {
    "stream": stream.run,
    "verify": verify.run,
    "tensors": tensors.run,
}
ON_FINE_TUNES: dict[str, Callable[[Path, str], list[Result]]] = {
    "chunks": chunks.run,
    "deltas": deltas.run,
}
# With --full the files have 300 and 500 MB.
FULL_PARAMETERS = "480M"
SELECTION = "selection"
NAMES = (*ALONE, *ON_FINE_TUNES, SELECTION, *ON_A_BOX)


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument(
        "only", nargs="*", metavar="NAME", help=f"{', '.join(NAMES)} (default: all)"
    )
    parser.add_argument("--parameters", default="60M", help="size of the model (default 60M)")
    parser.add_argument(
        "--quantization", default="q8_0", help="of the model that a box serves (default q8_0)"
    )
    parser.add_argument(
        "--full",
        action="store_true",
        help="chunks and deltas of files of 300 and 500 MB; takes minutes and 5 GB of disk",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    options = parser.parse_args()
    unknown = set(options.only) - set(NAMES)
    if unknown:
        parser.error(f"unknown benchmark {', '.join(sorted(unknown))}; known: {', '.join(NAMES)}")
    wanted = options.only or NAMES
    with tempfile.TemporaryDirectory(prefix="flotilla-bench-") as directory:
        fine_tuned = FULL_PARAMETERS if options.full else options.parameters
        results = run(wanted, Path(directory), options, fine_tuned)
    print(f"\n{machine()}\n\n{table(HEADER, [result.cells() for result in results])}")
    if options.json:
        options.json.write_text(json.dumps([asdict(result) for result in results], indent=2) + "\n")
    return 0


def run(
    wanted: Sequence[str], directory: Path, options: argparse.Namespace, fine_tuned: str
) -> list[Result]:
    """Run the chosen benchmarks; each returns one or more rows."""
    parameters, quantization = options.parameters, options.quantization
    results: list[Result] = []
    for name, benchmark in ALONE.items():
        if name in wanted:
            print(f"== {name}", file=sys.stderr, flush=True)
            results += benchmark(directory / name)
    for name, compare in ON_FINE_TUNES.items():
        if name in wanted:
            print(f"== {name} with models of {fine_tuned}", file=sys.stderr, flush=True)
            results += compare(directory / "fine-tunes", fine_tuned)
    if SELECTION in wanted:
        print(f"== {SELECTION} among variants of {parameters}", file=sys.stderr, flush=True)
        results += selection.run(directory / SELECTION, parameters)
    on_a_box = [name for name in ON_A_BOX if name in wanted]
    if on_a_box:
        print(
            f"== a box with a model of {parameters} in {quantization}", file=sys.stderr, flush=True
        )
        with deployed(directory / "box", parameters, quantization) as deployment:
            for name in on_a_box:
                print(f"== {name}", file=sys.stderr, flush=True)
                results += ON_A_BOX[name](deployment)
    return results


def machine() -> str:
    """Return the machine's description, printed above the figures."""
    import psutil

    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    return f"{psutil.cpu_count()} x {model}, Python {platform.python_version()}"


def start_as_a_worker() -> None:
    """Set a worker's environment for the engines of this process, but not for its children."""
    if os.environ != engine_environment():
        os.execve(sys.executable, sys.orig_argv, engine_environment())  # noqa: S606 - itself
    for name, _ in LARGE_PAGES.items() & os.environ.items():
        del os.environ[name]


if __name__ == "__main__":
    start_as_a_worker()
    sys.exit(main())
