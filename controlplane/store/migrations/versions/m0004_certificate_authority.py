"""The authority that issued a device's certificate."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column(
        "devices",
        sa.Column("certificate_authority", sa.String(64), nullable=False, server_default=""),
    )


def downgrade() -> None:
    op.drop_column("devices", "certificate_authority")
