import asyncio
from collections import Counter

import pytest
from sqlalchemy import event

from proxy.core.errors import StoreAway
from proxy.pipeline import key_notes
from proxy.pipeline.key_notes import KeyNotes
from proxy.ports import USES_EVERY_MS


@pytest.fixture
def notes(key_store):
    return KeyNotes(key_store)


@pytest.fixture
def writes(database):
    """Transactions that wrote when keys were used."""
    seen = Counter()

    def count(_connection, _cursor, statement, parameters, _context, _many):
        if statement.startswith("UPDATE api_keys SET last_used"):
            seen["batches"] += 1
            seen["rows"] += len(parameters) if isinstance(parameters, list) else 1

    event.listen(database.engine, "before_cursor_execute", count)
    return seen


def last_used(registry):
    return {record.kid: record.last_used_at_ms for record in registry.list_keys()}


async def test_uses_of_many_keys_are_one_batch(notes, registry, clock, writes):
    kids = [registry.issue_key("growth").record.kid for _ in range(20)]
    for _ in range(5):
        for number, kid in enumerate(kids):
            notes.used(kid, clock.ms + number)
    assert writes == {}, "a request writes nothing"
    await notes.write()
    assert writes == {"batches": 1, "rows": 20}
    assert last_used(registry) == {kid: clock.ms + number for number, kid in enumerate(kids)}


async def test_a_key_is_written_once_a_minute_at_most(notes, registry, clock, writes):
    kid = registry.issue_key("growth").record.kid
    began_ms = clock.ms
    for _ in range(60):
        notes.used(kid, clock.ms)
        await notes.write()
        clock.ms += 2_000
    assert writes["rows"] == 2
    assert last_used(registry) == {kid: began_ms + USES_EVERY_MS}
    notes.used(kid, began_ms + 2 * USES_EVERY_MS)
    await notes.write()
    assert last_used(registry) == {kid: began_ms + 2 * USES_EVERY_MS}


async def test_workers_together_write_a_key_once_a_minute(key_store, registry, clock):
    kid = registry.issue_key("growth").record.kid
    for at_ms in (0, 30_000, 59_999):
        another = KeyNotes(key_store)
        another.used(kid, clock.ms + at_ms)
        await another.write()
    assert last_used(registry) == {kid: clock.ms}
    await key_store.note_uses({kid: clock.ms - 1})
    assert last_used(registry) == {kid: clock.ms}, "it never goes back"


async def test_nothing_to_write_is_not_written(notes, writes):
    await notes.write()
    assert writes == {}


async def test_a_use_is_no_change(notes, registry, key_store, clock):
    kid = registry.issue_key("growth").record.kid
    before = (await key_store.revision(), registry.list_audit())
    notes.used(kid, clock.ms)
    await notes.write()
    assert (await key_store.revision(), registry.list_audit()) == before


async def test_what_the_store_did_not_take_is_written_when_it_is_back(notes, registry, database, clock):
    first, second = (registry.issue_key("growth").record.kid for _ in range(2))
    notes.used(first, clock.ms)
    notes.used(second, clock.ms)
    database.take_away()
    with pytest.raises(StoreAway):
        await notes.write()
    notes.used(second, clock.ms + 7)
    database.bring_back()
    await notes.write()
    assert last_used(registry) == {first: clock.ms, second: clock.ms + 7}


async def test_a_hash_that_was_not_taken_is_written_when_the_store_is_back(notes, registry, database):
    issued = registry.issue_key("growth")
    registry.rotate_pepper()
    notes.hashed(issued.record.kid, issued.record.secrets[0], 2, b"h" * 32)
    with database.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE key_secrets RENAME TO gone")
    with pytest.raises(StoreAway):
        await notes.write()
    with database.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE gone RENAME TO key_secrets")
    await notes.write()
    assert [secret.pepper_id for secret in registry.list_keys()[0].secrets] == [1, 2]
    await notes.write()


async def test_hashes_that_wait_are_bounded(notes, registry):
    secret = registry.issue_key("growth").record.secrets[0]
    for number in range(1_500):
        notes.hashed("kid", secret, 2, number.to_bytes(32, "big"))
    assert len(notes._hashes) == 1_000


async def test_the_chore_goes_on_after_a_failure_and_tells_it(notes, registry, database, clock, monkeypatch):
    monkeypatch.setattr("proxy.pipeline.key_notes._EVERY_SECONDS", 0)
    kid = registry.issue_key("growth").record.kid
    failures = asyncio.Queue()
    database.take_away()
    notes.used(kid, clock.ms)
    chore = asyncio.create_task(notes.run(lambda *told: failures.put_nowait(told)))
    assert await asyncio.wait_for(failures.get(), 60) == ("keys", "note_uses")
    database.bring_back()
    async with asyncio.timeout(60):
        while last_used(registry) != {kid: clock.ms}:  # noqa: ASYNC110 - the database tells nobody
            await asyncio.sleep(0)
    chore.cancel()
    with pytest.raises(asyncio.CancelledError):
        await chore


async def test_many_uses_are_written_a_few_at_a_time(notes, registry, clock, writes, monkeypatch):
    monkeypatch.setattr(key_notes, "_AT_ONCE", 8)
    kids = [registry.issue_key("growth").record.kid for _ in range(20)]
    for kid in kids:
        notes.used(kid, clock.ms)
    await notes.write()
    assert writes == {"batches": 3, "rows": 20}
    assert last_used(registry) == dict.fromkeys(kids, clock.ms)


async def test_what_was_not_taken_is_written_the_next_time_and_nothing_twice(registry, key_store, clock, monkeypatch):
    monkeypatch.setattr(key_notes, "_AT_ONCE", 8)
    kids = [registry.issue_key("growth").record.kid for _ in range(20)]
    taken, away = [], [False, True]

    class Failing:
        async def note_uses(self, used_at_ms):
            if away and away.pop(0):
                raise StoreAway("keys", "note_uses")
            taken.extend(used_at_ms)
            await key_store.note_uses(used_at_ms)

    notes = KeyNotes(Failing())
    for kid in kids:
        notes.used(kid, clock.ms)
    with pytest.raises(StoreAway):
        await notes.write()
    assert len(taken) == 8
    await notes.write()
    assert sorted(taken) == sorted(kids)
    assert last_used(registry) == dict.fromkeys(kids, clock.ms)


async def test_of_keys_that_were_used_once_nothing_is_kept(notes, registry, clock):
    for _ in range(10):
        notes.used(registry.issue_key("growth").record.kid, clock.ms)
        await notes.write()
        clock.ms += USES_EVERY_MS
    assert len(notes._written) == 1
