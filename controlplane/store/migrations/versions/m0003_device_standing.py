"""The reason of a device's state, first use of its certificate, and the owner of a key."""

import sqlalchemy as sa
from alembic import op

from controlplane.store.schema import UtcDateTime

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column(
        "devices", sa.Column("state_reason", sa.Text(), nullable=False, server_default="")
    )
    op.add_column("devices", sa.Column("certificate_seen_at", UtcDateTime(), nullable=True))
    op.create_index("ix_devices_public_key", "devices", ["public_key"], unique=False)


def downgrade() -> None:
    op.drop_index("ix_devices_public_key", "devices")
    op.drop_column("devices", "certificate_seen_at")
    op.drop_column("devices", "state_reason")
