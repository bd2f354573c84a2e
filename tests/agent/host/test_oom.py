"""Helper processes have a higher OOM score than the daemon."""

import subprocess

from agent.host.oom import with_raised_oom_score


def test_a_child_is_the_kernels_first_choice_from_its_first_instruction() -> None:
    command = with_raised_oom_score("cat", "/proc/self/oom_score_adj", "/dev/null")
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    assert (result.stdout, result.stderr) == ("500\n", "")
