"""What is shown of upstreams, and that it is there before it counts."""

import pytest

from proxy.adapters.prometheus import Metrics
from proxy.core.breaker import BreakerState


@pytest.fixture
def metrics():
    return Metrics(lambda _: True)


def value(metrics, name, **labels):
    return metrics.registry.get_sample_value(name, labels)


def test_children_stand_at_zero(metrics):
    metrics.upstreams.prepare([("openai", 1), ("openai", 2), ("azure", 1)])
    metrics.prepare_upstreams(["openai", "azure"])
    for name in ("openai", "azure"):
        assert value(metrics, "tollgate_breaker_openings_total", upstream=name) == 0
        assert value(metrics, "tollgate_retries_refused_total", upstream=name) == 0
        assert value(metrics, "tollgate_retries_total", upstream=name, reason="status_401") == 0
    for key in ("1", "2"):
        for reason in ("refused", "quota", "rate"):
            labels = {"upstream": "openai", "key": key, "reason": reason}
            assert value(metrics, "tollgate_upstream_key_refusals_total", **labels) == 0
    assert value(metrics, "tollgate_upstream_key_refusals_total", upstream="azure", key="2", reason="rate") is None


def test_counts(metrics):
    upstreams = metrics.upstreams
    for _ in range(2):
        upstreams.retry_refused("openai")
        upstreams.key_refused("openai", 2, "quota")
    upstreams.remaining("openai", 2, "tokens", 7)
    upstreams.remaining("openai", 2, "tokens", 5)
    assert value(metrics, "tollgate_retries_refused_total", upstream="openai") == 2
    assert value(metrics, "tollgate_upstream_key_refusals_total", upstream="openai", key="2", reason="quota") == 2
    assert value(metrics, "tollgate_upstream_remaining", upstream="openai", key="2", dimension="tokens") == 5


def test_openings_are_counted_once_each_however_often_it_is_looked(metrics):
    shown = []
    for state, openings, resting in (
        (BreakerState.CLOSED, 0, 0),
        (BreakerState.OPEN, 1, 2),
        (BreakerState.HALF_OPEN, 1, 1),
        (BreakerState.OPEN, 3, 0),
        (BreakerState.CLOSED, 3, 0),
    ):
        metrics.upstreams.show("openai", state, openings, resting)
        names = ("tollgate_breaker_state", "tollgate_breaker_openings_total", "tollgate_upstream_keys_resting")
        shown.append(tuple(value(metrics, name, upstream="openai") for name in names))
    assert shown == [(0, 0, 0), (2, 1, 2), (1, 1, 1), (2, 3, 0), (0, 3, 0)]
