import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.errors import UpstreamFault
from proxy.core.retry import RetryPolicy, asked_wait_ms, is_retryable, next_wait_ms

POLICY = RetryPolicy(max_attempts=4, first_backoff_ms=500, max_backoff_ms=8_000, total_deadline_ms=60_000)
jitters = st.floats(0, 1, exclude_max=True)


@pytest.mark.parametrize(
    ("failure", "headers", "code", "retried"),
    [
        (408, {}, None, True),
        (429, {}, None, True),
        (429, {}, "rate_limit_exceeded", True),
        (429, {}, "insufficient_quota", False),
        (500, {}, None, True),
        (502, {}, None, True),
        (503, {}, None, True),
        (529, {}, None, True),
        (400, {}, None, False),
        (401, {}, None, False),
        (404, {}, None, False),
        (409, {}, None, False),
        (503, {"x-should-retry": "false"}, None, False),
        (400, {"x-should-retry": "true"}, None, True),
        (UpstreamFault.UNREACHABLE, {}, None, True),
        (UpstreamFault.BROKEN, {}, None, True),
        (UpstreamFault.TIMEOUT, {}, None, False),
        (UpstreamFault.CONTENT, {}, None, False),
    ],
)
def test_what_is_tried_again(failure, headers, code, retried):
    assert is_retryable(failure, headers, code) is retried


@given(st.integers(1, 3), jitters)
def test_backoff_is_full_jitter_under_a_doubling_ceiling(attempts, jitter):
    wait_ms = next_wait_ms(POLICY, attempts, 0, None, jitter)
    assert 0 <= wait_ms <= 500 * 2 ** (attempts - 1)
    assert next_wait_ms(POLICY, attempts, 0, None, 0.999_999) == 500 * 2 ** (attempts - 1)


def test_the_ceiling_stops_growing():
    patient = RetryPolicy(max_attempts=30, max_backoff_ms=8_000)
    assert next_wait_ms(patient, 29, 0, None, 0.999_999_9) == 8_000


@given(jitters)
def test_attempts_are_bounded(jitter):
    assert next_wait_ms(POLICY, 4, 0, None, jitter) is None


@given(st.integers(1, 8_000), st.integers(1, 3), jitters)
def test_what_upstream_asks_for_is_obeyed_to_the_millisecond(asked_ms, attempts, jitter):
    assert next_wait_ms(POLICY, attempts, 0, asked_ms, jitter) == asked_ms


def test_a_wait_no_client_would_sit_through_is_not_cut_short_but_not_begun():
    assert next_wait_ms(POLICY, 1, 0, 8_001, 0.5) is None


@given(st.integers(0, 60_000), st.integers(0, 8_000), jitters)
def test_no_wait_ends_behind_the_deadline(elapsed_ms, asked_ms, jitter):
    wait_ms = next_wait_ms(POLICY, 1, elapsed_ms, asked_ms, jitter)
    assert wait_ms is None or elapsed_ms + wait_ms < 60_000


@pytest.mark.parametrize(
    ("headers", "wait_ms"),
    [
        ({}, None),
        ({"retry-after": "2"}, 2_000),
        ({"retry-after": "0.5"}, 500),
        ({"retry-after-ms": "120", "retry-after": "2"}, 120),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:03 GMT"}, 2_000),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "1e12"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after-ms": "x", "retry-after": "1"}, 1_000),
    ],
)
def test_the_wait_an_answer_asks_for(headers, wait_ms):
    assert asked_wait_ms(headers, now_ms=1_000) == wait_ms
