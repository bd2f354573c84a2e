"""All tables, so that migrations can be compared with the code."""

from controlplane.store.api_tokens import API_TOKENS
from controlplane.store.assignments import ASSIGNMENTS
from controlplane.store.audit import AUDIT
from controlplane.store.devices import DEVICES
from controlplane.store.join_tokens import JOIN_TOKEN_USES, JOIN_TOKENS
from controlplane.store.receipts import RECEIPTS
from controlplane.store.releases import RELEASES
from controlplane.store.requests import REQUESTS
from controlplane.store.rollout_devices import ROLLOUT_DEVICES
from controlplane.store.rollouts import ROLLOUTS
from controlplane.store.schema import METADATA
from controlplane.store.telemetry import WINDOWS
from controlplane.store.trust_metadata import TRUST_METADATA

TABLES = (
    API_TOKENS,
    ASSIGNMENTS,
    AUDIT,
    DEVICES,
    JOIN_TOKENS,
    JOIN_TOKEN_USES,
    RECEIPTS,
    RELEASES,
    REQUESTS,
    ROLLOUTS,
    ROLLOUT_DEVICES,
    TRUST_METADATA,
    WINDOWS,
)

__all__ = ["METADATA", "TABLES"]
