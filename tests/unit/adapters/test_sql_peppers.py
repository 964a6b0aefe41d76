"""Versions of the pepper, on each database."""

import json
import shutil

import pytest
from sqlalchemy import select

from proxy.adapters.secrets import PEPPER_FILE, SecretsInvalid, load_or_create_pepper
from proxy.adapters.sql.agreement import PepperMismatch, missing_peppers
from proxy.adapters.sql.key_store import SqlKeyStore
from proxy.adapters.sql.registry import SqlRegistry
from proxy.adapters.sql.tables import audit_log, key_secrets
from proxy.adapters.sql.tables import peppers as peppers_table
from proxy.core.keys import secret_behind
from proxy.core.registry import BadValue


@pytest.fixture
def place(tmp_path):
    return tmp_path / "machine"


@pytest.fixture
def peppers(place):
    return load_or_create_pepper(place)


@pytest.fixture
def registry(engine, clock, peppers):
    registry = SqlRegistry(engine, clock, peppers, actor="ada")
    registry.add_team("growth", "free")
    return registry


def kept_in(engine, table):
    with engine.connect() as connection:
        return connection.execute(select(table)).all()


def opens(registry, peppers, issued):
    """Whether the key is good by what the database knows now."""
    (record,) = [each for each in registry.list_keys() if each.kid == issued.record.kid]
    return secret_behind(peppers.latest().hashes(issued.key), record.secrets) is not None


def test_a_new_pepper_is_for_new_keys_and_the_old_ones_go_on(registry, peppers, clock):
    old = registry.issue_key("growth")
    made = registry.rotate_pepper()
    assert (made.version, made.current, made.here, made.keys, made.created_at_ms) == (2, True, True, 0, clock.ms)
    new = registry.issue_key("growth")
    assert [each.record.secrets[0].pepper_id for each in (old, new)] == [1, 2]
    assert opens(registry, peppers, old)
    assert opens(registry, peppers, new)
    first, second = registry.list_peppers()
    assert (first.version, first.current, first.keys, first.retired_at_ms) == (1, False, 1, None)
    assert (second.version, second.current, second.keys) == (2, True, 1)


def test_a_pepper_is_retired_once_no_live_key_needs_it(registry, peppers, engine, clock, place):
    kept = registry.issue_key("growth").record
    revoked = registry.issue_key("growth").record
    expiring = registry.issue_key("growth", expires_at_ms=clock.ms + 5).record
    registry.rotate_pepper()
    with pytest.raises(BadValue, match="version 2 is the current one"):
        registry.retire_pepper(2)
    with pytest.raises(BadValue, match=r"live keys need version 1 \(3\)"):
        registry.retire_pepper(1)
    registry.revoke_key(revoked.kid)
    registry.rotate_key(kept.kid, overlap_ms=3)
    clock.ms += 4
    with pytest.raises(BadValue, match=r"live keys need version 1 \(1\)"):
        registry.retire_pepper(1)
    clock.ms += 1
    retired = registry.retire_pepper(1)
    assert (retired.retired_at_ms, retired.here, retired.keys) == (clock.ms, False, 0)
    assert sorted(load_or_create_pepper(place).latest().secrets) == [2]
    before = kept_in(engine, audit_log)
    assert registry.retire_pepper(1) == retired
    assert kept_in(engine, audit_log) == before
    with pytest.raises(BadValue, match="there is no version 7"):
        registry.retire_pepper(7)
    assert expiring.kid in {record.kid for record in registry.list_keys()}


async def test_a_key_that_is_used_is_hashed_anew_and_needs_the_old_pepper_no_more(registry, peppers, engine):
    issued = registry.issue_key("growth")
    (old,) = issued.record.secrets
    registry.rotate_pepper()
    store = SqlKeyStore(engine)
    hashes = peppers.latest().hashes(issued.key)
    await store.add_hash(issued.record.kid, old, 2, hashes[2])
    await store.add_hash(issued.record.kid, old, 2, hashes[2])
    (record,) = registry.list_keys()
    assert [(secret.serial, secret.pepper_id, secret.created_at_ms) for secret in record.secrets] == [
        (1, 1, old.created_at_ms),
        (1, 2, old.created_at_ms),
    ]
    assert [each.keys for each in registry.list_peppers()] == [0, 0]
    registry.retire_pepper(1)
    assert [row.pepper_id for row in kept_in(engine, key_secrets)] == [2]
    assert opens(registry, peppers, issued)


async def test_a_hash_that_comes_late_does_not_prolong_a_secret(registry, peppers, engine, clock):
    issued = registry.issue_key("growth")
    (old,) = issued.record.secrets
    registry.rotate_pepper()
    hashes = peppers.latest().hashes(issued.key)
    registry.rotate_key(issued.record.kid, overlap_ms=10)
    store = SqlKeyStore(engine)
    await store.add_hash(issued.record.kid, old, 2, hashes[2])
    (record,) = registry.list_keys()
    assert {secret.ends_at_ms for secret in record.secrets if secret.serial == 1} == {clock.ms + 10}
    clock.ms += 10
    registry.rotate_key(issued.record.kid)
    await store.add_hash(issued.record.kid, old, 2, hashes[2])
    (record,) = registry.list_keys()
    assert {secret.serial for secret in record.secrets} == {2, 3}, "what is gone does not come back"


async def test_a_hash_under_a_pepper_that_is_not_known_or_retired_is_not_kept(registry, peppers, engine):
    issued = registry.issue_key("growth")
    (old,) = issued.record.secrets
    await SqlKeyStore(engine).add_hash(issued.record.kid, old, 9, bytes(32))
    assert [row.pepper_id for row in kept_in(engine, key_secrets)] == [1]


def test_a_machine_with_another_pepper_issues_nothing_and_is_told_why(registry, engine, clock, tmp_path):
    registry.issue_key("growth")
    other = load_or_create_pepper(tmp_path / "other machine")
    stranger = SqlRegistry(engine, clock, other)
    for change in (
        lambda: stranger.issue_key("growth"),
        lambda: stranger.import_keys("growth", ["a-key-from-elsewhere-1"]),
        lambda: stranger.rotate_key(registry.list_keys()[0].kid),
        stranger.rotate_pepper,
        lambda: stranger.retire_pepper(1),
        lambda: missing_peppers(engine, other.latest(), clock.ms),
    ):
        with pytest.raises(PepperMismatch, match=r"pepper of version 1 here is not the one.*pepper_file") as raised:
            change()
        assert other.latest().secrets[1].hex() not in str(raised.value)
    assert len(registry.list_keys()) == 1
    assert [row.version for row in kept_in(engine, peppers_table)] == [1]


def test_peppers_that_are_lost_are_made_anew_for_new_keys(registry, engine, clock, tmp_path):
    registry.issue_key("growth")
    other = load_or_create_pepper(tmp_path / "other machine")
    stranger = SqlRegistry(engine, clock, other)
    made = stranger.rotate_pepper(lost=True)
    assert (made.version, sorted(other.latest().secrets)) == (2, [2])
    assert opens(stranger, other, stranger.issue_key("growth"))
    assert missing_peppers(engine, other.latest(), clock.ms) == {1: 1}


def test_what_a_machine_lacks_is_counted(registry, peppers, engine, clock, tmp_path, place):
    late = tmp_path / "late machine"
    shutil.copytree(place, late)
    registry.issue_key("growth")
    registry.rotate_pepper()
    registry.issue_key("growth")
    registry.revoke_key(registry.issue_key("growth").record.kid)
    assert missing_peppers(engine, load_or_create_pepper(late).latest(), clock.ms) == {2: 1}
    assert missing_peppers(engine, peppers.latest(), clock.ms) == {}


def test_a_retired_pepper_that_is_current_elsewhere_issues_nothing(registry, engine, clock, tmp_path, place):
    late = tmp_path / "late machine"
    shutil.copytree(place, late)
    registry.rotate_pepper()
    registry.retire_pepper(1)
    with pytest.raises(PepperMismatch, match="version 1, is retired"):
        SqlRegistry(engine, clock, load_or_create_pepper(late)).issue_key("growth")


def test_versions_are_never_used_twice_and_never_too_many(registry, engine, clock, tmp_path, place):
    late = tmp_path / "late machine"
    shutil.copytree(place, late)
    assert registry.rotate_pepper().version == 2
    assert SqlRegistry(engine, clock, load_or_create_pepper(late)).rotate_pepper().version == 3
    for _ in range(6):
        registry.rotate_pepper()
    with pytest.raises(BadValue, match="8 versions"):
        registry.rotate_pepper()
    registry.retire_pepper(1)
    assert registry.rotate_pepper().version == 10


def test_a_file_that_cannot_be_written_changes_nothing(registry, engine, place):
    path = place / PEPPER_FILE
    content = path.read_bytes()
    path.write_text(json.dumps({"current": 1}))
    before = [kept_in(engine, table) for table in (audit_log, peppers_table)]
    with pytest.raises(SecretsInvalid):
        registry.rotate_pepper()
    assert [kept_in(engine, table) for table in (audit_log, peppers_table)] == before
    path.write_bytes(content)
    assert registry.rotate_pepper().version == 2


def test_no_pepper_is_in_the_database(registry, peppers, engine):
    registry.rotate_pepper()
    registry.issue_key("growth")
    kept = repr([kept_in(engine, table) for table in (audit_log, peppers_table, key_secrets)])
    for secret in peppers.latest().secrets.values():
        assert secret.hex() not in kept
        assert repr(secret)[2:-1] not in kept
