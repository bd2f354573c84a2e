"""A command without its extra names the extra, not a traceback."""

import importlib.util
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from artifact.extras import MODULES

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"
# Import names that differ from the distribution's.
IMPORTS = {"grpcio_health_checking": "grpc_health", "grpcio_reflection": "grpc_reflection"}


@pytest.mark.parametrize(
    ("module", "entry", "missing", "arguments", "extra"),
    [
        ("agent", "agent", "uvicorn", "run --data-dir {}", "agent"),
        ("controlplane", "controlplane", "sqlalchemy", "serve --data-dir {}", "server"),
        ("controlplane", "controlplane", "uvicorn", "serve --data-dir {}", "server"),
    ],
)
def test_a_missing_module_names_its_extra(
    tmp_path: Path, *, module: str, entry: str, missing: str, arguments: str, extra: str
) -> None:
    script = (
        "import sys, runpy\n"
        f"sys.modules[{missing!r}] = None\n"
        f"sys.argv = [{entry!r}, *{arguments.format(tmp_path)!r}.split()]\n"
        f"runpy.run_module({module!r}, run_name='__main__')\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60
    )
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr
    assert f"pip install 'flotilla[{extra}]'" in result.stderr


def test_the_modules_are_those_of_the_distributions_extras() -> None:
    extras = tomllib.loads(PYPROJECT.read_text())["project"]["optional-dependencies"]
    declared = {
        name: {
            requirement.split(">")[0].split("[")[0].strip().replace("-", "_")
            for requirement in requirements
        }
        for name, requirements in extras.items()
    }
    for extra, modules in MODULES.items():
        imports = {IMPORTS.get(name, name) for name in declared[extra]}
        imports = {"llama_cpp" if name == "llama_cpp_python" else name for name in imports}
        assert modules <= imports, extra
        assert all(importlib.util.find_spec(module) for module in modules)
