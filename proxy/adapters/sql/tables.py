"""The schema, for SQLite and Postgres alike. An empty database gets it at once, an older one by migrations.

Tests hold the two together.

Times are unix milliseconds, money is integer pico-dollars. Text has no length, because names come from clients.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Date,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Numeric,
    SmallInteger,
    String,
    Table,
    Text,
    text,
)

from proxy.core.usage import Usage

__all__ = [
    "api_keys",
    "audit_log",
    "budget_warnings",
    "budgets",
    "cache_salts",
    "config_revision",
    "key_secrets",
    "metadata",
    "model_limits",
    "peppers",
    "spool_offsets",
    "teams",
    "usage_daily",
    "usage_events",
]

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# SQLite has no exact type wider than 64 bits: there a sum ends at nine million dollars.
_SUM = BigInteger().with_variant(Numeric(38, 0), "postgresql")
# On SQLite only an INTEGER primary key counts by itself.
_SERIAL = BigInteger().with_variant(Integer(), "sqlite")

teams = Table(
    "teams",
    metadata,
    Column("name", String, primary_key=True),
    Column("tier", String, nullable=False),
    Column("tier_since_ms", BigInteger, nullable=False),
    Column("requests_per_minute", BigInteger),
    Column("tokens_per_minute", BigInteger),
    Column("request_capacity", BigInteger),
    Column("token_capacity", BigInteger),
    Column("cache_mode", String, nullable=False),
    Column("allow_stateful", Boolean, nullable=False),
    Column("models", JSON(none_as_null=True)),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("cache_secret", LargeBinary, nullable=False),
    Column("max_parallel", BigInteger),
    Column("shadow_tier", String),
    Column("shadow_since_ms", BigInteger),
    Column("weight", Integer, nullable=False, server_default=text("1")),
)

model_limits = Table(
    "model_limits",
    metadata,
    Column("team", String, ForeignKey("teams.name"), primary_key=True),
    Column("model", String, primary_key=True),
    Column("requests_per_minute", BigInteger),
    Column("tokens_per_minute", BigInteger),
)
"""What a team may use of single models; a row has at least one number."""

cache_salts = Table(
    "cache_salts",
    metadata,
    Column("team", String, ForeignKey("teams.name"), primary_key=True),
    Column("model", String, primary_key=True),
    Column("salt", LargeBinary, nullable=False),
)
"""What makes a team's answers of one model those of another request than before; a model never purged has none."""

budgets = Table(
    "budgets",
    metadata,
    Column("team", String, ForeignKey("teams.name"), primary_key=True),
    Column("kid", String, primary_key=True),
    Column("period", String, primary_key=True),
    Column("limit_nano_usd", BigInteger),
    Column("warn_nano_usd", BigInteger),
)
"""What may be spent in each span of a period; `kid` is empty for the team's own. A row has at least one amount."""

budget_warnings = Table(
    "budget_warnings",
    metadata,
    Column("team", String, primary_key=True),
    Column("scope", String, primary_key=True),
    Column("span", String, primary_key=True),
    Column("warn_nano_usd", BigInteger, primary_key=True, autoincrement=False),
    Column("at_ms", BigInteger, nullable=False),
)
"""Which warnings somebody was told of, so that no other process and no restart tells it again."""

api_keys = Table(
    "api_keys",
    metadata,
    Column("kid", String, primary_key=True),
    Column("team", String, ForeignKey("teams.name"), nullable=False),
    Column("label", String, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("expires_at_ms", BigInteger),
    Column("revoked_at_ms", BigInteger),
    Column("models", JSON(none_as_null=True)),
    Column("requests_per_minute", BigInteger),
    Column("tokens_per_minute", BigInteger),
    Column("max_parallel", BigInteger),
    Column("created_by", String, nullable=False, server_default=text("''")),
    Column("last_used_at_ms", BigInteger),
    Column("max_wait_ms", BigInteger),
    Index(None, "team"),
)

key_secrets = Table(
    "key_secrets",
    metadata,
    Column("secret_hash", LargeBinary, primary_key=True),
    Column("kid", String, ForeignKey("api_keys.kid"), nullable=False),
    Column("serial", Integer, nullable=False),
    Column("pepper_id", Integer, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("ends_at_ms", BigInteger),
    Column("imported", Boolean, nullable=False),
    Index(None, "kid"),
)
"""What opens a key; one row for each secret and pepper. An imported key is found by the hash."""

peppers = Table(
    "peppers",
    metadata,
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("fingerprint", LargeBinary, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("retired_at_ms", BigInteger),
)
"""Which peppers keys are hashed under, by what tells them apart: the peppers are kept outside the database."""

config_revision = Table(
    "config_revision",
    metadata,
    Column("id", SmallInteger, primary_key=True, autoincrement=False),
    Column("revision", BigInteger, nullable=False),
)
"""One row, with id 1."""

audit_log = Table(
    "audit_log",
    metadata,
    Column("id", _SERIAL, primary_key=True, autoincrement=True),
    Column("at_ms", BigInteger, nullable=False),
    Column("actor", String, nullable=False),
    Column("action", String, nullable=False),
    Column("subject", String, nullable=False),
    Column("details", Text, nullable=False),
    Column("team", String),
    Index(None, "at_ms"),
)
"""Who did what, when, to which team or key. `details` is JSON, never a secret."""

_TOKENS = Usage.__struct_fields__

usage_events = Table(
    "usage_events",
    metadata,
    Column("day", Date, primary_key=True),
    Column("event_id", String, primary_key=True),
    Column("at_ms", BigInteger, nullable=False),
    Column("request_id", String, nullable=False),
    Column("team", String, nullable=False),
    Column("key_id", String, nullable=False),
    Column("endpoint", String, nullable=False),
    Column("model", String, nullable=False),
    Column("upstream", String, nullable=False),
    Column("status", SmallInteger, nullable=False),
    Column("outcome", String, nullable=False),
    *(Column(kind, BigInteger, nullable=False) for kind in _TOKENS),
    Column("cost_pico_usd", BigInteger, nullable=False),
    Column("saved_pico_usd", BigInteger, nullable=False),
    Column("price_id", String),
    Column("estimated", Boolean, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("duration_ms", BigInteger, nullable=False),
    Index(None, "day", "team", "at_ms"),
)
"""The ledger. Rows are added, never changed; `day` is the UTC day in which `event_id` was made.

Every index begins with the day, so that events are added to pages of today, however many there are.
"""

usage_daily = Table(
    "usage_daily",
    metadata,
    Column("day", Date, primary_key=True),
    Column("team", String, primary_key=True),
    Column("key_id", String, primary_key=True),
    Column("model", String, primary_key=True),
    Column("upstream", String, primary_key=True),
    Column("endpoint", String, primary_key=True),
    Column("requests", BigInteger, nullable=False),
    Column("cached", BigInteger, nullable=False),
    Column("estimated", BigInteger, nullable=False),
    *(Column(kind, BigInteger, nullable=False) for kind in _TOKENS),
    Column("cost_pico_usd", _SUM, nullable=False),
    Column("saved_pico_usd", _SUM, nullable=False),
    Column("saved_input_tokens", BigInteger, nullable=False, server_default=text("0")),
    Column("saved_output_tokens", BigInteger, nullable=False, server_default=text("0")),
    Index(None, "team", "day"),
    Index(None, "key_id", "day"),
)
"""Always the group-by of `usage_events`, as `measures.py` writes it: tokens are those used, hits are in `saved_*`."""

spool_offsets = Table(
    "spool_offsets",
    metadata,
    Column("segment", String, primary_key=True),
    Column("offset_bytes", BigInteger, nullable=False),
)
"""How far each spool segment has been taken over; moves on in the transaction that took it."""
