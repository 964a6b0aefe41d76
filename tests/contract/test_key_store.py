import itertools

import pytest

from proxy.adapters.secrets import load_or_create_pepper
from proxy.adapters.sql.engine import open_engine
from proxy.adapters.sql.key_store import SqlKeyStore
from proxy.adapters.sql.notes import note
from proxy.adapters.sql.registry import SqlRegistry
from proxy.core.errors import StoreAway
from proxy.core.tiers import Limits


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
def registry(database, tmp_path):
    """Changes things through an engine of its own, as another process would."""
    other = open_engine(database)
    yield SqlRegistry(other, SetClock(), load_or_create_pepper(tmp_path / "secrets"))
    other.dispose()


@pytest.fixture
def store(engine):
    return SqlKeyStore(engine)


async def test_finds_a_key_with_its_team(store, registry):
    team = registry.add_team("growth", "free", models=frozenset({"gpt-4o"}), tokens_per_minute=7)
    registry.add_team("other", "payg")
    record = registry.issue_key("growth", "ci", expires_at_ms=1_900_000_000_000).record
    registry.issue_key("other")
    assert await store.find(record.kid) == (record, team)


async def test_finds_every_limit_of_key_and_team(store, registry):
    registry.add_team("growth", "free", max_parallel=4, shadow_tier="payg")
    registry.add_team("other", "free")
    registry.set_model_limit("other", "gpt-4o", 99)
    team = registry.set_model_limit("growth", "gpt-4o", 10, 5_000)
    kid = registry.issue_key("growth", requests_per_minute=5).record.kid
    record = registry.set_key(kid, max_parallel=2)
    assert (record.limits, record.max_parallel) == (Limits(5), 2)
    assert await store.find(kid) == (record, team)


async def test_finds_weight_and_wait(store, registry):
    registry.add_team("growth", "free")
    kid = registry.issue_key("growth").record.kid
    found, team = await store.find(kid)
    assert (found.max_wait_ms, team.weight) == (None, 1)
    changed = registry.set_key(kid, max_wait_ms=20_000), registry.set_team("growth", weight=7)
    found, team = await store.find(kid)
    assert (found, team) == changed
    assert (found.max_wait_ms, team.weight) == (20_000, 7)


async def test_finds_a_key_whatever_its_state(store, registry):
    registry.add_team("growth", "free")
    kid = registry.issue_key("growth").record.kid
    revoked = registry.revoke_key(kid)
    found, _ = await store.find(kid)
    assert found == revoked
    assert found.revoked_at_ms is not None


async def test_an_unknown_key_is_none(store):
    assert await store.find("000000000000") is None
    assert await store.find("' OR 1=1 --") is None


async def test_the_revision_grows_with_every_change(store, registry):
    seen = [await store.revision()]
    registry.add_team("growth", "free")
    seen.append(await store.revision())
    kid = registry.issue_key("growth").record.kid
    seen.append(await store.revision())
    registry.set_team("growth", tier="payg")
    seen.append(await store.revision())
    registry.set_model_limit("growth", "gpt-4o", 10)
    seen.append(await store.revision())
    registry.set_key(kid, max_parallel=2)
    seen.append(await store.revision())
    registry.revoke_key(kid)
    seen.append(await store.revision())
    assert all(earlier < later for earlier, later in itertools.pairwise(seen))
    registry.list_keys()
    assert await store.revision() == seen[-1]


async def test_each_change_is_seen_once_with_the_keys_it_has_ended(store, registry):
    registry.add_team("growth", "free")
    kids = [registry.issue_key("growth").record.kid for _ in range(3)]
    registry.revoke_key(kids[0])
    seen = await store.changes(None)
    assert (seen.revision, seen.ended) == (await store.revision(), None), "what was before the first look is not known"
    assert await store.changes(seen) is seen
    registry.set_team("growth", tier="payg")
    seen = await store.changes(seen)
    assert (seen.revision, seen.ended) == (await store.revision(), frozenset())
    registry.revoke_key(kids[1])
    registry.issue_key("growth")
    registry.rotate_key(kids[2], overlap_ms=1_000)
    first = await store.changes(seen)
    assert first.ended == frozenset(kids[1:])
    registry.revoke_key(kids[2])
    assert (await store.changes(first)).ended == frozenset(kids[2:])
    registry.rotate_pepper()
    last = await store.changes(first)
    assert last.ended is None, "any key may have ended with its pepper"
    assert await store.changes(last) is last


async def test_each_change_says_what_it_has_changed(store, registry):
    seen = await store.changes(None)
    assert (seen.changed, seen.teams) == (None, ())
    registry.add_team("growth", "free")
    registry.add_team("research", "free")
    kids = [registry.issue_key("growth").record.kid for _ in range(5)]
    registry.import_keys("growth", ["a key of another house"])
    seen = await store.changes(seen)
    assert (seen.changed, seen.teams, seen.ended) == (frozenset(), ("growth", "research"), frozenset())
    for change, changed in (
        (lambda: registry.set_team("growth", weight=2), {"growth"}),
        (lambda: registry.set_model_limit("growth", "gpt-4o", 10), {"growth"}),
        (lambda: registry.purge_cache("growth"), {"growth"}),
        (lambda: registry.set_key(kids[0], max_parallel=2), {kids[0]}),
        (lambda: registry.revoke_key(kids[1]), {kids[1]}),
        (lambda: registry.rotate_key(kids[2], overlap_ms=0), {kids[2]}),
    ):
        change()
        seen = await store.changes(seen)
        assert (seen.changed, seen.teams) == (changed, ())
    registry.set_team("research", weight=2)
    registry.set_key(kids[3], max_parallel=2)
    assert (await store.changes(seen)).changed == {"research", kids[3]}
    registry.rotate_pepper()
    assert (await store.changes(seen)).changed is None


async def test_a_change_that_no_line_tells_of_may_have_changed_anything(store, registry, engine):
    registry.add_team("growth", "free")
    seen = await store.changes(None)
    assert seen.teams == ("growth",)
    registry.set_team("growth", weight=2)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE config_revision SET revision = revision + 1")
    seen = await store.changes(seen)
    assert (seen.changed, seen.ended) == (None, frozenset())
    assert await store.changes(seen) is seen


async def test_another_database_in_the_place_of_the_one_that_was_seen_is_looked_at_anew(store, registry, engine):
    registry.add_team("growth", "free")
    seen = await store.changes(None)
    registry.add_team("research", "free")
    later = await store.changes(seen)
    with engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM audit_log WHERE subject = 'research'")
        connection.exec_driver_sql("DELETE FROM teams WHERE name = 'research'")
        connection.exec_driver_sql("UPDATE config_revision SET revision = revision - 1")
    assert await store.changes(later) == seen


@pytest.mark.parametrize("made_since", [1, 2])
async def test_a_database_that_has_lost_changes_is_looked_at_anew_however_many_were_made_since(
    store, registry, engine, made_since
):
    """A standby takes over that had not heard of the last one; as many, or more, are made before the next look."""
    registry.add_team("growth", "free")
    kids = [registry.issue_key("growth").record.kid for _ in range(2)]
    registry.set_team("growth", weight=2)
    seen = await store.changes(None)
    revision = seen.revision
    with engine.begin() as connection:
        connection.exec_driver_sql(f"DELETE FROM audit_log WHERE id = {seen.serial}")
        connection.exec_driver_sql("UPDATE config_revision SET revision = revision - 1")
        line = "INSERT INTO audit_log (id, at_ms, actor, action, subject, details) VALUES"
        for number, kid in enumerate(kids[:made_since]):
            values = f"({seen.serial + number}, {seen.written_ms + 60_000}, 'cli', 'key.revoke', '{kid}', '{{}}')"
            connection.exec_driver_sql(f"{line} {values}")
            connection.exec_driver_sql("UPDATE config_revision SET revision = revision + 1")
    anew = await store.changes(seen)
    assert anew.revision == revision + made_since - 1
    assert (anew.changed, anew.ended) == (None, None)
    assert anew != seen
    assert await store.changes(anew) is anew


async def test_what_changes_no_key_and_no_team_is_no_change(store, registry, engine):
    """A line of the ledger's is written beside those of administrators, and may be seen before one that is older."""
    registry.add_team("growth", "free")
    seen = await store.changes(None)
    note(engine, 1, "cli", "prices.import", "file", {})
    with engine.begin() as connection:
        line = "INSERT INTO audit_log (id, at_ms, actor, action, subject, details) VALUES"
        connection.exec_driver_sql(f"{line} (1000, 1, 'cli', 'ledger.rebuild', 'usage_daily', '{{}}')")
        connection.exec_driver_sql(f"{line} (999, 1, 'cli', 'team.set', 'growth', '{{}}')")
        connection.exec_driver_sql("UPDATE config_revision SET revision = revision + 1")
    after = await store.changes(seen)
    assert (after.changed, after.ended) == (frozenset({"growth"}), frozenset())
    assert after.serial == 999


async def test_a_database_that_fails_is_a_store_that_is_away(store, engine):
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE key_secrets")
        connection.exec_driver_sql("DROP TABLE api_keys")
        connection.exec_driver_sql("DROP TABLE config_revision")
    with pytest.raises(StoreAway) as raised:
        await store.find("000000000000")
    assert (raised.value.store, raised.value.operation) == ("keys", "find")
    with pytest.raises(StoreAway):
        await store.revision()


async def test_a_rotated_key_is_found_with_both_of_its_secrets(store, registry):
    registry.add_team("growth", "free")
    kid = registry.issue_key("growth").record.kid
    record = registry.rotate_key(kid, overlap_ms=1_000).record
    found, _ = await store.find(kid)
    assert found == record
    assert [secret.serial for secret in found.secrets] == [1, 2]


async def test_uses_are_kept_to_the_minute_and_only_forward(store, registry):
    registry.add_team("growth", "free")
    one, other = (registry.issue_key("growth").record.kid for _ in range(2))
    revision = await store.revision()
    await store.note_uses({one: 1_000_000, other: 2_000_000, "000000000000": 1})
    await store.note_uses({one: 1_059_999, other: 1_000})
    assert {key.kid: key.last_used_at_ms for key in registry.list_keys()} == {one: 1_000_000, other: 2_000_000}
    await store.note_uses({one: 1_060_000})
    assert (await store.find(one))[0].last_used_at_ms == 1_060_000
    assert await store.revision() == revision


async def test_each_question_is_away_with_the_database(store, registry, engine):
    registry.add_team("growth", "free")
    secret = registry.issue_key("growth").record.secrets[0]
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE key_secrets")
        connection.exec_driver_sql("DROP TABLE api_keys")
        connection.exec_driver_sql("DROP TABLE config_revision")
    for operation, ask in (
        ("find_imported", lambda: store.find_imported([b"x" * 32])),
        ("imported_under", store.imported_under),
        ("changes", lambda: store.changes(None)),
        ("note_uses", lambda: store.note_uses({"000000000000": 1})),
        ("add_hash", lambda: store.add_hash("000000000000", secret, 1, b"x" * 32)),
    ):
        with pytest.raises(StoreAway) as raised:
            await ask()
        assert raised.value.operation == operation
