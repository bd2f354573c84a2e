"""A control plane and a device that serves a random-weight Llama, for benchmarks of the gateway."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml
from demo_fleet.models import build_model, run
from demo_fleet.processes import Box, ControlPlane

SCRIPTS = Path(__file__).parents[1]
CONTEXT = 512


@dataclass(frozen=True)
class Deployment:
    """A running deployment; ``model_file`` is the file that the worker loaded."""

    server: ControlPlane
    box: Box
    directory: Path
    model_file: Path

    def roll_out(self, version: str) -> None:
        """Publish the model as another release, and wait until the device serves it."""
        release = {
            "name": "acme/bench",
            "version": version,
            "components": [{"slot": "chat", "model": str(self.directory / "model")}],
            "routes": [{"name": "bench", "slot": "chat"}],
            "probation": {"soak_seconds": 0, "benchmark_tokens": 8},
        }
        path = self.directory / f"bench-{version}.yaml"
        path.write_text(yaml.safe_dump(release))
        self.server.cli("publish", str(path), "--keys", str(self.directory / "keys"))
        self.start_rollout(version)

    def start_rollout(self, version: str) -> None:
        """Roll out the published release, and wait for its end."""
        self.server.cli("rollout", "start", f"acme/bench@{version}", "--all", "--wait")


@contextmanager
def deployed(directory: Path, parameters: str, quantization: str) -> Iterator[Deployment]:
    """Start a device on release 1.0.0 of a model of this size and format; stop it at the end."""
    directory.mkdir(parents=True)
    source = directory / "random.gguf"
    generator = str(SCRIPTS / "demo_models" / "random_llama.py")
    run(sys.executable, generator, "--parameters", parameters, str(source))
    variant = f"{quantization}=llama_cpp:{quantization}"
    built = build_model([source], "acme/random", "1.0.0", directory / "model", (variant,))
    server = ControlPlane(directory / "server")
    box = Box(directory, "bench", "8GiB", {})
    try:
        server.start()
        server.cli("keys", "init", "--publisher", "acme", "--dir", str(directory / "keys"))
        box.enroll(server.public, server.cli("token", "create", "--uses", "1")["secret"])
        box.start()
        model_file = next((built / quantization).iterdir())
        deployment = Deployment(server, box, directory, model_file)
        deployment.roll_out("1.0.0")
        yield deployment
    finally:
        box.stop()
        server.stop()
