"""The route of a window's requests, and the number that a cascade escalated."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column(
        "telemetry_windows",
        sa.Column("route", sa.String(256), nullable=False, server_default=""),
    )
    op.add_column(
        "telemetry_windows",
        sa.Column("escalations", sa.BigInteger(), nullable=False, server_default="0"),
    )


def downgrade() -> None:
    op.drop_column("telemetry_windows", "escalations")
    op.drop_column("telemetry_windows", "route")
