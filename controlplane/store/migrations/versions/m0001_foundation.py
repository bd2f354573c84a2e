"""Devices, tokens, releases, trust, receipts, telemetry, audit."""

import sqlalchemy as sa
from alembic import op

from controlplane.store.schema import UtcDateTime

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "api_tokens",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("secret_sha256", sa.String(length=64), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("expires_at", UtcDateTime(), nullable=True),
        sa.Column("revoked", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_api_tokens"),
        sa.UniqueConstraint("secret_sha256", name="uq_api_tokens_secret_sha256"),
    )
    op.create_table(
        "audit_events",
        sa.Column("sequence", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("at", UtcDateTime(), nullable=False),
        sa.Column("actor", sa.String(length=128), nullable=False),
        sa.Column("action", sa.String(length=64), nullable=False),
        sa.Column("subject", sa.String(length=256), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("sequence", name="pk_audit_events"),
    )
    op.create_table(
        "devices",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("labels", sa.JSON(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("enrolled_at", UtcDateTime(), nullable=False),
        sa.Column("public_key", sa.LargeBinary(), nullable=False),
        sa.Column("certificate_serial", sa.String(length=40), nullable=False),
        sa.Column("previous_serial", sa.String(length=40), nullable=True),
        sa.Column("certificate_expires_at", UtcDateTime(), nullable=False),
        sa.Column("hardware_class", sa.String(length=32), nullable=False),
        sa.Column("facts", sa.JSON(), nullable=False),
        sa.Column("agent_version", sa.String(length=64), nullable=False),
        sa.Column("boot_id", sa.String(length=64), nullable=False),
        sa.Column("session", sa.String(length=32), nullable=True),
        sa.Column("last_seen_at", UtcDateTime(), nullable=True),
        sa.Column("update_generation", sa.BigInteger(), nullable=False),
        sa.Column("update_state", sa.String(length=16), nullable=False),
        sa.Column("update_detail", sa.Text(), nullable=False),
        sa.Column("bytes_done", sa.BigInteger(), nullable=False),
        sa.Column("bytes_total", sa.BigInteger(), nullable=False),
        sa.Column("current_release", sa.String(length=256), nullable=False),
        sa.Column("last_good_release", sa.String(length=256), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_devices"),
        sa.UniqueConstraint("name", name="uq_devices_name"),
    )
    op.create_table(
        "join_tokens",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("secret_sha256", sa.String(length=64), nullable=False),
        sa.Column("uses_left", sa.Integer(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("expires_at", UtcDateTime(), nullable=False),
        sa.Column("revoked", sa.Boolean(), nullable=False),
        sa.Column("labels", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_join_tokens"),
        sa.UniqueConstraint("secret_sha256", name="uq_join_tokens_secret_sha256"),
    )
    op.create_table(
        "releases",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("reference", sa.String(length=256), nullable=False),
        sa.Column("counter", sa.BigInteger(), nullable=False),
        sa.Column("manifest", sa.LargeBinary(), nullable=False),
        sa.Column("manifest_sha256", sa.String(length=64), nullable=False),
        sa.Column("published_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_releases"),
        sa.UniqueConstraint("reference", name="uq_releases_reference"),
    )
    op.create_table(
        "requests",
        sa.Column("actor", sa.String(length=128), nullable=False),
        sa.Column("request_id", sa.String(length=128), nullable=False),
        sa.Column("action", sa.String(length=64), nullable=False),
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("subject", sa.String(length=256), nullable=False),
        sa.Column("at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("actor", "request_id", name="pk_requests"),
    )
    op.create_table(
        "trust_metadata",
        sa.Column("role", sa.String(length=64), nullable=False),
        sa.Column("version", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("name", sa.String(length=96), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.Column("stored_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("role", "version", name="pk_trust_metadata"),
    )
    op.create_index("ix_trust_metadata_name", "trust_metadata", ["name"], unique=False)
    op.create_table(
        "assignments",
        sa.Column("device_id", sa.String(length=32), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("release", sa.String(length=256), nullable=False),
        sa.Column("manifest_sha256", sa.String(length=64), nullable=False),
        sa.Column("assigned_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(["device_id"], ["devices.id"], name="fk_assignments_device_id"),
        sa.PrimaryKeyConstraint("device_id", name="pk_assignments"),
    )
    op.create_table(
        "join_token_uses",
        sa.Column("token_id", sa.String(length=32), nullable=False),
        sa.Column("key_sha256", sa.String(length=64), nullable=False),
        sa.Column("device_id", sa.String(length=32), nullable=False),
        sa.ForeignKeyConstraint(["device_id"], ["devices.id"], name="fk_join_token_uses_device_id"),
        sa.ForeignKeyConstraint(
            ["token_id"], ["join_tokens.id"], name="fk_join_token_uses_token_id"
        ),
        sa.PrimaryKeyConstraint("token_id", "key_sha256", name="pk_join_token_uses"),
    )
    op.create_table(
        "receipts",
        sa.Column("device_id", sa.String(length=32), nullable=False),
        sa.Column("generation", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("release", sa.String(length=256), nullable=False),
        sa.Column("outcome", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.String(length=128), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("bytes_downloaded", sa.BigInteger(), nullable=False),
        sa.Column("switch_seconds", sa.Float(), nullable=False),
        sa.Column("decisions", sa.JSON(), nullable=False),
        sa.Column("checks", sa.JSON(), nullable=False),
        sa.Column("finished_at", UtcDateTime(), nullable=False),
        sa.Column("received_at", UtcDateTime(), nullable=False),
        sa.Column("current_release", sa.String(length=256), nullable=False),
        sa.Column("last_good_release", sa.String(length=256), nullable=False),
        sa.Column("signed", sa.LargeBinary(), nullable=False),
        sa.Column("signature", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["device_id"], ["devices.id"], name="fk_receipts_device_id"),
        sa.PrimaryKeyConstraint("device_id", "generation", name="pk_receipts"),
    )
    op.create_table(
        "telemetry_windows",
        sa.Column("device_id", sa.String(length=32), nullable=False),
        sa.Column("boot_id", sa.String(length=64), nullable=False),
        sa.Column("sequence", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("started_at", UtcDateTime(), nullable=False),
        sa.Column("duration_seconds", sa.Float(), nullable=False),
        sa.Column("release", sa.String(length=256), nullable=False),
        sa.Column("slot", sa.String(length=256), nullable=False),
        sa.Column("model_version", sa.String(length=256), nullable=False),
        sa.Column("variant", sa.String(length=256), nullable=False),
        sa.Column("runtime", sa.String(length=256), nullable=False),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.Column("errors", sa.BigInteger(), nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger(), nullable=False),
        sa.Column("generated_tokens", sa.BigInteger(), nullable=False),
        sa.Column("prefill_seconds", sa.Float(), nullable=False),
        sa.Column("decode_seconds", sa.Float(), nullable=False),
        sa.Column("ttft_seconds", sa.JSON(), nullable=False),
        sa.Column("latency_seconds", sa.JSON(), nullable=False),
        sa.Column("peak_memory_bytes", sa.BigInteger(), nullable=False),
        sa.Column("worker_restarts", sa.Integer(), nullable=False),
        sa.Column("throttled_seconds", sa.Float(), nullable=False),
        sa.Column("joules", sa.Float(), nullable=True),
        sa.Column("energy_source", sa.String(length=16), nullable=True),
        sa.Column("energy_scope", sa.String(length=16), nullable=True),
        sa.Column("energy_method", sa.String(length=16), nullable=True),
        sa.ForeignKeyConstraint(
            ["device_id"], ["devices.id"], name="fk_telemetry_windows_device_id"
        ),
        sa.PrimaryKeyConstraint("device_id", "boot_id", "sequence", name="pk_telemetry_windows"),
    )
    op.create_index(
        "ix_telemetry_windows_started_at", "telemetry_windows", ["started_at"], unique=False
    )


def downgrade() -> None:
    # Tables with foreign keys go before those that they point to.
    for table in (
        "telemetry_windows",
        "receipts",
        "join_token_uses",
        "assignments",
        "trust_metadata",
        "requests",
        "releases",
        "join_tokens",
        "devices",
        "audit_events",
        "api_tokens",
    ):
        op.drop_table(table)
