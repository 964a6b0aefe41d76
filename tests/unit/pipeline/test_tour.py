"""Where a request is sent next: whatever fails, in whatever order, the rules hold."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from proxy.core.breaker import Breaker, BreakerState
from proxy.core.errors import Overloaded
from proxy.core.retry import Remedy, RetryPolicy
from proxy.core.retry_budget import RetryBudget
from proxy.core.routing import Candidate
from proxy.pipeline.tour import Tour
from proxy.pipeline.upstreams import Site, SiteKey, Upstreams, breaker_policy

NOW_MS = 1_000_000
POLICY = RetryPolicy(max_attempts=4, first_backoff_ms=100, max_backoff_ms=1_000, total_deadline_ms=60_000)
AGAIN, OUT_OF_RATE, OTHER_KEY = Remedy(again=True), Remedy(again=True, other_key=True), Remedy(other_key=True)
ROOMY = {"percent": 100, "floor_per_second": 1_000}


@dataclass
class Line:
    """As much of a way to call as is looked at before it is called."""

    waiting: int = 0


def site(name="a", *, keys=1, **budget):
    return Site(
        Candidate(name, name),
        tuple(SiteKey(number, Line()) for number in range(1, keys + 1)),
        breaker=Breaker(breaker_policy(3, 1_000)),
        budget=RetryBudget(**(budget or ROOMY)),
    )


def tour_of(*sites, policy=POLICY, refused=None):
    return Tour(sites, policy, (refused if refused is not None else []).append)


def opened(site, now_ms=NOW_MS):
    for _ in range(3):
        site.breaker.failed(now_ms)
    assert site.breaker.state is BreakerState.OPEN
    return site


def calls_of(tour, remedies, now_ms=NOW_MS):
    """The calls that are made while each fails as it is told: site, number of the key, wait."""
    made, remedies = [], iter(remedies)
    while (stop := tour.next(now_ms, 0, 0.5)) is not None:
        made.append((stop.site.name, stop.key.number, stop.wait_ms))
        tour.called(stop, now_ms)
        tour.failed(stop, next(remedies), None, now_ms)
    return made


def test_one_upstream_is_asked_again_after_growing_waits():
    assert calls_of(tour_of(site()), [AGAIN] * 4) == [("a", 1, 0), ("a", 1, 50), ("a", 1, 100), ("a", 1, 200)]


def test_everybody_is_asked_once_before_anybody_is_asked_again():
    calls = calls_of(tour_of(site("a"), site("b"), site("c")), [AGAIN] * 4)
    assert calls == [("a", 1, 0), ("b", 1, 0), ("c", 1, 0), ("a", 1, 50)]


def test_keys_are_gone_through_before_other_upstreams():
    calls = calls_of(tour_of(site("a", keys=2), site("b")), [OTHER_KEY, OTHER_KEY, AGAIN, AGAIN])
    assert [call[0] for call in calls] == ["a", "a", "b", "b"]
    assert len({call[1] for call in calls[:2]}) == 2


def test_a_server_that_fails_is_not_asked_under_another_key():
    assert calls_of(tour_of(site("a", keys=3), site("b")), [AGAIN, None]) == [("a", 2, 0), ("b", 1, 0)]


def test_what_nothing_mends_ends_it():
    assert calls_of(tour_of(site("a"), site("b")), [None]) == [("a", 1, 0)]
    assert calls_of(tour_of(site("a"), site("b")), [AGAIN, None]) == [("a", 1, 0), ("b", 1, 0)]


def test_a_refused_key_is_not_tried_again_by_the_same_request():
    assert calls_of(tour_of(site("a", keys=2)), [OTHER_KEY, OTHER_KEY]) == [("a", 2, 0), ("a", 1, 0)]


def test_who_rests_is_passed_over_and_nobody_left_is_said():
    first, second = opened(site("a")), site("b")
    assert calls_of(tour_of(first, second), [AGAIN, None])[0] == ("b", 1, 0)
    opened(second, NOW_MS + 400)
    tour = tour_of(first, second)
    assert tour.next(NOW_MS + 500, 0, 0.5) is None
    assert tour.nobody(NOW_MS + 500).retry_after_ms == 500, "the soonest of them"


def test_a_queue_that_is_full_leads_on_and_is_what_is_said_in_the_end():
    tour = tour_of(site("a"), site("b"))
    full = Overloaded("too many wait")
    for name in ("a", "b"):
        stop = tour.next(NOW_MS, 0, 0.5)
        assert stop.site.name == name
        tour.full(stop, full)
    assert tour.next(NOW_MS, 0, 0.5) is None
    assert tour.nobody(NOW_MS) is full


def test_keys_that_rest_are_passed_over_but_not_when_all_do():
    busy, free = site("a", keys=2), site("b")
    busy.keys[0].rest(NOW_MS, 60_000)
    busy.keys[1].rest(NOW_MS, 30_000)
    assert calls_of(tour_of(busy, free), [None]) == [("b", 1, 0)]
    free.keys[0].rest(NOW_MS, 60_000)
    assert calls_of(tour_of(busy, free), [None]) == [("a", 2, 0)], "the one that is back first"


@pytest.mark.parametrize(("asked_ms", "rests_ms"), [(0, 1_000), (1_500, 1_500), (10**9, 60_000)])
def test_a_rest_has_bounds(asked_ms, rests_ms):
    key = SiteKey(1, Line())
    key.rest(NOW_MS, asked_ms)
    assert key.rests_until_ms() == NOW_MS + rests_ms


def test_a_key_that_is_out_of_rate_for_one_model_serves_the_others():
    one, other = site("a"), site("b")
    one.keys[0].rest(NOW_MS, 30_000, "gpt-4o")
    for model, first in (("gpt-4o", "b"), ("gpt-4o-mini", "a"), ("", "a")):
        tour = Tour((one, other), POLICY, [].append, model)
        assert tour.next(NOW_MS, 0, 0.5).site.name == first
    assert one.resting(NOW_MS) == 1
    assert one.resting(NOW_MS + 30_000) == 0
    two = site("c", keys=2)
    two.keys[0].rest(NOW_MS, 9_000, "gpt-4o")
    two.keys[1].rest(NOW_MS, 5_000, "gpt-4o")
    assert two.key(NOW_MS, model="gpt-4o") is None
    assert two.soonest("gpt-4o").number == 2
    assert {two.key(NOW_MS, model="gpt-4o-mini").number for _ in range(2)} == {1, 2}
    assert Tour((two,), POLICY, [].append, "gpt-4o").next(NOW_MS, 0, 0.5).key.number == 2, "the one that is back first"
    three = site("d", keys=2)
    three.keys[0].rest(NOW_MS, 9_000, "gpt-4o")
    tour = Tour((three,), POLICY, [].append, "gpt-4o")
    assert calls_of(tour, [OTHER_KEY]) == [("d", 2, 0)], "the other one rests"


def test_a_rest_for_every_model_is_not_cut_short_by_one_for_a_model():
    key = SiteKey(1, Line())
    key.rest(NOW_MS, 60_000)
    key.rest(NOW_MS, 1_000, "gpt-4o")
    assert key.rests_until_ms("gpt-4o") == key.rests_until_ms() == NOW_MS + 60_000


def test_only_so_many_models_are_remembered_that_a_key_rests_for():
    key = SiteKey(1, Line())
    for number in range(1_000):
        key.rest(NOW_MS + number, 60_000, f"model-{number}")
    assert len(key._of_models) <= 64
    assert key.rests_until_ms("model-999") == NOW_MS + 999 + 60_000
    key.rest(NOW_MS + 100_000, 1_000, "another")
    assert list(key._of_models) == ["another"], "what is over is not kept"


def test_the_key_that_is_waited_for_least_is_taken():
    busy = site("a", keys=3)
    busy.keys[0].call.waiting, busy.keys[2].call.waiting = 4, 2
    assert [busy.key(NOW_MS).number for _ in range(3)] == [2, 2, 2]
    busy.keys[1].call.waiting = 2
    assert [busy.key(NOW_MS).number for _ in range(4)] == [3, 2, 3, 2], "in turn where it makes no difference"


def test_a_budget_without_room_ends_it_and_is_told_once():
    refused = []
    tour = tour_of(site("a", percent=0, floor_per_second=0), refused=refused)
    assert calls_of(tour, [AGAIN]) == [("a", 1, 0)]
    assert refused == ["a"]


def test_a_budget_without_room_does_not_keep_others_from_being_asked():
    refused = []
    tour = tour_of(site("a", keys=2, percent=0, floor_per_second=0), site("b"), refused=refused)
    assert [call[0] for call in calls_of(tour, [OUT_OF_RATE, None])] == ["a", "b"]
    assert refused == ["a"]


def test_a_wait_too_long_to_sit_through_is_not_begun_and_another_is():
    first, second = site("a"), site("b")
    tour = tour_of(first, second)
    for asked_ms in (5_000, 700):
        stop = tour.next(NOW_MS, 0, 0.5)
        tour.called(stop, NOW_MS)
        tour.failed(stop, AGAIN, asked_ms, NOW_MS)
    stop = tour.next(NOW_MS, 0, 0.5)
    assert (stop.site, stop.wait_ms) == (second, 700)


def test_upstreams_that_name_no_model_are_one():
    mapped = Site(Candidate("mapped", "m", models={"gpt-4o": "x"}), (SiteKey(1, Line()),))
    late, early = site("late"), site("early")
    late.candidate = Candidate("late", "l", priority=3)
    upstreams = Upstreams([mapped, late, early])
    assert {upstreams.route("", draw / 10)[0].name for draw in range(10)} == {"early"}
    assert all(len(upstreams.route("", draw / 10)) == 1 for draw in range(10))
    assert upstreams.serve("")


outcomes = st.sampled_from([AGAIN, AGAIN, OUT_OF_RATE, OTHER_KEY, None])
steps = st.tuples(outcomes, st.none() | st.integers(0, 3_000), st.integers(0, 500), st.booleans())


@given(
    st.lists(st.tuples(st.integers(1, 3), st.booleans(), st.integers(0, 2)), min_size=1, max_size=4),
    st.lists(steps, min_size=12, max_size=12),
    st.integers(1, 8),
    st.floats(0, 1, exclude_max=True),
)
def test_any_tour(shapes, script, max_attempts, jitter):
    policy = RetryPolicy(max_attempts, 100, 1_000, 4_000)
    sites = [
        site(f"s{number}", keys=keys, percent=0, floor_per_second=floor)
        for number, (keys, _, floor) in enumerate(shapes)
    ]
    for each, (_, rests, _) in zip(sites, shapes, strict=True):
        if rests:
            opened(each)
    tour = tour_of(*sites, policy=policy)
    began_ms = now_ms = NOW_MS
    called, asked_until, verdicts = [], {}, {}
    for remedy, asked_ms, took_ms, is_full in script:
        stop = tour.next(now_ms, now_ms - began_ms, jitter)
        if stop is None:
            break
        assert stop.site.breaker.would_admit(now_ms)
        if is_full:
            tour.full(stop, Overloaded("full"))
            continue
        assert len(called) < max_attempts
        if called:
            last = verdicts[called[-1]]
            assert last is not None, "nothing follows what nothing mends"
            fresh = stop.site not in [key_site for key_site, _ in called]
            if stop.wait_ms:
                assert verdicts[stop.site, stop.key].again, "the same call needs a reason to be made again"
            elif not fresh and (stop.site, stop.key) not in called:
                assert last.other_key
                assert called[-1][0] is stop.site
        now_ms += stop.wait_ms
        assert now_ms >= asked_until.get(stop.key, 0), "what upstream asks for is kept"
        assert now_ms - began_ms < 4_000 or not stop.wait_ms, "no wait ends behind the deadline"
        tour.called(stop, now_ms)
        called.append((stop.site, stop.key))
        now_ms += took_ms
        tour.failed(stop, remedy, asked_ms, now_ms)
        verdicts[stop.site, stop.key] = remedy
        asked_until[stop.key] = now_ms + asked_ms if asked_ms and remedy is not None and remedy.again else 0
    event(f"{len(called)} calls")
    for each, (_, _, floor) in zip(sites, shapes, strict=True):
        times = [key_site for key_site, _ in called].count(each)
        assert max(0, times - 1) <= floor * 10
