"""Budgets of teams and keys, who was told of them, and the indexes that what was spent is read by."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Add what is new; without rows in it nothing is any different."""
    op.create_table(
        "budgets",
        sa.Column("team", sa.String, nullable=False),
        sa.Column("kid", sa.String, nullable=False),
        sa.Column("period", sa.String, nullable=False),
        sa.Column("limit_nano_usd", sa.BigInteger),
        sa.Column("warn_nano_usd", sa.BigInteger),
        sa.PrimaryKeyConstraint("team", "kid", "period", name="pk_budgets"),
        sa.ForeignKeyConstraint(["team"], ["teams.name"], name="fk_budgets_team"),
    )
    op.create_table(
        "budget_warnings",
        sa.Column("team", sa.String, nullable=False),
        sa.Column("scope", sa.String, nullable=False),
        sa.Column("span", sa.String, nullable=False),
        sa.Column("warn_nano_usd", sa.BigInteger, nullable=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("team", "scope", "span", "warn_nano_usd", name="pk_budget_warnings"),
    )
    op.create_index("ix_usage_daily_team_day", "usage_daily", ["team", "day"])
    op.create_index("ix_usage_daily_key_id_day", "usage_daily", ["key_id", "day"])
    op.create_index("ix_usage_events_team_at_ms", "usage_events", ["team", "at_ms"])
