"""Through which route the requests of a window came, and how many a cascade passed on."""

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
