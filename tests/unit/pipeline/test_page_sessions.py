"""Who has signed in to a page is asked of the store each time."""

from __future__ import annotations

import pytest

from proxy.adapters.secrets import load_or_create_pepper
from proxy.core.errors import InvalidKey, StoreAway
from proxy.core.page_session import SESSION_MS
from proxy.pipeline.page_sessions import PageSessions


@pytest.fixture
def sessions(bench, key_store, tmp_path):
    return PageSessions(bench.services.principals, key_store, load_or_create_pepper(tmp_path), bench.clock)


async def is_in(sessions, token):
    try:
        return (await sessions.of(token)).team.name == "growth"
    except InvalidKey:
        return False


async def test_a_key_signs_in_for_an_hour(bench, sessions):
    token, principal = await sessions.begin(bench.key)
    assert principal.team.name == "growth"
    assert bench.key.rpartition("_")[2] not in token
    bench.clock.ms += SESSION_MS - 1
    assert await is_in(sessions, token)
    bench.clock.ms += 1
    assert not await is_in(sessions, token)


async def test_a_key_of_nobody_does_not(sessions):
    with pytest.raises(InvalidKey):
        await sessions.begin("sk-tg_" + "a" * 61)
    assert not await is_in(sessions, "anything")


async def test_a_revoked_key_is_out_at_once(bench, sessions, registry):
    token, principal = await sessions.begin(bench.key)
    registry.revoke_key(principal.key.kid)
    assert not await is_in(sessions, token)


async def test_a_rotated_secret_is_out_when_it_ends(bench, sessions, registry):
    token, principal = await sessions.begin(bench.key)
    issued = registry.rotate_key(principal.key.kid, overlap_ms=60_000)
    assert await is_in(sessions, token)
    bench.services.principals.invalidate()
    newer, _ = await sessions.begin(issued.key)
    bench.clock.ms += 60_000
    assert not await is_in(sessions, token)
    assert await is_in(sessions, newer)


async def test_an_imported_key_signs_in(bench, sessions, registry):
    registry.import_keys("growth", ["a key that somebody had: 1"])
    bench.services.principals.invalidate()
    token, _ = await sessions.begin("a key that somebody had: 1")
    assert await is_in(sessions, token)


async def test_a_store_that_is_away_lets_nobody_look(bench, sessions):
    token, _ = await sessions.begin(bench.key)
    bench.database.take_away()
    with pytest.raises(StoreAway):
        await sessions.of(token)
    bench.database.bring_back()
    assert await is_in(sessions, token)


async def test_an_old_pepper_goes_on_until_it_is_retired(bench, sessions, tmp_path):
    peppers = load_or_create_pepper(tmp_path)
    token, _ = await sessions.begin(bench.key)
    peppers.add(2)
    assert await is_in(sessions, token)
    peppers.remove(1)
    assert not await is_in(sessions, token)
