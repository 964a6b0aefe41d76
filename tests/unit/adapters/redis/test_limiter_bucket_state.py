"""Names of buckets and numbers on the wire."""

import struct

from hypothesis import example, given
from hypothesis import strategies as st
from redis.crc import key_slot

from proxy.adapters.redis.bucket_state import (
    bucket_key,
    pack_charge,
    pack_cost,
    pack_places,
    pack_schedule,
    pack_settlement,
    pack_state,
    pack_terms,
    places_key,
    script_text,
    team_tag,
    unpack_state,
)
from proxy.adapters.redis.leases import LEASE_MS, RENEW_SECONDS
from proxy.core.bucket import Cost, Handle
from proxy.core.decision import PARALLEL_WAIT_MS
from proxy.core.tiers import LARGEST_LIMIT, Limits, Schedule

exact = st.integers(0, 2**53 - 1)
names = st.text(st.sampled_from("a:{}%7BD\0é"), max_size=6)


def doubles(packed):
    return struct.unpack(f"<{len(packed) // 8}d", packed)


@given(team=names, scopes=st.lists(names, min_size=2, max_size=4))
@example(team="", scopes=["", "{b}", "a"])
@example(team="}{", scopes=["team", "}x{y}"])
def test_all_buckets_and_places_of_a_team_are_in_one_slot_whatever_they_are_called(team, scopes):
    tag = team_tag(team)[1:-1]
    assert tag
    assert not set(tag) & set("{}")
    slots = {key_slot(key(team, scope).encode()) for scope in scopes for key in (bucket_key, places_key)}
    assert slots == {key_slot(tag.encode())}


@given(first=st.tuples(names, names), second=st.tuples(names, names))
@example(first=("a", "}b"), second=("a}", "b"))
@example(first=("", "a"), second=("%", "a"))
@example(first=("{", "a"), second=("%7B", "a"))
def test_no_two_buckets_have_one_name_and_no_places_have_a_buckets(first, second):
    assert (bucket_key(*first) == bucket_key(*second)) == (first == second)
    assert (places_key(*first) == places_key(*second)) == (first == second)
    assert places_key(*first) != bucket_key(*second)


@given(state=st.tuples(*6 * [exact]))
def test_a_state_comes_back_exactly(state):
    assert unpack_state(pack_state(state)) == state


@given(numbers=st.tuples(*5 * [exact | st.just(-1)]))
def test_a_schedule_and_a_handle_are_plain_doubles(numbers):
    before, after = Limits(20, 40_000, 5), Limits(None, 90_000)
    packed = pack_terms(Schedule(before, after, 1_700_000_000_001), Handle(*numbers))
    assert doubles(packed) == (1_700_000_000_001, *before.figures, *after.figures, *numbers)
    assert doubles(pack_schedule(Schedule(before, after))) == (float("inf"), *before.figures, *before.figures)


def test_costs_are_cut_where_the_model_cuts_them():
    huge = 10**30
    assert doubles(pack_cost(Cost(-3, huge))) == (0, LARGEST_LIMIT + 1)
    assert doubles(pack_charge(Cost(huge, -3))) == (LARGEST_LIMIT, 0)
    assert doubles(pack_places([(0, 3), (2, huge)])) == (0, 3, 2, LARGEST_LIMIT)
    assert doubles(pack_settlement(Cost(1, huge), Cost(-1, huge))) == (1, LARGEST_LIMIT, 0, LARGEST_LIMIT)


def test_the_scripts_read_the_servers_clock_in_one_place():
    for verb in ("reserve", "settle", "charge", "peek", "renew"):
        assert script_text(verb).count("'TIME'") == 1
        assert "redis.replicate_commands" not in script_text(verb)


def test_the_scripts_grant_a_lease_for_as_long_as_it_is_renewed_for():
    assert f"local LEASE_MS = {LEASE_MS}\n" in script_text("reserve")
    assert f"PARALLEL_WAIT_MS = 2, {PARALLEL_WAIT_MS}\n" in script_text("reserve")
    assert 3 * RENEW_SECONDS * 1_000 <= LEASE_MS
