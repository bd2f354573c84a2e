"""The agent's command."""

import os

from agent.cli.command import main as run


def main() -> None:
    # Whatever ends a call is told by us, once.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    run()


if __name__ == "__main__":
    main()
