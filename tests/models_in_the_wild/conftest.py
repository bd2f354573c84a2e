"""Real models that others published, from wheels on PyPI.

The wheels are installed without dependencies into a cache folder, and never committed. Without a
package index the tests are skipped with the reason; FLOTILLA_REQUIRE=wheels makes that a failure.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

# Small wheels with ONNX files; the versions are pinned, because the tests name files in them.
WHEELS: Final = {
    "magika": "1.0.3",
    "nudenet": "3.4.2",
    "rapidocr-onnxruntime": "1.4.4",
    "silero-vad": "6.2.3",
}
_SECONDS: Final = 240


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "flotilla-tests" / "wheels"


def _install(name: str, version: str, target: Path) -> str:
    """Install a wheel into a folder; return why that failed, or an empty string."""
    # scripts/bootstrap puts uv there if it is not on the PATH.
    uv = shutil.which("uv") or str(Path(__file__).parents[2] / ".cache/uv/bin/uv")
    installers = (
        (uv, "pip", "install", "--quiet", "--python", sys.executable),
        ("pip", "install", "--quiet", "--disable-pip-version-check"),
    )
    problem = "neither uv nor pip is on the PATH"
    for command in installers:
        if shutil.which(command[0]) is None:
            continue
        done = subprocess.run(
            [*command, "--no-deps", "--target", str(target), f"{name}=={version}"],
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
        if done.returncode == 0:
            return ""
        problem = f"{command[0]} cannot install {name}: {done.stderr.strip()[-300:]}"
    return problem


@pytest.fixture(scope="session")
def wheel(require: Any) -> Callable[[str], Path]:
    """Return a function that gives the folder of an installed wheel by its name on PyPI."""

    def folder(name: str) -> Path:
        target = _cache() / f"{name}-{WHEELS[name]}"
        if not target.is_dir():
            # Installed beside its place and renamed, so that an interrupted run leaves no half.
            part = target.with_name(f".{target.name}.{os.getpid()}")
            problem = _install(name, WHEELS[name], part)
            if not problem:
                part.replace(target)
            shutil.rmtree(part, ignore_errors=True)
            require("wheels", missing=problem or None)
        return target

    return folder
