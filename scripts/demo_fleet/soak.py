"""A long run of mixed traffic and release swaps that checks for failures and memory growth."""

import argparse
import json
import shutil
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from demo_fleet.models import PROMPT, build_models, write_release
from demo_fleet.processes import FAST_TELEMETRY, Box, ControlPlane
from demo_fleet.report import table
from demo_fleet.traffic import Traffic

MAX_GROWTH_MIB = 5.0
# Memory allocated on first use is not growth: measure after every path has run once.
WARM_UP_SWAPS = 4
VERSIONS = ("1.0.0", "2.0.0")
MIB = 1 << 20


@dataclass(frozen=True)
class Soaked:
    """Results of a run; resident memory in MiB, of the daemon alone."""

    minutes: float
    swaps: int
    requests: int
    failures: list[str]
    longest_request_seconds: float
    resident_after_warm_up_mib: float
    resident_at_end_mib: float
    orphans: int

    @property
    def growth_mib(self) -> float:
        return self.resident_at_end_mib - self.resident_after_warm_up_mib

    @property
    def ok(self) -> bool:
        return not self.failures and self.growth_mib <= MAX_GROWTH_MIB and not self.orphans


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--swap-seconds", type=float, default=30.0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there")
    options = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="flotilla-soak-"))
    soaked = soak(directory, options.minutes, options.swap_seconds)
    if options.json:
        document = asdict(soaked) | {"growth_mib": soaked.growth_mib, "ok": soaked.ok}
        options.json.write_text(json.dumps(document, indent=2) + "\n")
    print(f"\n{summary(soaked)}")
    if soaked.ok:
        shutil.rmtree(directory)
        return 0
    print(f"\n{len(soaked.failures)} failures, logs in {directory}:", file=sys.stderr)
    print("\n".join(soaked.failures[:10]), file=sys.stderr)
    return 1


def soak(directory: Path, minutes: float, swap_seconds: float) -> Soaked:
    """Start a fleet in an empty directory, run the soak, and stop the fleet."""
    say("building models")
    models = build_models(directory / "models")
    server = ControlPlane(directory / "server", *FAST_TELEMETRY)
    box = Box(directory, "soak", "1GiB", {})
    traffic = Traffic(pause_seconds=0.1)
    try:
        server.start()
        server.cli("keys", "init", "--publisher", "acme", "--dir", str(directory / "keys"))
        box.enroll(server.public, server.cli("token", "create", "--uses", "1")["secret"])
        box.start()
        for version, language in zip(VERSIONS, (models.base, models.finetune), strict=True):
            release = write_release(directory, version, language, models)
            server.cli("publish", str(release), "--keys", str(directory / "keys"))
        roll_out(server, VERSIONS[0])
        return run(server, box, traffic, minutes, swap_seconds)
    finally:
        traffic.stop()
        box.stop()
        server.stop()


def run(
    server: ControlPlane, box: Box, traffic: Traffic, minutes: float, swap_seconds: float
) -> Soaked:
    """Run traffic throughout and swap releases at every interval."""
    assert box.process.popen is not None
    daemon = psutil.Process(box.process.popen.pid)
    begin_traffic(traffic, box.gateway, models=("assistant", "digits"))
    started = time.monotonic()
    end = started + minutes * 60
    swaps, warm = 0, 0.0
    while time.monotonic() < end:
        swaps += 1
        due = started + swaps * swap_seconds
        time.sleep(max(0.0, min(due, end) - time.monotonic()))
        roll_out(server, VERSIONS[swaps % len(VERSIONS)])
        resident = daemon.memory_info().rss / MIB
        if swaps == WARM_UP_SWAPS:
            warm = resident
        say(
            f"{(time.monotonic() - started) / 60:5.1f} min  swap {swaps}  "
            f"{traffic.requests} requests, {len(traffic.failures)} failed  {resident:.1f} MiB"
        )
    traffic.stop()
    workers = daemon.children(recursive=True)
    resident = daemon.memory_info().rss / MIB
    box.stop()
    # One worker per slot may live while the box serves, and none after it.
    too_many = max(0, len(workers) - len(("chat", "vision")))
    orphans = too_many + sum(worker.is_running() for worker in workers)
    return Soaked(
        minutes=(time.monotonic() - started) / 60,
        swaps=swaps,
        requests=traffic.requests,
        failures=traffic.failures,
        longest_request_seconds=max(t.longest_seconds for t in traffic.tallies.values()),
        resident_after_warm_up_mib=warm or resident,
        resident_at_end_mib=resident,
        orphans=orphans,
    )


def begin_traffic(traffic: Traffic, gateway: str, models: tuple[str, str]) -> None:
    """Return one caller for each API of the gateway."""
    chat, digits = models
    short = {"model": chat, "max_tokens": 16, "temperature": 0.7}
    question = [{"role": "user", "content": PROMPT}]
    image = {"name": "image", "shape": [1, 64], "datatype": "FP32", "data": [0.0] * 64}
    traffic.add("completion", gateway, "/v1/completions", {**short, "prompt": PROMPT})
    traffic.add("chat", gateway, "/v1/chat/completions", {**short, "messages": question})
    traffic.add(
        "stream", gateway, "/v1/completions", {**short, "prompt": PROMPT * 8, "stream": True}
    )
    traffic.add("infer", gateway, f"/v2/models/{digits}/infer", {"inputs": [image]})


def roll_out(server: ControlPlane, version: str) -> None:
    server.cli("rollout", "start", f"acme/assistant@{version}", "--all", "--wait")


def summary(soaked: Soaked) -> str:
    rows = [
        ["failed requests", f"{len(soaked.failures)} of {soaked.requests}", "0"],
        ["swaps", str(soaked.swaps), "-"],
        [
            "daemon's growth after warm-up",
            f"{soaked.growth_mib:+.1f} MiB to {soaked.resident_at_end_mib:.1f} MiB",
            f"<= {MAX_GROWTH_MIB:.0f} MiB",
        ],
        ["orphan processes", str(soaked.orphans), "0"],
        ["longest request", f"{soaked.longest_request_seconds * 1000:.0f} ms", "-"],
    ]
    return table(["what", f"in {soaked.minutes:.1f} minutes", "bar"], rows)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
