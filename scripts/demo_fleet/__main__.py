"""Run the demo, print its tables, write its report; exit 0 only if every step passed."""

import argparse
import json
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from demo_fleet import report
from demo_fleet.processes import FleetError
from demo_fleet.story import ClaimError, Story


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/demo", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report there")
    parser.add_argument("--keep", action="store_true", help="leave the fleet running at the end")
    parser.add_argument("--dir", type=Path, help="where to keep state (default: a temporary one)")
    options = parser.parse_args()
    directory = (options.dir or Path(tempfile.mkdtemp(prefix="flotilla-demo-"))).absolute()
    directory.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

    story = Story(directory)
    kept = False
    try:
        story.run()
        kept = options.keep
    except (ClaimError, FleetError) as error:
        print(f"\nThe demo failed: {error}\nLogs are in {directory}", file=sys.stderr)
    finally:
        if not kept:
            story.close()
        result = story.report()
        if options.json:
            options.json.write_text(json.dumps(result, indent=2) + "\n")
    if not result["ok"]:
        return 1
    print(f"\n{report.efficiency(story.summary)}\n\n{report.steps(result)}")
    if kept:
        print(look_around(story))
    elif options.dir is None:
        shutil.rmtree(directory)
    return 0


def look_around(story: Story) -> str:
    """Print how to use the fleet that --keep left running, and how to stop it."""
    processes = [story.server.process, *(box.process for box in story.boxes)]
    pids = " ".join(str(process.popen.pid) for process in processes if process.popen)
    return (
        f"\nStill running. Look around with\n"
        f"  export FLOTILLA_CONTEXT={story.server.directory}/admin.json\n"
        f"  .venv/bin/flotilla device list\n"
        f"  .venv/bin/flotilla device explain {story.boxes[-1].name}\n"
        f"  curl http://{story.boxes[0].gateway}/v1/models\n"
        f"and end it with\n"
        f"  kill {pids}"
    )


if __name__ == "__main__":
    sys.exit(main())
