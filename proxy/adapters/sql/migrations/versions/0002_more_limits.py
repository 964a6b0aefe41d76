"""Limits of keys and of single models, requests under way at one time, shadow tiers."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add what is new; all of it may be absent, so that rows need no change."""
    op.add_column("teams", sa.Column("max_parallel", sa.BigInteger))
    op.add_column("teams", sa.Column("shadow_tier", sa.String))
    op.add_column("teams", sa.Column("shadow_since_ms", sa.BigInteger))
    for limit in ("requests_per_minute", "tokens_per_minute", "max_parallel"):
        op.add_column("api_keys", sa.Column(limit, sa.BigInteger))
    op.create_table(
        "model_limits",
        sa.Column("team", sa.String, nullable=False),
        sa.Column("model", sa.String, nullable=False),
        sa.Column("requests_per_minute", sa.BigInteger),
        sa.Column("tokens_per_minute", sa.BigInteger),
        sa.PrimaryKeyConstraint("team", "model", name="pk_model_limits"),
        sa.ForeignKeyConstraint(["team"], ["teams.name"], name="fk_model_limits_team"),
    )
