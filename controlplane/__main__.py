"""The `flotilla` command."""

import os
import sys

from artifact.extras import installation_advice
from controlplane.cli.command import cli


def main() -> None:
    # Commands report a failed call themselves; gRPC's own lines would repeat it. A server's log
    # keeps them, since failed handshakes of others appear only there.
    if "serve" not in sys.argv:
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        cli(prog_name="flotilla")
    except ModuleNotFoundError as error:
        advice = installation_advice(error, "server")
        if not advice:
            raise
        sys.exit(f"Error: {error}\n  {advice}")


if __name__ == "__main__":
    main()
