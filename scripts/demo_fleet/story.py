"""The demo's steps: each acts, checks the result, and prints it."""

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from demo_fleet.models import PROMPT, PUBLISHER, BuiltModels, build_models, write_release
from demo_fleet.processes import FAST_TELEMETRY, Box, ControlPlane, FleetError, wait_until
from demo_fleet.traffic import Traffic, call

RELEASE = f"{PUBLISHER}/assistant"
ROLLOUT_SECONDS = 240.0
# Name, memory of all models, labels. The last two have room for a worker of each runtime, not for
# two of ONNX Runtime: they must choose another variant of the language model.
BOXES = (
    ("lab-big-1", "512MiB", {"site": "lab", "size": "big"}),
    ("lab-big-2", "512MiB", {"site": "lab", "size": "big"}),
    ("lab-small-1", "163MiB", {"site": "lab", "size": "small"}),
    ("lab-small-2", "164MiB", {"site": "lab", "size": "small"}),
)
STRATEGY = """\
waves:
  - {name: canary, count: 1, soak_seconds: 1}
  - {name: full, percent: 100, soak_seconds: 1}
gates:
  failure: {max_failures: 0, min_executed: 1}
on_failure: rollback
"""


class ClaimError(Exception):
    """A check of the demo failed."""


def claim(true: bool, what: str) -> None:
    if not true:
        raise ClaimError(what)


@dataclass
class Step:
    """One step in the report."""

    name: str
    ok: bool = False
    seconds: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)


class Story:
    """The fleet and the results observed so far."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.server = ControlPlane(directory / "server", *FAST_TELEMETRY)
        self.boxes = [Box(directory, *box) for box in BOXES]
        self.steps: list[Step] = []
        self.traffic = Traffic()
        self.started = time.monotonic()
        self.models: BuiltModels | None = None
        self.rollouts: dict[str, str] = {}
        self.summary: list[dict[str, Any]] = []

    def say(self, line: str) -> None:
        print(f"[{time.monotonic() - self.started:6.1f} s] {line}", flush=True)

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[dict[str, Any]]:
        step = Step(name)
        self.steps.append(step)
        self.say(f"== {name}")
        began = time.monotonic()
        try:
            yield step.facts
            step.ok = True
        except (ClaimError, FleetError) as error:
            step.facts["error"] = str(error)
            raise
        finally:
            step.seconds = round(time.monotonic() - began, 2)

    def run(self) -> None:
        """Run every step in order; stop at the first that fails."""
        self.start_server()
        self.build()
        self.enroll()
        self.first_release()
        self.answers()
        self.second_release_under_traffic()
        self.broken_release()
        self.roll_back()
        self.efficiency()

    # -- the steps

    def start_server(self) -> None:
        with self.step("start the control plane (SQLite, own CA, nothing to set up)") as facts:
            self.server.start()
            facts["public"] = self.server.public
            self.server.cli(
                *("keys", "init", "--publisher", PUBLISHER),
                *("--dir", str(self.directory / "keys")),
            )
            self.say("publisher and root keys made; the server has only their public halves")

    def build(self) -> None:
        with self.step("build, quantize and measure the models") as facts:
            self.models = build_models(self.directory / "models")
            for name in ("tiny-llama-1", "tiny-llama-2", "tiny-llama-3", "digits-1"):
                model = json.loads((self.directory / "models" / name / "model.json").read_text())
                facts[name] = {
                    variant["name"]: {
                        "bytes": sum(file["size"] for file in variant["files"]),
                        "memory_bytes": variant["memory_bytes"],
                        "quality": variant["quality"],
                    }
                    for variant in model["variants"]
                }
                for variant, fact in facts[name].items():
                    quality = fact["quality"]
                    self.say(
                        f"{name:13} {variant:10} {fact['bytes']:>9,} bytes  "
                        f"{quality['metric']} {quality['value']:.4g}"
                    )

    def enroll(self) -> None:
        with self.step("enrol four boxes, two of them with little memory") as facts:
            token = self.server.cli("token", "create", "--uses", str(len(self.boxes)))["secret"]
            for box in self.boxes:
                box.enroll(self.server.public, token)
                box.start()
                self.say(f"{box.name} enrolled, {box.model_memory} for its models")
            wait_until("all boxes being connected", self._all_connected)
            facts["devices"] = len(self.boxes)

    def _all_connected(self) -> bool:
        devices = self.devices()
        return len(devices) == len(self.boxes) and all(d["connected"] for d in devices.values())

    def first_release(self) -> None:
        with self.step("publish release 1 and roll it out: canary, then everyone") as facts:
            rollout = self.roll_out("1.0.0", self.built.base)
            claim(rollout["state"] == "succeeded", f"rollout 1 ended {rollout['state']}")
            facts["devices"] = self.expect_release("1.0.0")
            facts["explanations"] = self.explanations()
            chosen = {name: row["chat"] for name, row in facts["devices"].items()}
            big = {chosen[box.name] for box in self.boxes if box.labels["size"] == "big"}
            small = {chosen[box.name] for box in self.boxes if box.labels["size"] == "small"}
            claim(not big & small, f"boxes of both sizes chose the same variants: {chosen}")
            runtimes = {row["runtime"] for row in self.telemetry_after_warmup()}
            claim({"llama_cpp", "onnx"} <= runtimes, f"runtimes in use: {sorted(runtimes)}")
            facts["runtimes"] = sorted(runtimes)

    def answers(self) -> None:
        with self.step("ask every box something, then keep asking") as facts:
            for box in self.boxes:
                body = {"model": "assistant", "prompt": PROMPT, "max_tokens": 24}
                status, answer = call(box.gateway, "/v1/completions", body)
                claim(status == 200, f"{box.name} answered {status}: {answer}")
                text = answer["choices"][0]["text"]
                facts[box.name] = text
                self.say(f"{box.name}: {PROMPT}{text!r}")
                self.traffic.add(box.name, box.gateway, "/v1/completions", body | {"max_tokens": 8})
                self.traffic.add(box.name, box.gateway, "/v2/models/digits/infer", self.digit())

    def second_release_under_traffic(self) -> None:
        with self.step("publish release 2 (a fine-tune) and roll it out under traffic") as facts:
            before = self.traffic.requests
            rollout = self.roll_out("2.0.0", self.built.finetune)
            claim(rollout["state"] == "succeeded", f"rollout 2 ended {rollout['state']}")
            facts["devices"] = self.expect_release("2.0.0")
            facts["bytes_downloaded"] = {
                device["name"]: device["bytes_downloaded"] for device in rollout["devices"]
            }
            self.claim_served(facts, before)

    def broken_release(self) -> None:
        with self.step("publish release 3, whose language model is broken") as facts:
            before = self.traffic.requests
            rollout = self.roll_out("3.0.0", self.built.broken)
            claim(rollout["state"] == "rolled_back", f"rollout 3 ended {rollout['state']}")
            claim(rollout["waves"][0]["state"] == "failed", "the canary wave did not fail")
            claim(rollout["waves"][1]["state"] == "pending", "the second wave was started")
            facts["reason"] = rollout["reason"]
            facts["devices"] = self.expect_release("2.0.0")
            facts["canary"] = [d for d in rollout["devices"] if d["wave"] == 0]
            self.claim_served(facts, before)
            self.say(f"undone without an operator: {rollout['reason']}")

    def roll_back(self) -> None:
        with self.step("roll release 2 back to 1 with one command") as facts:
            before = self.traffic.requests
            rollout = self.follow(
                *("rollout", "rollback", self.rollouts["2.0.0"], "--wait", "--yes"),
                state="rolled_back",
            )
            claim(rollout["state"] == "rolled_back", f"the rollback ended {rollout['state']}")
            facts["devices"] = self.expect_release("1.0.0")
            facts["bytes_downloaded"] = sum(d["bytes_downloaded"] for d in rollout["devices"])
            facts["switch_seconds"] = {d["name"]: d["switch_seconds"] for d in rollout["devices"]}
            claim(facts["bytes_downloaded"] == 0, f"{facts['bytes_downloaded']} bytes downloaded")
            self.claim_served(facts, before)

    def efficiency(self) -> None:
        with self.step("what the fleet gave, as its own telemetry says") as facts:
            self.traffic.stop()
            claim(not self.traffic.failures, f"failed requests: {self.traffic.failures[:3]}")
            facts["requests"] = self.traffic.requests
            facts["failed_requests"] = len(self.traffic.failures)
            facts["longest_request_seconds"] = {
                name: round(tally.longest_seconds, 3)
                for name, tally in self.traffic.tallies.items()
            }
            self.summary = wait_until("telemetry of the traffic", self.telemetry)
            facts["summary"] = self.summary

    # -- what the steps share

    @property
    def built(self) -> BuiltModels:
        claim(self.models is not None, "the models were not built")
        assert self.models is not None
        return self.models

    def digit(self) -> dict[str, Any]:
        golden = json.loads(self.built.golden.read_text())
        return {"inputs": golden["inputs"]}

    def publish(self, version: str, language: Path) -> None:
        path = write_release(self.directory / "models", version, language, self.built)
        keys = str(self.directory / "keys")
        published = self.server.cli("publish", str(path), "--keys", keys)
        self.say(f"published {RELEASE}@{version}: {json.dumps(published.get('upload', {}))}")

    def roll_out(self, version: str, language: Path) -> dict[str, Any]:
        self.publish(version, language)
        strategy = self.directory / "strategy.yaml"
        strategy.write_text(STRATEGY)
        rollout = self.follow(
            *("rollout", "start", f"{RELEASE}@{version}", "--to", "site=lab"),
            *("--strategy", str(strategy)),
        )
        self.rollouts[version] = rollout["id"]
        return rollout

    def follow(self, *command: str, state: str | None = None) -> dict[str, Any]:
        """Run a rollout command, then print every change until the rollout is final."""
        rollout = self.server.cli(*command)
        if state is not None:
            return rollout
        log = self.directory / "watch.log"
        seen = ""
        with self.server.background(log, "rollout", "watch", rollout["id"]) as watch:
            assert watch.stdout is not None
            for line in watch.stdout:
                rollout = json.loads(line)
                waves = ", ".join(
                    f"{wave['name']} {wave['state']} {wave['succeeded']}/{wave['targeted']}"
                    for wave in rollout["waves"]
                )
                if waves != seen:
                    self.say(f"rollout {rollout['state']}: {waves}")
                    seen = waves
        return self.server.cli("rollout", "show", rollout["id"])

    def devices(self) -> dict[str, dict[str, Any]]:
        return {d["name"]: d for d in self.server.cli("device", "list")["devices"]}

    def expect_release(self, version: str) -> dict[str, dict[str, str]]:
        """Check that every device serves this version, both at the server and at its gateway."""
        reference = f"{RELEASE}@{version}"
        found = self.devices()
        rows = {}
        for box in self.boxes:
            device = found[box.name]
            claim(
                device["current_release"] == reference,
                f"{box.name} runs {device['current_release'] or 'nothing'}, not {reference}",
            )
            rows[box.name] = {"release": device["current_release"], **device["variants"]}
            self.say(f"{box.name}: {reference}, {device['variants']}")
        return rows

    def explanations(self) -> dict[str, list[dict[str, Any]]]:
        explained = {}
        for box in self.boxes:
            decisions = self.server.cli("device", "explain", box.name)["decisions"]
            claim(bool(decisions), f"{box.name} gave no explanation")
            explained[box.name] = decisions
            for decision in decisions:
                self.say(f"{box.name} {decision['slot']}: {decision['reason']}")
        return explained

    def claim_served(self, facts: dict[str, Any], before: int) -> None:
        facts["requests"] = self.traffic.requests - before
        facts["failed_requests"] = len(self.traffic.failures)
        claim(facts["requests"] > 0, "no traffic ran meanwhile")
        claim(not self.traffic.failures, f"failed requests: {self.traffic.failures[:3]}")
        self.say(f"{facts['requests']} requests meanwhile, none failed")

    def telemetry(self) -> list[dict[str, Any]]:
        return list(self.server.cli("telemetry", "summary", "--by", "device")["rows"])

    def telemetry_after_warmup(self) -> list[dict[str, Any]]:
        """Send one request to every slot, then wait for the windows that count them."""
        for box in self.boxes:
            call(
                box.gateway,
                "/v1/completions",
                {"model": "assistant", "prompt": PROMPT, "max_tokens": 4},
            )
            call(box.gateway, "/v2/models/digits/infer", self.digit())

        def both_slots() -> list[dict[str, Any]] | None:
            rows = self.telemetry()
            return rows if len(rows) == 2 * len(self.boxes) else None

        return list(wait_until("telemetry of every box and slot", both_slots))

    # -- the end

    def report(self) -> dict[str, Any]:
        return {
            "ok": all(step.ok for step in self.steps),
            "seconds": round(time.monotonic() - self.started, 1),
            "steps": [asdict(step) for step in self.steps],
        }

    def close(self) -> None:
        """Stop all processes, agents first; a failure does not keep the others running."""
        self.traffic.stop()
        with contextlib.ExitStack() as stack:
            stack.callback(self.server.stop)
            for box in self.boxes:
                stack.callback(box.stop)
