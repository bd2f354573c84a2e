"""Entry point of `flotilla-agent`."""

import os
import sys

from agent.cli.command import main as run
from agent.storage.permissions import PRIVATE_UMASK
from artifact.extras import installation_advice


def main() -> None:
    # gRPC's C core would print its own lines beside our structured log.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # Inherited by the notary and the workers.
    os.umask(PRIVATE_UMASK)
    try:
        run()
    except ModuleNotFoundError as error:
        advice = installation_advice(error, "agent")
        if not advice:
            raise
        sys.exit(f"error: {error}\n{advice}")


if __name__ == "__main__":
    main()
