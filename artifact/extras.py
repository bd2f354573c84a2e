"""Extras of the distribution, to name the right one if a module of it is not installed."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

# Import names by extra (pyproject.toml); of several extras with a module the first is named.
MODULES: Final[Mapping[str, frozenset[str]]] = MappingProxyType(
    {
        "onnx": frozenset({"onnx", "onnxruntime", "tokenizers"}),
        "llama": frozenset({"llama_cpp", "jinja2"}),
        "agent": frozenset({"h11", "numpy", "uvicorn"}),
        "server": frozenset(
            {
                "aiosqlite",
                "alembic",
                "apscheduler",
                "asyncpg",
                "grpc_health",
                "grpc_reflection",
                "prometheus_client",
                "rich",
                "sqlalchemy",
                "starlette",
            }
        ),
    }
)


def installation_advice(error: ModuleNotFoundError, extra: str) -> str:
    """Return the command that installs a missing module; empty if no extra has it.

    ``extra`` is the command's own, preferred if it has the module.
    """
    module = (error.name or "").partition(".")[0]
    if not any(module in modules for modules in MODULES.values()):
        return ""
    owners = [extra] if extra in {"agent", "server"} and module in _all_of(extra) else []
    owners += [name for name, modules in MODULES.items() if module in modules]
    return f"Install the extra with it: pip install 'flotilla[{owners[0]}]'."


def _all_of(extra: str) -> frozenset[str]:
    # The server's extra contains what it shares with the agent's.
    return MODULES[extra] | (MODULES["agent"] if extra == "server" else frozenset())
