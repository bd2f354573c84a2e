import subprocess
import sys

# Modules that cost megabytes and are needed for seconds belong in the notary or in a worker.
NOT_IN_THE_DAEMON = (
    "cryptography",
    "llama_cpp",
    "numpy",
    "onnxruntime",
    "securesystemslib",
    "starlette",
    "tuf",
    "urllib3",
)


def test_the_daemon_imports_nothing_that_is_not_for_every_day() -> None:
    program = (
        "import sys, agent.cli.command, agent.daemon, agent.enrollment.provisioning\n"
        f"print(*(name for name in {NOT_IN_THE_DAEMON!r} if name in sys.modules))"
    )
    found = subprocess.run(
        [sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True
    )
    assert found.stdout.split() == []
