"""The durable state of the agent, kept in two copies on the disk."""

from agent.journal.documents import (
    Assignment,
    CheckResult,
    HeldRelease,
    Pointers,
    Receipt,
    SlotPlan,
    Update,
    reference_of,
)
from agent.journal.journal import Journal

__all__ = [
    "Assignment",
    "CheckResult",
    "HeldRelease",
    "Journal",
    "Pointers",
    "Receipt",
    "SlotPlan",
    "Update",
    "reference_of",
]
