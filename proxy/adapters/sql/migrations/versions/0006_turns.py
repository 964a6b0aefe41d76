"""The weight of teams that wait for the same upstream, and how long a key's requests wait for their turn."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Add what is new: every team weighs the same, and no key waits."""
    op.add_column("teams", sa.Column("weight", sa.Integer, nullable=False, server_default=sa.text("1")))
    op.add_column("api_keys", sa.Column("max_wait_ms", sa.BigInteger))
