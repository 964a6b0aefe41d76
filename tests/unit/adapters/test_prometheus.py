from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from prometheus_client.parser import text_string_to_metric_families

from proxy.adapters import prometheus
from proxy.adapters.prometheus import Metrics
from proxy.core.event import Outcome
from proxy.core.record import CacheResult, RequestRecord
from proxy.core.usage import Usage

KNOWN = frozenset({"gpt-4o", "gpt-4o-mini"})
RECORD = RequestRecord(
    request_id="req_1",
    at_ms=1_800_000_000_000,
    method="POST",
    endpoint="chat",
    status=200,
    outcome=Outcome.OK,
    duration_ms=120.0,
    overhead_ms=2.0,
    upstream_ms=118.0,
    team="growth",
    key_id="k",
    model="gpt-4o",
    upstream="openai",
    cache=CacheResult.MISS,
    attempts=1,
    usage=Usage(100, 20, cached_input_tokens=64, reasoning_tokens=5),
    cost_pico_usd=450_000_000,
    request_use_ratio=0.25,
    token_use_ratio=0.5,
)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(KNOWN.__contains__)


def samples(metrics: Metrics) -> dict[tuple[str, frozenset], float]:
    """Every series of the exposition, as a scraper reads it."""
    families = text_string_to_metric_families(metrics.render()[0].decode())
    return {(each.name, frozenset(each.labels.items())): each.value for family in families for each in family.samples}


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return samples(metrics).get((name, frozenset(labels.items())))


def finish(metrics: Metrics, **changes: object) -> None:
    metrics.started()
    metrics.finished(replace(RECORD, **changes))


def test_a_teams_counters_stand_at_zero_before_its_first_request(metrics):
    metrics.prepare(["growth"])
    reasons = {"hit": "", "miss": "uri-miss", "collapsed": "uri-miss", "bypass": "temperature"}
    assert reasons.keys() == {result.value for result in CacheResult}
    for result, reason in reasons.items():
        assert value(metrics, "tollgate_cache_requests_total", team="growth", result=result, reason=reason) == 0
    for limit in ("requests", "tokens"):
        assert value(metrics, "tollgate_rate_limited_total", team="growth", limit=limit) == 0


def test_a_pair_of_team_and_model_has_all_its_counters_at_first_sight(metrics):
    finish(metrics, attempts=0, outcome=Outcome.CACHED, cache=CacheResult.HIT, usage=Usage(), cost_pico_usd=0)
    for kind in ("input", "cached_input", "output", "reasoning"):
        assert value(metrics, "tollgate_tokens_total", team="growth", model="gpt-4o", kind=kind) == 0
    for outcome in ("ok", "limited", "upstream_error", "client_gone"):
        labels = {"team": "growth", "model": "gpt-4o", "endpoint": "chat", "outcome": outcome}
        assert value(metrics, "tollgate_requests_total", **labels) == 0
    assert value(metrics, "tollgate_spend_usd_total", team="growth", model="gpt-4o") == 0
    assert value(metrics, "tollgate_saved_usd_total", team="growth", model="gpt-4o") == 0
    assert value(metrics, "tollgate_saved_tokens_total", team="growth", model="gpt-4o") == 0


@pytest.mark.parametrize("outcome", [Outcome.OK, Outcome.REJECTED, Outcome.UNAVAILABLE])
def test_a_page_that_is_looked_at_is_no_request_of_the_api(metrics, outcome):
    before = samples(metrics)
    page = {"endpoint": "page", "model": "", "attempts": 0, "cache": None, "usage": Usage(), "cost_pico_usd": 0}
    finish(metrics, outcome=outcome, request_use_ratio=None, token_use_ratio=None, **page)
    assert samples(metrics) == before


HIT = {"attempts": 0, "outcome": Outcome.CACHED, "cache": CacheResult.HIT, "usage": Usage(70, 7), "cost_pico_usd": 0}


def test_what_a_hit_saves_is_not_used(metrics):
    finish(metrics)
    finish(metrics, **HIT, saved_pico_usd=250_000_000)
    finish(metrics, **HIT, saved_pico_usd=0)  # of a model without a price: its tokens are saved all the same
    of_model = {"team": "growth", "model": "gpt-4o"}
    assert value(metrics, "tollgate_saved_tokens_total", **of_model) == 154
    assert value(metrics, "tollgate_saved_usd_total", **of_model) == pytest.approx(0.00025)
    assert value(metrics, "tollgate_tokens_total", **of_model, kind="input") == 100
    assert value(metrics, "tollgate_tokens_total", **of_model, kind="output") == 20
    assert value(metrics, "tollgate_spend_usd_total", **of_model) == pytest.approx(0.00045)


def test_what_was_used_saves_nothing(metrics):
    finish(metrics)
    finish(metrics, attempts=0, outcome=Outcome.UNAVAILABLE, usage=Usage(), cost_pico_usd=0)
    assert value(metrics, "tollgate_saved_tokens_total", team="growth", model="gpt-4o") == 0


def test_what_a_request_counts_as(metrics):
    finish(metrics)
    of_model = {"team": "growth", "model": "gpt-4o"}
    assert value(metrics, "tollgate_requests_total", **of_model, endpoint="chat", outcome="ok") == 1
    kinds = {"input": 100, "cached_input": 64, "output": 20, "reasoning": 5}
    for kind, tokens in kinds.items():
        assert value(metrics, "tollgate_tokens_total", **of_model, kind=kind) == tokens
    assert value(metrics, "tollgate_spend_usd_total", **of_model) == pytest.approx(0.00045)
    assert value(metrics, "tollgate_limit_used_ratio", team="growth", dimension="tokens") == 0.5
    assert value(metrics, "tollgate_upstream_duration_seconds_count", upstream="openai") == 1
    assert value(metrics, "tollgate_in_flight_requests") == 0


def test_in_flight_goes_up_and_down(metrics):
    metrics.started()
    metrics.started()
    assert value(metrics, "tollgate_in_flight_requests") == 2
    metrics.finished(RECORD)
    assert value(metrics, "tollgate_in_flight_requests") == 1


def test_a_model_nobody_knows_is_other(metrics):
    finish(metrics, model="gpt-99", ttft_ms=3.0, unpriced=True)
    assert value(metrics, "tollgate_spend_usd_total", team="growth", model="_other") == pytest.approx(0.00045)
    assert value(metrics, "tollgate_unpriced_requests_total", model="_other") == 1
    assert value(metrics, "tollgate_time_to_first_token_seconds_count", model="_other") == 1
    assert b"gpt-99" not in metrics.render()[0]


def test_a_model_without_a_price_counts_where_it_was_refused_too(metrics):
    finish(metrics, unpriced=True, attempts=0, outcome=Outcome.REJECTED, usage=Usage(), cost_pico_usd=0)
    assert value(metrics, "tollgate_unpriced_requests_total", model="gpt-4o") == 1


def test_a_request_without_team_has_no_money(metrics):
    finish(metrics, team="", key_id="", model="", cache=None, attempts=0, outcome=Outcome.REJECTED, status=401,
           usage=Usage(), cost_pico_usd=0, request_use_ratio=None, token_use_ratio=None)  # fmt: skip
    assert value(metrics, "tollgate_requests_total", team="", model="", endpoint="chat", outcome="rejected") == 1
    assert not [name for name, labels in samples(metrics) if name == "tollgate_spend_usd_total"]


records = st.builds(
    lambda **changes: replace(RECORD, **changes),
    model=st.text(max_size=300) | st.sampled_from(sorted(KNOWN)),
    method=st.text(max_size=20),
    request_id=st.text(max_size=20),
    client_request_id=st.text(max_size=20),
    upstream_request_id=st.text(max_size=20),
    error_code=st.text(max_size=20),
    key_id=st.text(max_size=12),
    status=st.integers(0, 599),
    outcome=st.sampled_from(Outcome),
    cache=st.sampled_from(CacheResult) | st.none(),
    limited_dimension=st.sampled_from(["", "requests", "tokens"]),
    ttft_ms=st.none() | st.floats(0, 1e6),
    estimated=st.booleans(),
    unpriced=st.booleans(),
    attempts=st.integers(0, 3),
)


@settings(max_examples=25, deadline=None)
@given(st.lists(records, min_size=20, max_size=40))
def test_no_client_can_make_series(many):
    metrics = Metrics(KNOWN.__contains__)
    for record in many:
        metrics.started()
        metrics.finished(record)
    series = samples(metrics)
    allowed = KNOWN | {"_other", ""}
    for name, labels in series:
        label = dict(labels)
        assert label.get("model", "") in allowed, name
        assert not {"key_id", "request_id", "method", "path", "status"} & set(label)
    # Two models, `_other` and none; ten outcomes; histograms of seventeen buckets: whatever is sent, so many at most.
    assert len(series) < 900
    assert series["tollgate_in_flight_requests", frozenset()] == 0


def test_every_name_is_ours_and_every_help_a_sentence(metrics):
    finish(metrics)
    families = list(text_string_to_metric_families(metrics.render()[0].decode()))
    assert len(families) > 20
    for family in families:
        assert family.name.startswith("tollgate_")
        assert family.documentation.endswith(".")


def test_what_the_ledger_knows_is_there_before_it_counts():
    metrics = Metrics({"gpt-4o-mini"}.__contains__)
    metrics.prepare_models([("growth", "gpt-4o-mini", "chat"), ("growth", "made-up", "chat")])
    for model in ("gpt-4o-mini", "_other"):
        labels = {"team": "growth", "model": model}
        assert metrics.registry.get_sample_value("tollgate_spend_usd_total", labels) == 0
        assert metrics.registry.get_sample_value("tollgate_tokens_total", {**labels, "kind": "input"}) == 0


def test_times_of_what_is_in_use_stand_at_zero(metrics):
    metrics.prepare_models([("growth", "gpt-4o", "chat")])
    assert value(metrics, "tollgate_time_to_first_token_seconds_count", model="gpt-4o") == 0
    for result in CacheResult:
        assert value(metrics, "tollgate_request_duration_seconds_count", endpoint="chat", cache=result.value) == 0


def test_what_may_go_wrong_stands_at_zero(metrics):
    metrics.prepare_upstreams(["openai", "azure"])
    metrics.prepare_unpriced(["homegrown"])
    for name in ("openai", "azure"):
        for kind in ("unreachable", "timeout", "broken", "content", "status_401", "status_429", "status_500"):
            assert value(metrics, "tollgate_upstream_errors_total", upstream=name, kind=kind) == 0
        for reason in ("unreachable", "broken", "status_408", "status_429", "status_503"):
            assert value(metrics, "tollgate_retries_total", upstream=name, reason=reason) == 0
        assert value(metrics, "tollgate_upstream_duration_seconds_count", upstream=name) == 0
    for model in ("_other", "homegrown"):
        assert value(metrics, "tollgate_unpriced_requests_total", model=model) == 0
    assert value(metrics, "tollgate_estimated_usage_total", reason="client_gone") == 0
    assert value(metrics, "tollgate_store_errors_total", store="ledger", operation="ship") == 0


def test_counters_are_made_ahead_for_so_many_teams_a_few_at_a_time(metrics, monkeypatch):
    monkeypatch.setattr(prometheus, "_TEAMS_AT_ONCE", 2)
    metrics._room_for_teams = 5

    def there() -> list[str]:
        counted = metrics.rate_limited_total.collect()[0].samples
        return sorted({each.labels["team"] for each in counted})

    metrics.prepare(f"team-{number}" for number in range(3))
    assert there() == ["team-0", "team-1"]
    metrics.prepare_more()
    metrics.prepare_more()
    assert there() == ["team-0", "team-1", "team-2"]
    metrics.prepare(f"late-{number}" for number in range(10_000))
    for _ in range(5):
        metrics.prepare_more()
    assert there() == ["late-0", "late-1", "team-0", "team-1", "team-2"]
    finish(metrics, team="late-9", limited_dimension="requests")
    assert value(metrics, "tollgate_rate_limited_total", team="late-9", limit="requests") == 1


def test_beyond_so_many_pairs_of_team_and_model_each_has_the_counters_that_count(metrics):
    metrics._room_at_zero = 2
    for number in range(3):
        finish(metrics, team=f"team-{number}", usage=Usage(100, 20), outcome=Outcome.OK)
    outcomes, kinds = (
        Counter(each.labels["team"] for each in family.collect()[0].samples)
        for family in (metrics.requests_total, metrics.tokens_total)
    )
    assert outcomes["team-0"] == outcomes["team-1"] > 5
    assert kinds["team-0"] == kinds["team-1"] == 4
    assert (outcomes["team-2"], kinds["team-2"]) == (1, 2)
