"""The newest health report of a device."""

import sqlalchemy as sa
from alembic import op

from controlplane.store.schema import Json, UtcDateTime

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.add_column("devices", sa.Column("health", Json()))
    op.add_column("devices", sa.Column("health_at", UtcDateTime()))


def downgrade() -> None:
    op.drop_column("devices", "health_at")
    op.drop_column("devices", "health")
