"""The `flotilla` command."""

import os
import sys

from controlplane.cli.command import cli


def main() -> None:
    # Whatever ends a call is told by us, once. Only to a server are handshakes that fail news.
    if "serve" not in sys.argv:
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    cli(prog_name="flotilla")


if __name__ == "__main__":
    main()
