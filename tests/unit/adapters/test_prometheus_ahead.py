"""Counters that are there before they count."""

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from proxy.adapters.prometheus import Metrics
from proxy.adapters.prometheus_ahead import _AT_ONCE, _MOST, Ahead

NAMES = st.sampled_from("abcdef")


def made_by(steps):
    """What is made by steps: a set of teams that live, a use of a model, or None for the time passing."""
    made = []
    ahead = Ahead(lambda *each: made.append(each))
    for step in steps:
        match step:
            case None:
                ahead.make_some()
            case frozenset():
                ahead.teams_live(step)
            case model, endpoint:
                ahead.used(model, endpoint)
    for _ in range(_MOST):
        ahead.make_some()
    return made


@given(
    st.lists(st.none() | st.frozensets(NAMES) | st.tuples(NAMES, st.sampled_from(["chat", "embeddings"])), max_size=30)
)
def test_every_team_meets_every_use_once_in_whatever_order_they_come(steps):
    teams = {team for step in steps if isinstance(step, frozenset) for team in step}
    uses = {step for step in steps if isinstance(step, tuple)}
    assert sorted(made_by(steps)) == sorted((team, *use) for team, use in product(teams, uses))


def test_a_few_at_a_time():
    made = []
    ahead = Ahead(lambda *each: made.append(each))
    ahead.teams_live(f"team-{number}" for number in range(_AT_ONCE + 1))
    ahead.used("gpt-4o", "chat")
    assert not made
    ahead.make_some()
    assert len(made) == _AT_ONCE
    ahead.make_some()
    ahead.make_some()
    assert len(made) == _AT_ONCE + 1


def test_there_is_a_bound():
    teams = frozenset(f"team-{number}" for number in range(_MOST))
    assert len(made_by([teams, ("a", "chat"), ("b", "chat"), teams | {"late"}])) == _MOST


def test_a_new_team_has_its_counters_before_its_first_request_for_a_model_that_another_uses():
    metrics = Metrics({"gpt-4o"}.__contains__)
    metrics.prepare_models([("growth", "gpt-4o", "chat")])
    metrics.prepare(["growth", "search"])
    of_model = {"team": "search", "model": "gpt-4o"}
    assert metrics.registry.get_sample_value("tollgate_spend_usd_total", of_model) is None
    metrics.prepare_more()
    assert metrics.registry.get_sample_value("tollgate_spend_usd_total", of_model) == 0
    labels = {**of_model, "endpoint": "chat", "outcome": "ok"}
    assert metrics.registry.get_sample_value("tollgate_requests_total", labels) == 0
