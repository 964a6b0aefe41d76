"""Whatever changes anything is in the audit log: once, in the same transaction, with nothing secret in it."""

import json

import pytest
from sqlalchemy import event, select

from proxy.adapters.secrets import load_or_create_pepper
from proxy.adapters.sql.registry import SqlRegistry
from proxy.adapters.sql.tables import audit_log, metadata
from proxy.core.audit import AuditEntry
from proxy.core.budget import Period
from proxy.core.errors import StoreAway
from proxy.core.registry import Registry, RegistryError, TeamUnknown

FROM_ELSEWHERE = "key-from-elsewhere-0123456789"
MONTHLY = {Period.MONTH: {"limit_nano_usd": 5, "warn_nano_usd": 4}}
READERS = {"get_team", "get_key", "list_teams", "list_keys", "list_peppers", "list_audit", "budgets_spent"}
FOR_GAUGES = {"spent_by_team", "team_budgets", "team_names"}
"""Read by the server itself, and by nobody who manages."""


@pytest.fixture
def peppers(tmp_path):
    return load_or_create_pepper(tmp_path / "secrets")


@pytest.fixture
def registry(engine, clock, peppers):
    """With a team, a key, and an old pepper that no key needs."""
    registry = SqlRegistry(engine, clock, peppers, actor="cli:ada")
    registry.rotate_pepper()
    registry.add_team("growth", "free")
    registry.issue_key("growth", "ci")
    return registry


def kid_in(registry):
    return registry.list_keys()[0].kid


CHANGES = {
    "add_team": lambda registry: registry.add_team("research", "payg", tokens_per_minute=70, budgets=MONTHLY),
    "set_team": lambda registry: registry.set_team("growth", budgets=MONTHLY),
    "set_model_limit": lambda registry: registry.set_model_limit("growth", "gpt-5", 10),
    "purge_cache": lambda registry: registry.purge_cache("growth"),
    "issue_key": lambda registry: registry.issue_key("growth", "ci", models=frozenset({"gpt-5"}), budgets=MONTHLY),
    "import_keys": lambda registry: registry.import_keys("growth", [FROM_ELSEWHERE, FROM_ELSEWHERE + "0"]),
    "set_key": lambda registry: registry.set_key(kid_in(registry), budgets=MONTHLY),
    "rotate_key": lambda registry: registry.rotate_key(kid_in(registry), 1_000),
    "revoke_key": lambda registry: registry.revoke_key(kid_in(registry)),
    "rotate_pepper": lambda registry: registry.rotate_pepper(),
    "retire_pepper": lambda registry: registry.retire_pepper(1),
}
"""How each method that changes something is called; the fixture has what it needs."""

TOLD = {
    "add_team": ("team.add", "research", "research"),
    "set_team": ("team.set", "growth", "growth"),
    "set_model_limit": ("team.limit", "growth", "growth"),
    "purge_cache": ("cache.purge", "growth", "growth"),
    "issue_key": ("key.issue", "*", "growth"),
    "import_keys": ("key.import", "growth", "growth"),
    "set_key": ("key.set", "*", "growth"),
    "rotate_key": ("key.rotate", "*", "growth"),
    "revoke_key": ("key.revoke", "*", "growth"),
    "rotate_pepper": ("pepper.rotate", "3", None),
    "retire_pepper": ("pepper.retire", "1", None),
}


def methods_of(kind):
    return {name for name in dir(kind) if not name.startswith("_") and callable(getattr(kind, name))}


def state_of(engine, *, without=()):
    with engine.connect() as connection:
        return {
            table.name: sorted(map(repr, connection.execute(select(table))))
            for table in metadata.sorted_tables
            if table.name not in without
        }


def revision_of(engine):
    return state_of(engine)["config_revision"]


def rows_of(engine):
    with engine.connect() as connection:
        return connection.execute(select(audit_log).order_by(audit_log.c.id)).mappings().all()


def test_every_method_is_known_to_read_or_to_change():
    assert methods_of(Registry) | FOR_GAUGES == methods_of(SqlRegistry)
    assert methods_of(Registry) == READERS | CHANGES.keys()
    assert not READERS & CHANGES.keys()
    assert CHANGES.keys() == TOLD.keys()


@pytest.mark.parametrize("method", sorted(CHANGES))
def test_a_change_is_one_line_of_the_log_in_its_own_transaction(registry, engine, clock, method):
    transactions = [[]]
    for end in ("commit", "rollback"):
        event.listen(engine, end, lambda connection: transactions.append([]))
    event.listen(engine, "before_cursor_execute", lambda _c, _cursor, statement, *_: transactions[-1].append(statement))
    before, rows, revision = state_of(engine), rows_of(engine), revision_of(engine)
    transactions[:] = [[]]
    CHANGES[method](registry)
    added = rows_of(engine)[len(rows) :]
    assert len(added) == 1
    assert rows_of(engine)[: len(rows)] == rows
    assert revision_of(engine) != revision
    action, subject, team = TOLD[method]
    (row,) = added
    assert (row["actor"], row["action"], row["team"], row["at_ms"]) == ("cli:ada", action, team, clock.ms)
    assert row["subject"] == subject if subject != "*" else row["subject"] in {key.kid for key in registry.list_keys()}
    after = state_of(engine)
    changed = {name for name in after if after[name] != before[name]} - {"audit_log", "config_revision"}
    assert changed, "it did something"
    writers = [each for each in transactions if any(is_writing(statement) for statement in each)]
    assert len(writers) == 1
    for table in (*changed, "audit_log", "config_revision"):
        assert any(is_writing(statement) and table in statement for statement in writers[0])


def is_writing(statement):
    return statement.startswith(("INSERT", "UPDATE", "DELETE"))


@pytest.mark.parametrize("method", sorted(CHANGES))
def test_a_change_that_cannot_be_audited_does_not_happen(registry, engine, method):
    before = state_of(engine)
    full = {
        "sqlite": "CREATE TRIGGER full_log BEFORE INSERT ON audit_log BEGIN SELECT RAISE(ABORT, 'full'); END",
        "postgresql": "ALTER TABLE audit_log ADD CONSTRAINT full_log CHECK (false) NOT VALID",
    }
    with engine.begin() as connection:
        connection.exec_driver_sql(full[engine.dialect.name])
    with pytest.raises(StoreAway):
        CHANGES[method](registry)
    assert state_of(engine) == before


def test_reading_and_changing_nothing_are_not_in_the_log(registry, engine):
    before = state_of(engine)
    registry.get_team("growth")
    registry.list_teams()
    registry.list_keys("growth")
    registry.list_peppers()
    registry.list_audit()
    registry.set_team("growth")
    registry.set_key(kid_in(registry))
    registry.set_model_limit("growth", "never-limited")
    for refused in (
        lambda: registry.add_team("growth", "free"),
        lambda: registry.issue_key("nobody"),
        lambda: registry.import_keys("growth", ["weak"]),
        lambda: registry.rotate_key("000000000000"),
        lambda: registry.retire_pepper(2),
    ):
        with pytest.raises(RegistryError):
            refused()
    assert state_of(engine) == before


def test_no_secret_is_in_the_log(registry, engine, peppers):
    issued = registry.issue_key("growth")
    rotated = registry.rotate_key(issued.record.kid)
    for change in CHANGES.values():
        change(registry)
    told = repr(rows_of(engine))
    for secret in (issued.key[19:], rotated.key[19:], FROM_ELSEWHERE):
        assert secret not in told
        assert secret.encode().hex() not in told
    for pepper in peppers.latest().secrets.values():
        assert pepper.hex() not in told
    for team in registry.list_teams():
        assert team.cache_secret.hex() not in told
    for record in registry.list_keys():
        for secret in record.secrets:
            assert secret.secret_hash.hex() not in told


def test_the_log_is_read_by_time_and_team(registry, engine, clock, peppers):
    began_ms = clock.ms
    clock.ms += 1_000
    other = SqlRegistry(engine, clock, peppers, actor="server")
    other.add_team("research", "free", models=frozenset({"gpt-5"}))
    clock.ms += 1_000
    kid = other.issue_key("research").record.kid
    everything = registry.list_audit()
    assert [entry.action for entry in everything] == [
        *("pepper.rotate", "team.add", "key.issue", "team.add", "key.issue")
    ]  # fmt: skip
    assert [entry.actor for entry in everything] == ["cli:ada"] * 3 + ["server"] * 2
    assert registry.list_audit(since_ms=began_ms + 1_000) == everything[3:]
    assert registry.list_audit(since_ms=began_ms + 1_001) == everything[4:]
    assert registry.list_audit(until_ms=began_ms + 1_000) == everything[:3]
    assert registry.list_audit(began_ms + 1_000, began_ms + 2_000) == everything[3:4]
    assert registry.list_audit(team="research") == everything[3:]
    assert [entry.action for entry in registry.list_audit(team="growth")] == ["team.add", "key.issue"]
    added = everything[3]
    assert added == AuditEntry(began_ms + 1_000, "server", "team.add", "research", "research", added.details)
    assert added.details["models"] == ["gpt-5"]
    assert everything[4].subject == kid
    with pytest.raises(TeamUnknown):
        registry.list_audit(team="nobody")


def test_details_are_json(registry, engine):
    for change in CHANGES.values():
        change(registry)
    assert all(isinstance(json.loads(row["details"]), dict) for row in rows_of(engine))
