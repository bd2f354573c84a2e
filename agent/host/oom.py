"""Preference of the kernel's OOM killer for helper processes over the daemon."""

# Set before Python starts: while a child imports it would still have the daemon's score, and the
# kernel would kill the daemon, which is larger. Some containers forbid the write.
_RAISE_SCORE = 'echo 500 2>/dev/null >/proc/self/oom_score_adj; exec "$0" "$@"'


def with_raised_oom_score(*command: str) -> list[str]:
    """Wrap a command so that the OOM killer prefers it to the daemon."""
    return ["/bin/sh", "-c", _RAISE_SCORE, *command]
