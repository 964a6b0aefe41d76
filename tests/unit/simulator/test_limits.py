import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.simulator.limits import Limits, go_duration
from proxy.simulator.refusal import Refusal

T0 = 1_800_000_000_000


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (0, "0s"),
        (12, "12ms"),
        (1_000, "1s"),
        (51_189, "51.189s"),
        (18_640, "18.64s"),
        (60_000, "1m0s"),
        (360_000, "6m0s"),
        (252_172, "4m12.172s"),
        (3_600_000, "1h0m0s"),
    ],
)
def test_durations_print_as_go_prints_them(ms, text):
    assert go_duration(ms) == text


@pytest.mark.parametrize(
    ("limit", "used", "requested", "wait_ms"),
    [
        # Figures from 429 messages that OpenAI sent; the last one is ours: a part of a millisecond is rounded up.
        (30_000, 29_937, 385, 644),
        (30_000, 14_567, 24_754, 18_642),
        (10_000, 8_554, 3_082, 9_816),
        (7, 7, 1, 8_572),
    ],
)
def test_waits_equal_those_of_published_token_refusals(limit, used, requested, wait_ms):
    limits = Limits(None, limit)
    limits.take("m", used, T0)
    with pytest.raises(Refusal) as caught:
        limits.take("m", requested, T0)
    assert (caught.value.status, caught.value.type, caught.value.code) == (429, "tokens", "rate_limit_exceeded")
    assert caught.value.headers["retry-after-ms"] == str(wait_ms)
    assert f"Limit {limit}, Used {used}, Requested {requested}" in caught.value.message
    assert caught.value.message.endswith(f"try again in {go_duration(wait_ms)}.")


@pytest.mark.parametrize(("limit", "taken", "reset"), [(5_000, 1, "12ms"), (500, 1, "120ms")])
def test_resets_equal_those_of_published_headers(limit, taken, reset):
    headers = Limits(limit, None).take("m", 1, T0)
    assert headers["x-ratelimit-remaining-requests"] == str(limit - taken)
    assert headers["x-ratelimit-reset-requests"] == reset


def test_a_token_reset_equals_a_published_one():
    headers = Limits(None, 200_000).take("m", 200_000 - 29_367, T0)
    assert headers["x-ratelimit-reset-tokens"] == "51.189s"


@given(
    limit=st.integers(1, 10**6),
    costs=st.lists(st.tuples(st.integers(1, 10**5), st.integers(0, 70_000)), min_size=1, max_size=30),
)
@settings(deadline=None)
def test_a_wait_is_enough_and_one_millisecond_less_is_not(limit, costs):
    limits, now = Limits(None, limit), T0
    for amount, pause_ms in costs:
        now += pause_ms
        refusal = refused(limits, amount, now)
        if refusal is None:
            continue
        wait = refusal.headers.get("retry-after-ms")
        assert (wait is None) == (amount > limit)
        if wait is not None:
            assert refused(limits, amount, now + int(wait) - 1)
            now += int(wait)
            assert refused(limits, amount, now) is None


def refused(limits, amount, now):
    try:
        limits.take("m", amount, now)
    except Refusal as refusal:
        return refusal
    return None


def test_models_have_buckets_of_their_own_and_a_refusal_takes_nothing():
    limits = Limits(1, None)
    limits.take("a", 1, T0)
    limits.take("b", 1, T0)
    for _ in range(3):
        with pytest.raises(Refusal) as caught:
            limits.take("a", 1, T0)
        assert caught.value.headers["retry-after-ms"] == "60000"
        assert caught.value.headers["Retry-After"] == "60"
        assert caught.value.type == "requests"


def test_without_limits_the_six_headers_are_there():
    headers = Limits(None, None).take("m", 10**9, T0)
    assert sorted(headers) == sorted(
        f"x-ratelimit-{kind}-{what}" for kind in ("limit", "remaining", "reset") for what in ("requests", "tokens")
    )
