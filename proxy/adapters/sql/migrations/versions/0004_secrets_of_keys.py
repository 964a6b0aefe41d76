"""Several secrets for one key, who made a key and when it was used, fingerprints of peppers, the audit log by team."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Move the secret of each key to a row of its own; say of the changes so far which team they concerned."""
    op.create_table(
        "key_secrets",
        sa.Column("secret_hash", sa.LargeBinary, nullable=False),
        sa.Column("kid", sa.String, nullable=False),
        sa.Column("serial", sa.Integer, nullable=False),
        sa.Column("pepper_id", sa.Integer, nullable=False),
        sa.Column("created_at_ms", sa.BigInteger, nullable=False),
        sa.Column("ends_at_ms", sa.BigInteger),
        sa.Column("imported", sa.Boolean, nullable=False),
        sa.PrimaryKeyConstraint("secret_hash", name="pk_key_secrets"),
        sa.ForeignKeyConstraint(["kid"], ["api_keys.kid"], name="fk_key_secrets_kid"),
    )
    op.create_index("ix_key_secrets_kid", "key_secrets", ["kid"])
    op.execute(
        "INSERT INTO key_secrets (secret_hash, kid, serial, pepper_id, created_at_ms, imported) "
        "SELECT secret_hash, kid, 1, pepper_id, created_at_ms, false FROM api_keys"
    )
    op.drop_column("api_keys", "secret_hash")
    op.drop_column("api_keys", "pepper_id")
    op.add_column("api_keys", sa.Column("created_by", sa.String, nullable=False, server_default=sa.text("''")))
    op.add_column("api_keys", sa.Column("last_used_at_ms", sa.BigInteger))
    op.execute(
        "UPDATE api_keys SET created_by = coalesce("
        "(SELECT min(actor) FROM audit_log WHERE subject = kid AND action IN ('key.issue', 'key.rotate')), '')"
    )
    op.create_table(
        "peppers",
        sa.Column("version", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("fingerprint", sa.LargeBinary, nullable=False),
        sa.Column("created_at_ms", sa.BigInteger, nullable=False),
        sa.Column("retired_at_ms", sa.BigInteger),
        sa.PrimaryKeyConstraint("version", name="pk_peppers"),
    )
    op.add_column("audit_log", sa.Column("team", sa.String))
    op.create_index("ix_audit_log_at_ms", "audit_log", ["at_ms"])
    op.execute(
        "UPDATE audit_log SET team = CASE WHEN action LIKE 'key.%' "
        "THEN (SELECT team FROM api_keys WHERE kid = subject) ELSE subject END"
    )
