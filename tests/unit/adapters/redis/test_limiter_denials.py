"""How long a refusal is told again, and to whom."""

import pytest

from proxy.adapters.redis.denials import Denials
from proxy.core.bucket import Cost, Dimension, Refused, Scope, Standing
from proxy.core.tiers import Limits, Schedule

MS = 1_000_000
COST = Cost(1, 10)


def scopes(*limits):
    held = Limits(*limits)
    return (Scope("team", Schedule(held, held)),)


SCOPES = scopes(10, 600)


def refused(wait_ms):
    return Refused(wait_ms, "team", Dimension.TOKENS, 600, 600, 10, Standing())


def noted(denials, wait_ms, team="a", cost=COST, scopes=SCOPES):
    denials.note(team, scopes, cost, refused(wait_ms), 0, denials.mark(team))


@pytest.mark.parametrize(
    ("wait_ms", "now_ns", "left_ms"),
    [
        (700, 0, 700),
        (700, MS - 1, 700),
        (700, MS, 699),
        (700, 50 * MS - 1, 651),
        (700, 50 * MS, None),
        (7, 7 * MS - 1, 1),
        (7, 7 * MS, None),
    ],
)
def test_the_wait_that_is_left_is_told_for_fifty_milliseconds_and_never_beyond_the_wait(wait_ms, now_ns, left_ms):
    denials = Denials(50)
    noted(denials, wait_ms)
    found = denials.find("a", SCOPES, COST, now_ns)
    assert (found and found.wait_ms) == left_ms
    assert ("a" in denials) == (left_ms is not None)


def test_another_question_is_asked_of_the_store():
    denials = Denials(50)
    noted(denials, 700)
    assert denials.find("a", SCOPES, Cost(1, 9), 0) is None
    assert denials.find("b", SCOPES, COST, 0) is None
    assert denials.find("a", SCOPES, COST, 0) == refused(700)
    assert denials.find("a", scopes(10, 601), COST, 0) is None
    # Limits that changed once are not asked about in their old form again.
    assert "a" not in denials


def test_a_change_of_the_team_ends_its_refusals_also_the_one_that_is_on_its_way():
    denials = Denials(50)
    noted(denials, 700)
    noted(denials, 700, team="b")
    mark = denials.mark("a")
    denials.forget("a")
    assert denials.find("a", SCOPES, COST, 0) is None
    assert denials.find("b", SCOPES, COST, 0) == refused(700)
    denials.note("a", SCOPES, COST, refused(700), 0, mark)
    assert "a" not in denials


def test_what_is_held_is_bounded():
    denials = Denials(50)
    for number in range(10_000):
        noted(denials, 700, cost=Cost(1, number))
    assert len(denials) <= 16
    for number in range(10_000):
        noted(denials, 700, team=f"team-{number}")
    assert len(denials) <= 4_096


def test_without_a_time_to_hold_nothing_is_held():
    denials = Denials(0)
    noted(denials, 700)
    assert "a" not in denials
