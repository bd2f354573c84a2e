"""Entry point of `flotilla-agent`."""

import os

from agent.cli.command import main as run


def main() -> None:
    # gRPC's C core would print its own lines beside our structured log.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    run()


if __name__ == "__main__":
    main()
