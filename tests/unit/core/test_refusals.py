"""What was refused lately: bounded, alike in one place, newest first."""

from __future__ import annotations

from proxy.core.event import Outcome
from proxy.core.record import RequestRecord
from proxy.core.refusals import KEPT_REFUSALS, RecentRefusals, merged


def record(number=0, outcome=Outcome.LIMITED, **more):
    told = {"team": "t", "model": "m", "status": 429, "limited_scope": "team", "limited_dimension": "requests"}
    return RequestRecord(
        f"req_{number}",
        1_000 + number,
        "POST",
        "chat",
        outcome=outcome,
        duration_ms=1,
        overhead_ms=1,
        **{**told, **more},
    )


def noted(*records):
    kept = RecentRefusals()
    for each in records:
        kept.note(each)
    return kept


def test_only_refusals_are_kept():
    refused = {Outcome.LIMITED, Outcome.REJECTED, Outcome.UNAVAILABLE, Outcome.FAILED}
    for outcome in Outcome:
        kept = noted(record(outcome=outcome))
        assert (len(kept.latest()), kept.noted) == ((1, 1) if outcome in refused else (0, 0))


def test_what_repeats_takes_one_place_and_is_the_latest():
    kept = noted(record(1), record(2, team="u"), record(3))
    first, second = kept.latest()
    assert (first.team, first.count, first.at_ms, first.request_id) == ("t", 2, 1_003, "req_3")
    assert (second.team, second.count) == ("u", 1)


def test_whatever_tells_refusals_apart():
    others = [
        {"team": "u"}, {"model": "n"}, {"status": 403}, {"limited_scope": "model:m"}, {"limited_dimension": "tokens"},
        {"error_code": "x"},
    ]  # fmt: skip
    assert len(noted(record(), *(record(**other) for other in others)).latest()) == 1 + len(others)


def test_a_flood_of_kinds_takes_no_more_room_and_one_of_a_kind_hides_no_other():
    kept = noted(*(record(number, model=f"m{number}") for number in range(3 * KEPT_REFUSALS)))
    models = [each.model for each in kept.latest()]
    assert models == [f"m{number}" for number in reversed(range(2 * KEPT_REFUSALS, 3 * KEPT_REFUSALS))]
    for number in range(1_000):
        kept.note(record(number, team=""))
    assert len(kept.latest()) == KEPT_REFUSALS
    assert [each.model for each in kept.latest()][1:] == models[:-1]


def test_it_holds_nothing_of_a_key_and_little_of_a_model():
    (kept,) = noted(record(limited_scope="key:FM5xI2AQhjBI", model="x" * 300, key_id="FM5xI2AQhjBI")).latest()
    assert kept.scope == "key"
    assert len(kept.model) == 64
    assert "FM5xI2AQhjBI" not in repr(kept)


def test_several_processes_are_one():
    one, other = noted(record(1), record(5, team="u")), noted(record(4), record(2, team="v"))
    told = [(each.team, each.count, each.at_ms) for each in merged([one.latest(), other.latest()])]
    assert told == [("u", 1, 1_005), ("t", 2, 1_004), ("v", 1, 1_002)]
    many = [noted(*(record(number, team=f"{process}-{number}") for number in range(40))).latest() for process in "ab"]
    assert len(merged(many)) == KEPT_REFUSALS
    assert merged([]) == ()
