"""Describe how a process ended."""

import signal


def ending_of(return_code: int) -> str:
    """Describe a return code of ``subprocess``; real-time signals have a number but no name."""
    # subprocess gives minus the signal's number for a process that a signal ended.
    if return_code >= 0:
        return f"exited with code {return_code}"
    try:
        name = signal.Signals(-return_code).name
    except ValueError:
        name = f"signal {-return_code}"
    return f"was ended by {name}"
