"""Faults of the box and of its link, as opposed to faults of a release."""

from typing import Final

from agent.errors import DiskFullError, DownloadError, SlowDownloadError
from artifact.errors import ClockSetBackError, ExpiredMetadataError

# Reasons of receipts that say nothing about the release. The server knows the same ones
# (controlplane.services.ingest).
DEVICE_FAULTS: Final = frozenset(
    {
        "clock_set_back",
        "disk_failed",
        "disk_full",
        "download_too_slow",
        "interrupted",
        "metadata_expired",
        "server_unreachable",
    }
)
# Faults that often end by themselves or by an operator's hand, while the update waits.
TRANSIENT: Final = (ClockSetBackError, DiskFullError, ExpiredMetadataError, SlowDownloadError)


def reason_of(error: Exception) -> str:
    """Return the machine-readable reason of a fault in TRANSIENT."""
    match error:
        case ExpiredMetadataError():
            return "metadata_expired"
        case ClockSetBackError():
            return "clock_set_back"
        case DownloadError():
            return error.reason
    raise error


def is_device_fault(reason: str) -> bool:
    """Return True if an update that ended for ``reason`` says nothing about its release."""
    return reason in DEVICE_FAULTS
