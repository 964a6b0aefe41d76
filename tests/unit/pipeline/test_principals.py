import asyncio
import hmac
import shutil
import threading
from collections import Counter, OrderedDict

import pytest
from sqlalchemy import event

from proxy.adapters.secrets import PEPPER_FILE, load_or_create_pepper
from proxy.core.errors import InvalidKey, Overloaded, StoreAway
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
    """Holds look-ups of keys in the database, which are on threads, until it is opened."""

    def __init__(self, engine, when="before_cursor_execute") -> None:
        self.reached = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._open = threading.Event()
        event.listen(engine, when, self._wait)

    def _wait(self, _connection, _cursor, statement, *_) -> None:
        if "FROM api_keys" in statement and threading.current_thread() is not threading.main_thread():
            self._loop.call_soon_threadsafe(self.reached.set)
            assert self._open.wait(60)

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


async def test_the_cache_of_the_refused_is_bounded_and_apart(principals, key, monkeypatch):
    monkeypatch.setattr(module, "MAX_REFUSED", 8)
    await principals.of(key)
    for number in range(20):
        with pytest.raises(InvalidKey):
            await principals.of(unknown_key(number))
        assert len(principals._refused) <= 8
    assert len(principals._entries) == 1
    assert (await principals.of(key)).team.name == "growth"


async def test_the_cache_of_principals_is_bounded(principals, registry, monkeypatch):
    monkeypatch.setattr(module, "MAX_ENTRIES", 3)
    keys = [registry.issue_key("growth").key for _ in range(5)]
    for key in keys:
        await principals.of(key)
        assert len(principals._entries) <= 3


async def test_any_number_of_invented_keys_take_nobodys_place_and_a_bounded_room(
    registry, key_store, clock, tmp_path, monkeypatch
):
    """Well formed, with good checksums: as an attacker who has read this would make them."""
    monkeypatch.setattr(module, "MAX_REFUSED", 1_000)
    asked = Counter()

    class Unhurried:
        """The store itself, but for the threads, of which so many would take long."""

        async def find(self, kid):
            asked[kid] += 1
            return key_store._find("find", kid, ()) if kid in known else None

    known = {(issued := registry.issue_key("growth")).record.kid}
    principals = Principals(Unhurried(), load_or_create_pepper(tmp_path), clock)
    await principals.of(issued.key)
    for number in range(10_000):
        with pytest.raises(InvalidKey):
            await principals.of(unknown_key(number))
    assert len(principals._refused) == module.MAX_REFUSED
    assert len(principals._look_ups) == 0
    assert len(principals._entries) == 1
    assert principals._warned_ms == {}
    assert len(principals.notes._used) == 1
    before = asked.total()
    assert (await principals.of(issued.key)).team.name == "growth"
    assert asked.total() == before, "who was in is still in the cache"


class Doors:
    """Holds every statement that looks for a key, and counts those that wait."""

    def __init__(self, engine) -> None:
        self.waiting = 0
        self.most = 0
        self._lock = threading.Lock()
        self._open = threading.Event()
        event.listen(engine, "before_cursor_execute", self._wait)

    def _wait(self, _connection, _cursor, statement, *_) -> None:
        if "FROM api_keys" in statement or "FROM key_secrets" in statement:
            with self._lock:
                self.waiting += 1
                self.most = max(self.most, self.waiting)
            assert self._open.wait(60)
            with self._lock:
                self.waiting -= 1

    def open(self) -> None:
        self._open.set()


async def until(condition) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - what is waited for happens in threads
            await asyncio.sleep(0.001)


async def test_strangers_wait_in_a_bounded_line_of_their_own(principals, key, database, clock, monkeypatch):
    monkeypatch.setattr(module, "MAX_STRANGERS_WAITING", 20)
    await principals.of(key)
    clock.ms += POSITIVE_TTL_MS
    doors = Doors(database.engine)
    strangers = [asyncio.create_task(principals.of(unknown_key(number))) for number in range(20)]
    await until(lambda: doors.waiting == module.MAX_STRANGERS_AT_ONCE)
    with pytest.raises(Overloaded):
        await principals.of(unknown_key(99))
    # A principal whose time is up does not queue behind them.
    renewed = asyncio.create_task(principals.of(key))
    await until(lambda: doors.waiting == module.MAX_STRANGERS_AT_ONCE + 1)
    doors.open()
    assert (await renewed).team.name == "growth"
    assert {type(each) for each in await asyncio.gather(*strangers, return_exceptions=True)} == {InvalidKey}
    assert doors.most == module.MAX_STRANGERS_AT_ONCE + 1
    with pytest.raises(InvalidKey):
        await principals.of(unknown_key(99))


FROM_ELSEWHERE = "my team key number 1"


async def test_a_key_from_elsewhere_opens_and_is_refused_like_any_other(principals, registry, clock, database):
    (record,) = registry.import_keys("growth", [FROM_ELSEWHERE], "legacy", expires_at_ms=clock.ms + 60_000)
    principal = await principals.of(FROM_ELSEWHERE)
    assert (principal.team.name, principal.key.kid, principal.key.label) == ("growth", record.kid, "legacy")
    look_ups = database.key_look_ups
    await principals.of(FROM_ELSEWHERE)
    assert database.key_look_ups == look_ups
    assert FROM_ELSEWHERE not in repr(principals._entries)
    for other in (FROM_ELSEWHERE + " ", " " + FROM_ELSEWHERE, FROM_ELSEWHERE.upper(), FROM_ELSEWHERE[:-1]):
        with pytest.raises(InvalidKey):
            await principals.of(other)
    clock.ms += 60_000
    with pytest.raises(InvalidKey):
        await principals.of(FROM_ELSEWHERE)
    principals.invalidate()
    registry.import_keys("growth", [FROM_ELSEWHERE + "0"])
    kid = (await principals.of(FROM_ELSEWHERE + "0")).key.kid
    registry.revoke_key(kid)
    principals.invalidate()
    with pytest.raises(InvalidKey):
        await principals.of(FROM_ELSEWHERE + "0")


async def test_while_nothing_was_imported_any_garbage_costs_one_question(principals, database, clock, key):
    asked = []
    event.listen(database.engine, "before_cursor_execute", lambda _c, _cursor, text, *_: asked.append(text))
    for number in range(50):
        with pytest.raises(InvalidKey):
            await principals.of(f"sk-proj-not-a-key-{number}")
    assert len([text for text in asked if "key_secrets" in text]) == 1
    assert len(principals._refused) == 0, "nothing needs to be kept of them"
    clock.ms += NEGATIVE_TTL_MS
    with pytest.raises(InvalidKey):
        await principals.of("sk-proj-not-a-key-0")
    assert len([text for text in asked if "key_secrets" in text]) == 2


async def test_garbage_costs_one_look_up_for_each_text_and_two_seconds(principals, registry, database, clock):
    registry.import_keys("growth", [FROM_ELSEWHERE])
    asked = []
    event.listen(database.engine, "before_cursor_execute", lambda _c, _cursor, text, *_: asked.append(text))

    def look_ups():
        return len([text for text in asked if "key_secrets.secret_hash IN" in text])

    for expected in (1, 1, 1):
        found = await asyncio.gather(*(principals.of("sk-proj-garbage") for _ in range(20)), return_exceptions=True)
        assert {type(error) for error in found} == {InvalidKey}
        assert look_ups() == expected
    clock.ms += NEGATIVE_TTL_MS
    with pytest.raises(InvalidKey):
        await principals.of("sk-proj-garbage")
    assert look_ups() == 2


@pytest.mark.parametrize("text", ["x" * 513, "two\nlines", "", "\ud800", "tab\there"])
async def test_what_cannot_be_a_key_asks_nobody(principals, registry, database, text):
    registry.import_keys("growth", [FROM_ELSEWHERE])
    asked = []
    event.listen(database.engine, "before_cursor_execute", lambda *told: asked.append(told))
    with pytest.raises(InvalidKey):
        await principals.of(text)
    assert asked == []
    assert len(principals._refused) == 0


async def test_an_import_is_seen_once_it_is_noticed(principals, registry):
    with pytest.raises(InvalidKey):
        await principals.of(FROM_ELSEWHERE)
    registry.import_keys("growth", [FROM_ELSEWHERE])
    with pytest.raises(InvalidKey):
        await principals.of(FROM_ELSEWHERE)
    principals.invalidate()
    assert (await principals.of(FROM_ELSEWHERE)).team.name == "growth"


async def test_a_key_from_elsewhere_goes_on_while_the_store_is_away(principals, registry, database, clock):
    registry.import_keys("growth", [FROM_ELSEWHERE])
    await principals.of(FROM_ELSEWHERE)
    database.take_away()
    clock.ms += POSITIVE_TTL_MS
    assert (await principals.of(FROM_ELSEWHERE)).team.name == "growth"


async def test_both_secrets_of_a_rotated_key_open_one_identity_until_the_overlap_ends(
    registry, key_store, clock, tmp_path
):
    """On two workers, of which one never hears of it again: the end is kept to the millisecond by both."""
    issued = registry.issue_key("growth", "ci")
    rotated = registry.rotate_key(issued.record.kid, overlap_ms=86_400_000)
    workers = [Principals(key_store, load_or_create_pepper(tmp_path), clock) for _ in range(2)]
    ends_at_ms = clock.ms + 86_400_000
    for worker in workers:
        for key in (issued.key, rotated.key):
            found = await worker.of(key)
            assert (found.key.kid, found.key.label, found.team.name) == (issued.record.kid, "ci", "growth")
    clock.ms = ends_at_ms - 1
    for worker in workers:
        assert await worker.of(issued.key)
    clock.ms = ends_at_ms
    for worker in workers:
        with pytest.raises(InvalidKey):
            await worker.of(issued.key)
        assert (await worker.of(rotated.key)).key.kid == issued.record.kid


async def test_an_overlap_ends_though_the_store_is_away(principals, registry, database, clock):
    issued = registry.issue_key("growth")
    registry.rotate_key(issued.record.kid, overlap_ms=60_000)
    await principals.of(issued.key)
    database.take_away()
    clock.ms += 59_999
    await principals.of(issued.key)
    clock.ms += 1
    with pytest.raises(InvalidKey):
        await principals.of(issued.key)


async def test_a_key_that_is_named_as_ended_is_not_trusted_though_the_store_is_away(principals, registry, database):
    """Revoked, and the database gone before anybody has looked: only what was said over Redis is known."""
    ended, other = (registry.issue_key("growth") for _ in range(2))
    for each in (ended, other):
        await principals.of(each.key)
    registry.revoke_key(ended.record.kid)
    database.take_away()
    principals.forget(["nobodys-kid", ended.record.kid])
    with pytest.raises(StoreAway):
        await principals.of(ended.key)
    assert await principals.of(other.key)


async def test_both_secrets_of_a_key_that_is_ended_are_forgotten_and_no_other_entry_is_looked_at(
    principals, registry, database
):
    """A hundred thousand may be cached, and every change of a key or team comes through here."""
    issued, other = registry.issue_key("growth"), registry.issue_key("growth")
    rotated = registry.rotate_key(issued.record.kid, overlap_ms=60_000)
    for each in (issued, rotated, other):
        await principals.of(each.key)
    principals._entries = Unwalked(principals._entries)
    principals.forget([issued.record.kid])
    principals.invalidate([])
    assert len(principals._entries) == 1
    database.take_away()
    for each in (issued, rotated):
        with pytest.raises(StoreAway):
            await principals.of(each.key)
    assert await principals.of(other.key)


async def test_what_is_known_of_where_the_entries_of_a_key_are_goes_with_them(principals, registry, monkeypatch):
    monkeypatch.setattr(module, "MAX_ENTRIES", 2)
    first = registry.issue_key("growth")
    rotated = registry.rotate_key(first.record.kid, overlap_ms=60_000)
    others = [registry.issue_key("growth") for _ in range(2)]
    for each in (first, rotated):
        await principals.of(each.key)
    principals.invalidate([])
    for each in (rotated, *others, others[1]):
        await principals.of(each.key)
        assert sorted(digest for held in principals._digests_of.values() for digest in held) == sorted(
            principals._entries
        )
    assert set(principals._digests_of) == {each.record.kid for each in others}


class Unwalked(OrderedDict):
    """Nobody may go through all of it."""

    def items(self):
        raise AssertionError("every entry was looked at")

    values = keys = __iter__ = items


async def test_who_was_not_ended_by_a_change_goes_on_though_the_store_is_away(principals, registry, database, clock):
    ended, other = (registry.issue_key("growth") for _ in range(2))
    for each in (ended, other):
        await principals.of(each.key)
    registry.revoke_key(ended.record.kid)
    database.take_away()
    principals.invalidate([])
    for each in (ended, other):
        assert await principals.of(each.key), "a change of something else"
    principals.invalidate([ended.record.kid])
    clock.ms += STALE_MS - 1
    with pytest.raises(StoreAway):
        await principals.of(ended.key)
    assert await principals.of(other.key)
    principals.invalidate()
    with pytest.raises(StoreAway):
        await principals.of(other.key)


async def test_what_was_read_before_a_key_was_ended_is_not_kept(principals, registry, database):
    issued = registry.issue_key("growth")
    gate = Gate(database.engine, "after_cursor_execute")
    asked = asyncio.create_task(principals.of(issued.key))
    await gate.reached.wait()
    principals.forget([issued.record.kid])
    gate.open()
    await asked
    database.take_away()
    with pytest.raises(StoreAway):
        await principals.of(issued.key)


async def test_a_key_that_is_ended_while_a_store_fails_to_say_so_is_not_trusted(principals, registry, database, clock):
    issued = registry.issue_key("growth")
    await principals.of(issued.key)
    clock.ms += POSITIVE_TTL_MS
    gate = Gate(database.engine)
    asked = asyncio.create_task(principals.of(issued.key))
    await gate.reached.wait()
    principals.forget([issued.record.kid])
    database.take_away()
    gate.open()
    with pytest.raises(StoreAway):
        await asked


@pytest.mark.parametrize("told", ["a change", "an end"])
async def test_who_comes_after_a_change_does_not_join_those_before_it(principals, registry, database, told):
    issued = registry.issue_key("growth")
    gate = Gate(database.engine, "after_cursor_execute")
    before = asyncio.create_task(principals.of(issued.key))
    await gate.reached.wait()
    registry.revoke_key(issued.record.kid)
    if told == "a change":
        principals.invalidate()
    else:
        principals.forget([issued.record.kid])
    after = asyncio.create_task(principals.of(issued.key))
    await asyncio.sleep(0)
    gate.open()
    assert (await before).key.kid == issued.record.kid
    with pytest.raises(InvalidKey):
        await after
    with pytest.raises(InvalidKey):
        await principals.of(issued.key)


async def test_a_new_pepper_is_taken_up_when_it_is_noticed(principals, registry, key):
    old = await principals.of(key)
    registry.rotate_pepper()
    principals.invalidate()
    fresh = registry.issue_key("growth").key
    assert (await principals.of(fresh)).team.name == "growth"
    assert (await principals.of(key)).key.kid == old.key.kid


async def test_a_new_pepper_is_taken_up_when_a_key_needs_it(principals, registry, key):
    await principals.of(key)
    registry.rotate_pepper()
    assert (await principals.of(registry.issue_key("growth").key)).team.name == "growth"


async def test_a_key_from_elsewhere_under_a_new_pepper_is_found(principals, registry):
    registry.rotate_pepper()
    registry.import_keys("growth", [FROM_ELSEWHERE])
    assert (await principals.of(FROM_ELSEWHERE)).team.name == "growth"


@pytest.mark.parametrize("kind", ["issued", "imported"])
async def test_a_pepper_that_is_not_here_is_said_once_a_minute_and_never_what_was_sent(
    registry, key_store, clock, tmp_path, caplog, kind
):
    late = tmp_path / "late machine"
    late.mkdir()
    shutil.copy(tmp_path / PEPPER_FILE, late)
    registry.rotate_pepper()
    if kind == "issued":
        keys = [registry.issue_key("growth").key for _ in range(5)]
    else:
        keys = [f"{FROM_ELSEWHERE}-{number}" for number in range(5)]
        registry.import_keys("growth", keys)
    principals = Principals(key_store, load_or_create_pepper(late), clock)
    for key in keys:
        with pytest.raises(InvalidKey):
            await principals.of(key)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "pepper 2" in caplog.text
    assert "pepper_file" in caplog.text
    assert not any(key in caplog.text for key in keys)
    clock.ms += 60_000
    with pytest.raises(InvalidKey):
        await principals.of(keys[0])
    assert len(caplog.records) == 2
    # The file arrives.
    shutil.copy(tmp_path / PEPPER_FILE, late)
    clock.ms += NEGATIVE_TTL_MS
    assert (await principals.of(keys[0])).team.name == "growth"


async def test_the_same_is_done_for_a_key_that_is_known_and_for_one_that_is_not(principals, key, registry, monkeypatch):
    done = []
    digest, compare = hmac.digest, hmac.compare_digest
    monkeypatch.setattr(hmac, "digest", lambda *given: done.append("hash") or digest(*given))
    monkeypatch.setattr(hmac, "compare_digest", lambda *given: done.append("compare") or compare(*given))
    await principals.of(key)
    known = list(done)
    done.clear()
    with pytest.raises(InvalidKey):
        await principals.of(unknown_key())
    assert done == known == ["hash", "compare"]


async def test_a_use_is_noted_and_a_refusal_is_not(principals, key, registry, clock):
    principal = await principals.of(key)
    with pytest.raises(InvalidKey):
        await principals.of(unknown_key())
    clock.ms += 5
    await principals.of(key)
    assert principals.notes._used == {principal.key.kid: clock.ms}
    await principals.notes.write()
    (record,) = [each for each in registry.list_keys() if each.kid == principal.key.kid]
    assert record.last_used_at_ms == clock.ms


async def test_a_key_that_is_used_after_a_new_pepper_is_hashed_under_it(principals, key, registry):
    registry.rotate_pepper()
    principals.invalidate()
    await principals.of(key)
    assert [each.keys for each in registry.list_peppers()] == [1, 0]
    await principals.notes.write()
    assert [each.keys for each in registry.list_peppers()] == [0, 0]
    registry.retire_pepper(1)
    principals.invalidate()
    assert (await principals.of(key)).team.name == "growth"
    assert principals.notes._hashes == {}


async def test_no_key_is_kept(principals, key):
    await principals.of(key)
    kept = repr(principals._entries) + repr(list(principals._entries))
    assert key not in kept
    assert key[19:62] not in kept
