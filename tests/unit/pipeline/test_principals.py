import asyncio
import threading

import pytest
from sqlalchemy import event

from proxy.adapters.secrets import load_or_create_pepper
from proxy.core.errors import InvalidKey, StoreAway
from proxy.core.keys import RANDOM_BYTES, make_key
from proxy.pipeline import principals as module
from proxy.pipeline.principals import NEGATIVE_TTL_MS, POSITIVE_TTL_MS, STALE_MS, Principals


@pytest.fixture
def principals(key_store, clock, tmp_path) -> Principals:
    return Principals(key_store, load_or_create_pepper(tmp_path), clock)


@pytest.fixture
def key(registry) -> str:
    return registry.issue_key("growth", label="one").key


def unknown_key(number: int = 0) -> str:
    """Well formed, checksum and all, and never issued."""
    return make_key(number.to_bytes(RANDOM_BYTES, "big"))[1]


async def test_a_key_leads_to_its_team(principals, key):
    principal = await principals.of(key)
    assert (principal.team.name, principal.key.label) == ("growth", "one")
    assert key not in repr(principal)


async def test_what_has_no_checksum_never_reaches_the_database(principals, key, database):
    for text in ("", "sk-tg_", "sk-proj-1", key[:-1], key + "0", key.upper(), f" {key}", "é" * 70, "\ud800"):
        with pytest.raises(InvalidKey):
            await principals.of(text)
    assert database.key_look_ups == 0


async def test_an_answer_is_kept_for_ten_seconds_and_not_one_millisecond_more(principals, key, database, clock):
    await principals.of(key)
    clock.ms += POSITIVE_TTL_MS - 1
    await principals.of(key)
    assert database.key_look_ups == 1
    clock.ms += 1
    await principals.of(key)
    assert database.key_look_ups == 2


async def test_a_refusal_is_kept_for_two_seconds(principals, database, clock):
    for passed_ms, look_ups in ((0, 1), (NEGATIVE_TTL_MS - 1, 1), (1, 2)):
        clock.ms += passed_ms
        with pytest.raises(InvalidKey):
            await principals.of(unknown_key())
        assert database.key_look_ups == look_ups


async def test_the_right_kid_with_another_secret_is_refused(principals, key):
    kid, other = key[6:18], unknown_key(5)
    forged = other.replace(other[6:18], kid)
    body = forged[:-6]
    # Its checksum is made good, so that the secret alone is wrong.
    from proxy.core.keys import _checksum

    with pytest.raises(InvalidKey):
        await principals.of(body + _checksum(body))
    assert (await principals.of(key)).key.kid == kid


async def test_a_revoked_key_stops_within_the_bound_unnoticed_and_at_once_noticed(principals, key, registry, clock):
    principal = await principals.of(key)
    registry.revoke_key(principal.key.kid)
    assert await principals.of(key), "nobody has noticed yet"
    clock.ms += POSITIVE_TTL_MS
    with pytest.raises(InvalidKey):
        await principals.of(key)

    second = registry.issue_key("growth", label="two").key
    registry.revoke_key((await principals.of(second)).key.kid)
    principals.invalidate()
    with pytest.raises(InvalidKey):
        await principals.of(second)


async def test_a_key_expires_in_the_middle_of_its_life_in_the_cache(principals, registry, clock):
    key = registry.issue_key("growth", label="short", expires_at_ms=clock.ms + 5_000).key
    clock.ms += 4_999
    await principals.of(key)
    clock.ms += 1
    with pytest.raises(InvalidKey):
        await principals.of(key)


async def test_a_key_that_is_issued_after_it_was_refused_is_known_once_noticed(principals, registry):
    # The same key cannot be made twice, so its team changes instead.
    key = registry.issue_key("growth", label="one").key
    await principals.of(key)
    registry.set_team("growth", requests_per_minute=7)
    assert (await principals.of(key)).team.limits.requests_per_minute == 100
    principals.invalidate()
    assert (await principals.of(key)).team.limits.requests_per_minute == 7


async def test_a_hundred_at_once_ask_once(principals, key, database):
    found = await asyncio.gather(*(principals.of(key) for _ in range(100)))
    assert database.key_look_ups == 1
    assert {principal.team.name for principal in found} == {"growth"}
    assert len(principals._look_ups) == 0


async def test_a_hundred_unknown_at_once_ask_once(principals, database):
    found = await asyncio.gather(*(principals.of(unknown_key()) for _ in range(100)), return_exceptions=True)
    assert {type(error) for error in found} == {InvalidKey}
    assert database.key_look_ups == 1


class Gate:
    """Holds look-ups of keys in the database until it is opened."""

    def __init__(self, engine) -> None:
        self.reached = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._open = threading.Event()
        event.listen(engine, "before_cursor_execute", self._wait)

    def _wait(self, _connection, _cursor, statement, *_) -> None:
        if "FROM api_keys" in statement:
            self._loop.call_soon_threadsafe(self.reached.set)
            assert self._open.wait(10)

    def open(self) -> None:
        self._open.set()


async def test_a_leader_that_is_cancelled_harms_nobody(principals, key, database):
    gate = Gate(database.engine)
    leader = asyncio.create_task(principals.of(key))
    await gate.reached.wait()
    followers = [asyncio.create_task(principals.of(key)) for _ in range(20)]
    await asyncio.sleep(0)
    leader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leader
    gate.open()
    found = await asyncio.gather(*followers)
    assert {principal.team.name for principal in found} == {"growth"}
    assert database.key_look_ups == 2, "one of them asked for all"
    assert len(principals._look_ups) == 0


async def test_a_follower_that_is_cancelled_harms_nobody(principals, key, database):
    gate = Gate(database.engine)
    leader = asyncio.create_task(principals.of(key))
    await gate.reached.wait()
    follower = asyncio.create_task(principals.of(key))
    await asyncio.sleep(0)
    follower.cancel()
    with pytest.raises(asyncio.CancelledError):
        await follower
    gate.open()
    assert (await leader).team.name == "growth"
    assert database.key_look_ups == 1


async def test_a_change_during_a_look_up_is_not_lost(principals, key, registry, database):
    gate = Gate(database.engine)
    asked = asyncio.create_task(principals.of(key))
    await gate.reached.wait()
    principals.invalidate()
    gate.open()
    await asked
    await principals.of(key)
    assert database.key_look_ups == 2, "what was read before the change is not trusted after it"


async def test_a_store_that_is_away_locks_nobody_out_for_five_minutes(principals, key, database, clock):
    await principals.of(key)
    database.take_away()
    for passed_ms in (POSITIVE_TTL_MS, STALE_MS - POSITIVE_TTL_MS - 1):
        clock.ms += passed_ms
        assert (await principals.of(key)).team.name == "growth"
    clock.ms += 1
    with pytest.raises(StoreAway):
        await principals.of(key)
    database.bring_back()
    assert (await principals.of(key)).team.name == "growth"


async def test_a_store_that_is_away_lets_nobody_new_in(principals, key, database):
    database.take_away()
    found = await asyncio.gather(*(principals.of(key) for _ in range(5)), return_exceptions=True)
    assert {type(error) for error in found} == {StoreAway}
    database.bring_back()
    assert (await principals.of(key)).team.name == "growth"


async def test_a_revoked_key_does_not_come_back_because_the_store_is_away(principals, key, registry, database, clock):
    kid = (await principals.of(key)).key.kid
    registry.revoke_key(kid)
    principals.invalidate()
    database.take_away()
    with pytest.raises(StoreAway):
        await principals.of(key)
    database.bring_back()
    with pytest.raises(InvalidKey):
        await principals.of(key)
    database.take_away()
    clock.ms += POSITIVE_TTL_MS
    with pytest.raises(InvalidKey):
        await principals.of(key)


async def test_a_key_expires_though_the_store_is_away(principals, registry, database, clock):
    key = registry.issue_key("growth", label="short", expires_at_ms=clock.ms + 60_000).key
    await principals.of(key)
    database.take_away()
    clock.ms += 59_999
    await principals.of(key)
    clock.ms += 1
    with pytest.raises(InvalidKey):
        await principals.of(key)


async def test_a_refusal_of_yesterday_is_no_answer_while_the_store_is_away(principals, database, clock):
    with pytest.raises(InvalidKey):
        await principals.of(unknown_key())
    database.take_away()
    clock.ms += NEGATIVE_TTL_MS
    with pytest.raises(StoreAway):
        await principals.of(unknown_key())


async def test_the_cache_is_bounded(principals, key, monkeypatch):
    monkeypatch.setattr(module, "MAX_ENTRIES", 8)
    await principals.of(key)
    for number in range(20):
        with pytest.raises(InvalidKey):
            await principals.of(unknown_key(number))
        assert len(principals._entries) <= 8
    assert (await principals.of(key)).team.name == "growth"


async def test_no_key_is_kept(principals, key):
    await principals.of(key)
    kept = repr(principals._entries) + repr(list(principals._entries))
    assert key not in kept
    assert key[19:62] not in kept
