"""What is known of keys lasts for as long as the store is seen to have changed nothing of them."""

import asyncio
from collections import Counter

import pytest

from proxy.adapters.secrets import load_or_create_pepper
from proxy.core.errors import InvalidKey, StoreAway
from proxy.pipeline import key_notes
from proxy.pipeline import principals as module
from proxy.pipeline.principals import POSITIVE_TTL_MS, REREAD_MS, STALE_MS, Principals


@pytest.fixture
def principals(key_store, clock, tmp_path) -> Principals:
    return Principals(key_store, load_or_create_pepper(tmp_path), clock)


@pytest.fixture
def keys(registry):
    """Two keys of one team, and one of another."""
    registry.add_team("research", "free")
    return [registry.issue_key(team) for team in ("growth", "growth", "research")]


async def looked_up(principals, database, keys) -> int:
    """How many of the keys are asked for in the database when they are used."""
    before = database.key_look_ups
    for each in keys:
        await principals.of(each.key)
    return database.key_look_ups - before


def confirm(principals, clock) -> None:
    principals.confirm(clock.monotonic_ns() // 1_000_000)


async def test_a_key_in_use_is_not_looked_up_again_while_nothing_has_changed(principals, keys, database, clock):
    assert await looked_up(principals, database, keys) == 3
    began_ms = clock.ms
    while clock.ms - began_ms < REREAD_MS - 5_000:
        clock.ms += 5_000
        confirm(principals, clock)
        assert await looked_up(principals, database, keys) == 0
    clock.ms = began_ms + REREAD_MS - 1
    assert await looked_up(principals, database, keys) == 0
    clock.ms += 1
    assert await looked_up(principals, database, keys) == 3, "people change databases by hand"
    assert await looked_up(principals, database, keys) == 0


async def test_an_answer_is_good_for_ten_seconds_after_the_last_look_and_not_a_millisecond_more(
    principals, keys, database, clock
):
    assert await looked_up(principals, database, keys) == 3
    clock.ms += POSITIVE_TTL_MS - 1
    confirm(principals, clock)
    clock.ms += POSITIVE_TTL_MS - 1
    assert await looked_up(principals, database, keys) == 0
    clock.ms += 1
    assert await looked_up(principals, database, keys) == 3


async def test_a_look_that_began_before_a_key_was_read_makes_it_no_younger(principals, keys, database, clock):
    before_ms = clock.monotonic_ns() // 1_000_000
    clock.ms += 5_000
    assert await looked_up(principals, database, keys) == 3
    principals.confirm(before_ms)
    clock.ms += POSITIVE_TTL_MS - 1
    assert await looked_up(principals, database, keys) == 0
    clock.ms += 1
    assert await looked_up(principals, database, keys) == 3


async def test_a_change_has_those_asked_for_again_whom_it_changed(principals, keys, database):
    assert await looked_up(principals, database, keys) == 3
    principals.invalidate((), ())
    assert await looked_up(principals, database, keys) == 0, "a key that was issued changes no other"
    principals.invalidate((), [keys[0].record.kid])
    assert await looked_up(principals, database, keys) == 1
    principals.invalidate((), ["growth"])
    assert await looked_up(principals, database, keys[2:]) == 0
    assert await looked_up(principals, database, keys) == 2
    principals.invalidate((), ["nobody"])
    assert await looked_up(principals, database, keys) == 0
    principals.invalidate(())
    assert await looked_up(principals, database, keys) == 3, "nobody knows what was changed"


async def test_what_a_key_may_do_is_what_was_changed(principals, keys, registry, key_store):
    seen = await key_store.changes(None)
    assert (await principals.of(keys[0].key)).team.weight == 1
    registry.set_team("growth", weight=7)
    registry.set_key(keys[0].record.kid, max_parallel=3)
    registry.revoke_key(keys[1].record.kid)
    changes = await key_store.changes(seen)
    principals.invalidate(changes.ended, changes.changed)
    principal = await principals.of(keys[0].key)
    assert (principal.team.weight, principal.key.max_parallel) == (7, 3)
    with pytest.raises(InvalidKey):
        await principals.of(keys[1].key)


class Held:
    """A store whose answers, once read, come when they are let go."""

    def __init__(self, store) -> None:
        self._store = store
        self.read = asyncio.Event()
        self.go = asyncio.Event()

    def __getattr__(self, name):
        return getattr(self._store, name)

    async def find(self, kid):
        found = await self._store.find(kid)
        self.read.set()
        await self.go.wait()
        return found


@pytest.mark.parametrize("changed", ["key", "team"])
async def test_what_was_read_before_a_change_is_not_trusted_after_it(
    key_store, clock, tmp_path, keys, registry, database, changed
):
    held = Held(key_store)
    principals = Principals(held, load_or_create_pepper(tmp_path), clock)
    under_way = asyncio.create_task(principals.of(keys[0].key))
    await held.read.wait()
    registry.set_team("growth", weight=7)
    principals.invalidate((), ["growth" if changed == "team" else keys[0].record.kid])
    confirm(principals, clock)
    held.go.set()
    assert (await under_way).team.weight == 1
    assert (await principals.of(keys[0].key)).team.weight == 7
    assert await looked_up(principals, database, keys[:1]) == 0


async def test_of_so_many_changes_it_is_known_what_they_changed(principals, keys, database, monkeypatch):
    monkeypatch.setattr(module, "MAX_CHANGED", 3)
    assert await looked_up(principals, database, keys) == 3
    principals.invalidate((), ["a", "b", "c"])
    assert await looked_up(principals, database, keys) == 0
    principals.invalidate((), ["a"])
    assert await looked_up(principals, database, keys) == 0
    principals.invalidate((), ["d"])
    assert principals._changed == {}
    assert await looked_up(principals, database, keys) == 3
    principals.invalidate((), ["growth"])
    assert await looked_up(principals, database, keys) == 2


async def test_a_key_whose_new_hash_found_no_room_comes_again(principals, keys, registry, database, clock, monkeypatch):
    registry.rotate_pepper()
    principals.invalidate()
    monkeypatch.setattr(key_notes, "_MAX_HASHES", 1)
    await looked_up(principals, database, keys)
    await principals.notes.write()
    assert [each.keys for each in registry.list_peppers()] == [2, 0], "keys that need the one pepper, and the other"
    for left in (1, 0):
        clock.ms += POSITIVE_TTL_MS
        confirm(principals, clock)
        await looked_up(principals, database, keys)
        await principals.notes.write()
        assert registry.list_peppers()[0].keys == left


async def test_while_the_store_is_away_the_last_look_counts(principals, keys, database, clock):
    await looked_up(principals, database, keys)
    clock.ms += REREAD_MS - 1
    confirm(principals, clock)
    database.take_away()
    clock.ms += POSITIVE_TTL_MS
    assert await principals.of(keys[0].key)
    clock.ms += STALE_MS
    with pytest.raises(StoreAway):
        await principals.of(keys[0].key)


async def test_whether_there_are_keys_from_elsewhere_is_asked_when_something_has_changed(
    key_store, clock, tmp_path, registry
):
    asked = Counter()

    class Counting(Held):
        async def imported_under(self):
            asked["imported_under"] += 1
            return await self._store.imported_under()

    principals = Principals(Counting(key_store), load_or_create_pepper(tmp_path), clock)
    for number in range(20):
        confirm(principals, clock)
        with pytest.raises(InvalidKey):
            await principals.of(f"of another house {number}")
        clock.ms += 1_900
    assert asked["imported_under"] == 1
    seen = await key_store.changes(None)
    registry.import_keys("growth", ["a key of another house"])
    changes = await key_store.changes(seen)
    principals.invalidate(changes.ended, changes.changed)
    assert (await principals.of("a key of another house")).team.name == "growth"
    assert asked["imported_under"] == 2
