"""Forgetting a team's answers, by a new secret or by a new salt."""

import json

import pytest
from sqlalchemy import select

from proxy.adapters.secrets import load_or_create_pepper
from proxy.adapters.sql.engine import open_engine
from proxy.adapters.sql.key_store import SqlKeyStore
from proxy.adapters.sql.registry import SqlRegistry
from proxy.adapters.sql.tables import audit_log, cache_salts
from proxy.core.registry import BadValue, TeamUnknown


class SetClock:
    def now_ms(self):
        return 1_800_000_000_000

    def monotonic_ns(self):
        return 0


@pytest.fixture
def engine(database):
    engine = open_engine(database)
    yield engine
    engine.dispose()


@pytest.fixture
def registry(engine, tmp_path):
    return SqlRegistry(engine, SetClock(), load_or_create_pepper(tmp_path / "secrets"), actor="ada")


@pytest.fixture
def growth(registry):
    return registry.add_team("growth", "free")


@pytest.fixture
def store(engine):
    return SqlKeyStore(engine)


def audited(engine):
    with engine.connect() as connection:
        rows = connection.execute(select(audit_log).order_by(audit_log.c.id)).mappings().all()
    return [(row["actor"], row["action"], row["subject"], json.loads(row["details"])) for row in rows]


def salts_kept(engine):
    with engine.connect() as connection:
        return len(connection.execute(select(cache_salts)).all())


def test_a_team_has_no_salt_until_a_model_is_purged(growth):
    assert growth.cache_salts == {}


def test_a_purge_is_a_new_secret(registry, growth):
    other = registry.add_team("other", "free")
    purged = registry.purge_cache("growth")
    assert len(purged.cache_secret) == 32
    assert purged.cache_secret != growth.cache_secret
    assert registry.purge_cache("growth").cache_secret not in (growth.cache_secret, purged.cache_secret)
    assert registry.get_team("other") == other


def test_a_purge_of_a_model_is_a_new_salt(registry, growth, engine):
    registry.add_team("other", "free")
    first = registry.purge_cache("growth", "gpt-4o")
    assert first.cache_secret == growth.cache_secret
    assert [len(salt) for salt in first.cache_salts.values()] == [32]
    second = registry.purge_cache("growth", "gpt-4o-mini")
    third = registry.purge_cache("growth", "gpt-4o")
    assert third.cache_salts.keys() == {"gpt-4o", "gpt-4o-mini"}
    assert third.cache_salts["gpt-4o"] != first.cache_salts["gpt-4o"] == second.cache_salts["gpt-4o"]
    assert third.cache_salts["gpt-4o-mini"] == second.cache_salts["gpt-4o-mini"]
    assert registry.get_team("growth") == third
    assert registry.list_teams() == [third, registry.get_team("other")]
    assert registry.get_team("other").cache_salts == {}
    # A new secret makes every salt superfluous, and salts do not pile up.
    assert registry.purge_cache("growth").cache_salts == {}
    assert salts_kept(engine) == 0


@pytest.mark.parametrize("model", [None, "gpt-4o"])
async def test_the_request_path_sees_it(registry, growth, store, model):
    registry.purge_cache("growth", "gpt-4o")
    kid = registry.issue_key("growth").record.kid
    before, revision = (await store.find(kid))[1], await store.revision()
    purged = registry.purge_cache("growth", model)
    assert await store.revision() > revision
    assert (await store.find(kid))[1] == purged != before


def test_a_purge_is_audited_and_names_no_secret(registry, growth, engine):
    purged = registry.purge_cache("growth", "gpt-4o")
    registry.purge_cache("growth")
    assert audited(engine)[-2:] == [
        ("ada", "cache.purge", "growth", {"model": "gpt-4o"}),
        ("ada", "cache.purge", "growth", {"model": None}),
    ]
    shown = repr(audited(engine)) + repr(purged)
    for secret in (growth.cache_secret, *purged.cache_salts.values()):
        assert secret.hex() not in shown
        assert repr(secret) not in shown


def test_what_cannot_be_purged(registry, growth, engine):
    before = audited(engine)
    for model in (None, "gpt-4o"):
        with pytest.raises(TeamUnknown, match="no team is named nobody"):
            registry.purge_cache("nobody", model)
    for model in ("", "m" * 257, "two\nlines"):
        with pytest.raises(BadValue, match="model"):
            registry.purge_cache("growth", model)
    assert registry.get_team("growth") == growth
    assert audited(engine) == before
