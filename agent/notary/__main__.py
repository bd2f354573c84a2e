"""``python -m agent.notary``: answer questions from standard input until its end."""

import argparse
import os
import sys
from pathlib import Path

from agent.config import DataDir
from agent.notary import frames
from agent.notary.answering import answer
from agent.worker.confinement import die_with_parent


def main() -> None:
    """Read frames, write frames; standard output is redirected so that no print mixes in."""
    parser = argparse.ArgumentParser(prog="agent.notary")
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--data-dir", type=Path, required=True)
    arguments = parser.parse_args()
    die_with_parent(arguments.parent)
    data_dir = DataDir(arguments.data_dir)
    with (
        os.fdopen(os.dup(sys.stdin.fileno()), "rb") as asked,
        os.fdopen(os.dup(sys.stdout.fileno()), "wb") as answered,
    ):
        # The frames have a duplicate of standard output; the original becomes standard error.
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        while header := asked.read(frames.HEADER.size):
            (length,) = frames.HEADER.unpack(header)
            frames.check_length(length)
            question = frames.decode_question(asked.read(length))
            answered.write(frames.encode(answer(data_dir, question)))
            answered.flush()


if __name__ == "__main__":
    main()
