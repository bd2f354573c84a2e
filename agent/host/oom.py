"""Whom the kernel ends when memory runs out."""

# Set before Python starts: a child that is still importing would have the daemon's own score, and
# the kernel would end the daemon, which is bigger. Not every container lets it.
_FIRST_TO_GO = 'echo 500 2>/dev/null >/proc/self/oom_score_adj; exec "$0" "$@"'


def first_to_go(*command: str) -> list[str]:
    """The command such that the kernel ends it, not the daemon, when memory runs out."""
    return ["/bin/sh", "-c", _FIRST_TO_GO, *command]
