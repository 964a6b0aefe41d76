"""What a day's cached answers saved, apart from what was used; salts that forget a team's answers of one model."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_TOKEN_KINDS = (
    "input_tokens",
    "output_tokens",
    "cached_input_tokens",
    "cache_write_tokens",
    "reasoning_tokens",
    "audio_input_tokens",
    "audio_output_tokens",
)
_SAVED = {"saved_input_tokens": "input_tokens", "saved_output_tokens": "output_tokens"}
_DAILY_KEY = ("day", "team", "key_id", "model", "upstream", "endpoint")


def upgrade() -> None:
    """Add what is new, and take the tokens of cached answers out of what the days so far count as used."""
    op.create_table(
        "cache_salts",
        sa.Column("team", sa.String, nullable=False),
        sa.Column("model", sa.String, nullable=False),
        sa.Column("salt", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("team", "model", name="pk_cache_salts"),
        sa.ForeignKeyConstraint(["team"], ["teams.name"], name="fk_cache_salts_team"),
    )
    for name in _SAVED:
        op.add_column("usage_daily", sa.Column(name, sa.BigInteger, nullable=False, server_default=sa.text("0")))
    op.execute(_move_savings())


def _move_savings() -> str:
    sums = ", ".join(f"sum({kind}) AS {kind}" for kind in _TOKEN_KINDS)
    changes = [f"{kind} = usage_daily.{kind} - hits.{kind}" for kind in _TOKEN_KINDS]
    changes += [f"{name} = hits.{kind}" for name, kind in _SAVED.items()]
    keys = ", ".join(_DAILY_KEY)
    same = " AND ".join(f"usage_daily.{name} = hits.{name}" for name in _DAILY_KEY)
    return (
        f"UPDATE usage_daily SET {', '.join(changes)} FROM "  # noqa: S608 - put together of names in this file alone
        f"(SELECT {keys}, {sums} FROM usage_events WHERE outcome = 'cached' GROUP BY {keys}) AS hits WHERE {same}"
    )
