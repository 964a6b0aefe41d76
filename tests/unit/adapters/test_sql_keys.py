"""Keys in numbers, and keys from elsewhere, on each database."""

import pytest
from sqlalchemy import event, select, text

from proxy.adapters.secrets import load_or_create_pepper
from proxy.adapters.sql.key_store import SqlKeyStore
from proxy.adapters.sql.registry import SqlRegistry
from proxy.adapters.sql.tables import api_keys, audit_log, key_secrets
from proxy.core.keys import parse
from proxy.core.registry import BadLine, BadValue, TeamUnknown
from proxy.core.tiers import Limits

TEXTS = ["sk-proj-abcdefghijklmnop", "my team key number one", "schlüssel-mit-ümlaut-0123"]


@pytest.fixture
def peppers(tmp_path):
    return load_or_create_pepper(tmp_path / "secrets")


@pytest.fixture
def registry(engine, clock, peppers):
    registry = SqlRegistry(engine, clock, peppers, actor="ada")
    registry.add_team("growth", "free")
    return registry


@pytest.fixture
def statements(engine):
    seen = []
    event.listen(engine, "before_cursor_execute", lambda _connection, _cursor, statement, *_: seen.append(statement))
    return seen


def everything_in(engine):
    with engine.connect() as connection:
        return "".join(repr(connection.execute(select(table)).all()) for table in (api_keys, key_secrets, audit_log))


async def found(engine, peppers, key):
    return await SqlKeyStore(engine).find_imported(list(peppers.latest().hashes(key).values()))


async def test_imported_keys_are_found_by_what_they_are_and_kept_as_hashes(registry, engine, clock, peppers):
    records = registry.import_keys(
        "growth", TEXTS, "legacy", clock.ms + 1_000, frozenset({"gpt-5"}), requests_per_minute=7, max_parallel=2
    )
    assert registry.list_keys() == sorted(records, key=lambda record: record.kid)
    for key, record in zip(TEXTS, records, strict=True):
        assert (record.label, record.models, record.limits) == ("legacy", frozenset({"gpt-5"}), Limits(7))
        assert (record.max_parallel, record.expires_at_ms, record.created_by) == (2, clock.ms + 1_000, "ada")
        assert [secret.imported for secret in record.secrets] == [True]
        assert await found(engine, peppers, key) == (record, registry.get_team("growth"))
        assert key not in everything_in(engine)
        assert key.encode().hex() not in everything_in(engine)
    assert await found(engine, peppers, "sk-proj-abcdefghijklmnopq") is None
    assert len({record.kid for record in records}) == 3


async def test_an_issued_key_is_not_found_as_an_imported_one(registry, engine, peppers):
    assert await SqlKeyStore(engine).imported_under() == frozenset()
    key = registry.issue_key("growth").key
    assert await found(engine, peppers, key) is None
    assert await SqlKeyStore(engine).imported_under() == frozenset()
    registry.import_keys("growth", TEXTS)
    assert await SqlKeyStore(engine).imported_under() == {1}


async def test_an_imported_key_is_revoked_and_rotated_by_its_id(registry, engine, clock, peppers):
    first, second, _ = registry.import_keys("growth", TEXTS)
    registry.revoke_key(first.kid)
    assert (await found(engine, peppers, TEXTS[0]))[0].revoked_at_ms == clock.ms
    rotated = registry.rotate_key(second.kid, overlap_ms=500)
    assert parse(rotated.key).kid == second.kid
    (old, new) = rotated.record.secrets
    assert (old.imported, old.ends_at_ms, new.imported, new.ends_at_ms) == (True, clock.ms + 500, False, None)
    # It stays known after its end, so that nobody else is given it.
    clock.ms += 500
    registry.rotate_key(second.kid)
    with pytest.raises(BadLine, match=f"line 1: the key is known already, as {second.kid} of team growth"):
        registry.import_keys("growth", [TEXTS[1]])


def test_a_line_that_cannot_be_taken_is_named_by_its_number_alone(registry, engine):
    registry.add_team("research", "free")
    known = registry.import_keys("research", [TEXTS[1]])[0]
    before = everything_in(engine)
    good = "a-good-key-0123456789"
    for lines, message in (
        ([good, "", "short"], "line 3: the key can be guessed: it has fewer than 16 characters"),
        ([good, "a" * 20], "line 2: the key can be guessed: it has fewer than 6 different characters"),
        ([good, "other-key-0123456789", good], "line 3: the key stands on line 1 already"),
        ([good, TEXTS[1]], f"line 2: the key is known already, as {known.kid} of team research"),
        ([good + " "], "line 1: it begins or ends with a space"),
        ([good, "bell\x07-0123456789abc"], "line 2: it has characters that cannot be printed"),
        ([good, "sk-tg_0123456789abc"], "line 2: sk-tg_ begins the keys that are issued here"),
        ([good, "x" * 513], "line 2: a key has 1 to 512 characters"),
    ):
        with pytest.raises(BadLine) as raised:
            registry.import_keys("growth", lines)
        assert str(raised.value).startswith(message)
        for line in lines:
            assert not line or line not in f"{raised.value} {raised.value!r}"
        assert everything_in(engine) == before, "all or none"
    for lines in ([], ["", ""]):
        with pytest.raises(BadValue, match="none to import"):
            registry.import_keys("growth", lines)
    with pytest.raises(TeamUnknown):
        registry.import_keys("nobody", [good])
    with pytest.raises(BadValue, match="label"):
        registry.import_keys("growth", [good], label="two\nlines")


async def test_a_weak_key_is_taken_when_that_is_said(registry, engine, peppers):
    (record,) = registry.import_keys("growth", ["", "my team key 1", ""], allow_weak=True)
    assert (await found(engine, peppers, "my team key 1"))[0] == record


async def test_a_known_key_is_known_under_whatever_pepper(registry, engine, peppers):
    (record,) = registry.import_keys("growth", [TEXTS[0]])
    registry.rotate_pepper()
    with pytest.raises(BadLine, match=record.kid):
        registry.import_keys("growth", [TEXTS[0]])
    assert (await found(engine, peppers, TEXTS[0]))[0] == record


async def test_with_ten_thousand_keys_each_step_is_a_few_statements_that_use_an_index(
    registry, engine, peppers, statements
):
    """Statements are counted, not seconds; that none of them looks at every row, the planner says."""
    registry.add_team("research", "free")
    lines = [f"key-from-elsewhere-{number:08}" for number in range(10_000)]
    statements.clear()
    records = registry.import_keys("research", lines)
    assert len(statements) < 40, "a few rows at a time are asked for, all are written at once"
    for few, step in (
        (12, lambda: registry.issue_key("growth", "ci")),
        (13, lambda: registry.list_keys("growth")),
        (13, lambda: registry.revoke_key(records[17].kid)),
        (14, lambda: registry.rotate_key(records[18].kid)),
    ):
        statements.clear()
        step()
        assert 0 < len(statements) <= few
    statements.clear()
    assert len(registry.list_keys()) == 10_001
    assert len([each for each in statements if each.startswith("SELECT")]) == 3
    store = SqlKeyStore(engine)
    for search in (lambda: store.find(records[5_000].kid), lambda: found(engine, peppers, lines[5_000])):
        statements.clear()
        assert (await search())[0] == records[5_000]
        selects = [each for each in statements if each.startswith("SELECT")]
        assert 0 < len(selects) <= 7
        for each in selects:
            if "api_keys" in each or "key_secrets" in each:
                plan = plan_of(engine, each)
                assert "Index" in plan or "INDEX" in plan, plan
                assert "SCAN" not in plan
                assert "Seq Scan" not in plan


def plan_of(engine, statement):
    """What the planner makes of a statement of ours; the values do not matter to it."""
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            given = tuple(b"x" for _ in range(statement.count("?")))
            rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", given)
            return " ".join(str(row[3]) for row in rows)
        connection.execute(text("ANALYZE"))
        for cast in ("::VARCHAR", "::BYTEA", "::BYTES", "::INTEGER"):
            statement = statement.replace(cast, "")
        import re

        names = re.findall(r"%\((\w+)\)s", statement)
        given = {name: b"x" if "hash" in name else 1 if "param" in name else "x" for name in names}
        return " ".join(row[0] for row in connection.exec_driver_sql(f"EXPLAIN {statement}", given))


def test_ten_thousand_rows_came_from_one_change(registry, engine):
    """The audit log has one line for an import, whatever its size."""
    registry.import_keys("growth", [f"key-from-elsewhere-{number:08}" for number in range(1_200)])
    with engine.connect() as connection:
        actions = connection.execute(select(audit_log.c.action, audit_log.c.subject)).all()
    assert actions == [("team.add", "growth"), ("key.import", "growth")]
