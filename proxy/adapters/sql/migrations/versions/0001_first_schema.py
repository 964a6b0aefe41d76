"""Teams, keys, ledger."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_TOKEN_KINDS = (
    "input_tokens",
    "output_tokens",
    "cached_input_tokens",
    "cache_write_tokens",
    "reasoning_tokens",
    "audio_input_tokens",
    "audio_output_tokens",
)


def upgrade() -> None:
    """Make the schema from nothing."""
    _registry()
    _ledger()


def _registry() -> None:
    op.create_table(
        "teams",
        sa.Column("name", sa.String, nullable=False),
        sa.Column("tier", sa.String, nullable=False),
        sa.Column("tier_since_ms", sa.BigInteger, nullable=False),
        sa.Column("requests_per_minute", sa.BigInteger),
        sa.Column("tokens_per_minute", sa.BigInteger),
        sa.Column("request_capacity", sa.BigInteger),
        sa.Column("token_capacity", sa.BigInteger),
        sa.Column("cache_mode", sa.String, nullable=False),
        sa.Column("allow_stateful", sa.Boolean, nullable=False),
        sa.Column("models", sa.JSON),
        sa.Column("created_at_ms", sa.BigInteger, nullable=False),
        sa.Column("cache_secret", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_teams"),
    )
    op.create_table(
        "api_keys",
        sa.Column("kid", sa.String, nullable=False),
        sa.Column("team", sa.String, nullable=False),
        sa.Column("label", sa.String, nullable=False),
        sa.Column("created_at_ms", sa.BigInteger, nullable=False),
        sa.Column("expires_at_ms", sa.BigInteger),
        sa.Column("revoked_at_ms", sa.BigInteger),
        sa.Column("models", sa.JSON),
        sa.Column("pepper_id", sa.Integer, nullable=False),
        sa.Column("secret_hash", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("kid", name="pk_api_keys"),
        sa.ForeignKeyConstraint(["team"], ["teams.name"], name="fk_api_keys_team"),
    )
    op.create_index("ix_api_keys_team", "api_keys", ["team"])
    revision_table = op.create_table(
        "config_revision",
        sa.Column("id", sa.SmallInteger, autoincrement=False, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_config_revision"),
    )
    op.bulk_insert(revision_table, [{"id": 1, "revision": 0}])
    op.create_table(
        "audit_log",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("actor", sa.String, nullable=False),
        sa.Column("action", sa.String, nullable=False),
        sa.Column("subject", sa.String, nullable=False),
        sa.Column("details", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_audit_log"),
    )


def _ledger() -> None:
    total = sa.BigInteger().with_variant(sa.Numeric(38, 0), "postgresql")
    op.create_table(
        "usage_events",
        sa.Column("day", sa.Date, nullable=False),
        sa.Column("event_id", sa.String, nullable=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("request_id", sa.String, nullable=False),
        sa.Column("team", sa.String, nullable=False),
        sa.Column("key_id", sa.String, nullable=False),
        sa.Column("endpoint", sa.String, nullable=False),
        sa.Column("model", sa.String, nullable=False),
        sa.Column("upstream", sa.String, nullable=False),
        sa.Column("status", sa.SmallInteger, nullable=False),
        sa.Column("outcome", sa.String, nullable=False),
        *(sa.Column(kind, sa.BigInteger, nullable=False) for kind in _TOKEN_KINDS),
        sa.Column("cost_pico_usd", sa.BigInteger, nullable=False),
        sa.Column("saved_pico_usd", sa.BigInteger, nullable=False),
        sa.Column("price_id", sa.String),
        sa.Column("estimated", sa.Boolean, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("duration_ms", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("day", "event_id", name="pk_usage_events"),
    )
    op.create_table(
        "usage_daily",
        sa.Column("day", sa.Date, nullable=False),
        sa.Column("team", sa.String, nullable=False),
        sa.Column("key_id", sa.String, nullable=False),
        sa.Column("model", sa.String, nullable=False),
        sa.Column("upstream", sa.String, nullable=False),
        sa.Column("endpoint", sa.String, nullable=False),
        sa.Column("requests", sa.BigInteger, nullable=False),
        sa.Column("cached", sa.BigInteger, nullable=False),
        sa.Column("estimated", sa.BigInteger, nullable=False),
        *(sa.Column(kind, sa.BigInteger, nullable=False) for kind in _TOKEN_KINDS),
        sa.Column("cost_pico_usd", total, nullable=False),
        sa.Column("saved_pico_usd", total, nullable=False),
        sa.PrimaryKeyConstraint("day", "team", "key_id", "model", "upstream", "endpoint", name="pk_usage_daily"),
    )
    op.create_table(
        "spool_offsets",
        sa.Column("segment", sa.String, nullable=False),
        sa.Column("offset_bytes", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("segment", name="pk_spool_offsets"),
    )
