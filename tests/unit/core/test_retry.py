import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.errors import UpstreamFault
from proxy.core.retry import Remedy, RetryPolicy, asked_wait_ms, is_outage, next_wait_ms, remedy_for

POLICY = RetryPolicy(max_attempts=4, first_backoff_ms=500, max_backoff_ms=8_000, total_deadline_ms=60_000)
jitters = st.floats(0, 1, exclude_max=True)


AGAIN = Remedy(again=True)
OUT_OF_RATE = Remedy(again=True, other_key=True)
OTHER_KEY = Remedy(other_key=True)


@pytest.mark.parametrize(
    ("failure", "headers", "code", "remedy"),
    [
        (408, {}, None, AGAIN),
        (429, {}, None, OUT_OF_RATE),
        (429, {}, "rate_limit_exceeded", OUT_OF_RATE),
        (429, {}, "insufficient_quota", OTHER_KEY),
        (401, {}, None, OTHER_KEY),
        (401, {}, "invalid_api_key", OTHER_KEY),
        (500, {}, None, AGAIN),
        (502, {}, None, AGAIN),
        (503, {}, None, AGAIN),
        (529, {}, None, AGAIN),
        (500, {}, "insufficient_quota", AGAIN),
        (400, {}, None, None),
        (403, {}, None, None),
        (404, {}, None, None),
        (409, {}, None, None),
        (422, {}, None, None),
        (503, {"x-should-retry": "false"}, None, None),
        (429, {"x-should-retry": "false"}, None, None),
        (401, {"x-should-retry": "false"}, None, None),
        (400, {"x-should-retry": "true"}, None, AGAIN),
        (401, {"x-should-retry": "true"}, None, OUT_OF_RATE),
        (429, {"x-should-retry": "true"}, "insufficient_quota", OTHER_KEY),
        (429, {"x-should-retry": "false"}, "insufficient_quota", None),
        (503, {"x-should-retry": "maybe"}, None, AGAIN),
        (UpstreamFault.UNREACHABLE, {}, None, AGAIN),
        (UpstreamFault.BROKEN, {}, None, AGAIN),
        (UpstreamFault.TIMEOUT, {}, None, None),
        (UpstreamFault.CONTENT, {}, None, None),
    ],
)
def test_what_mends_a_failure(failure, headers, code, remedy):
    assert remedy_for(failure, headers, code) == remedy


@pytest.mark.parametrize(
    ("failure", "outage"),
    [(500, True), (503, True), (599, True), (200, False), (400, False), (401, False), (408, False), (429, False),
     *((fault, True) for fault in UpstreamFault)],
)  # fmt: skip
def test_an_outage_is_no_refusal(failure, outage):
    assert is_outage(failure) is outage


@given(st.integers(0, 4), jitters)
def test_backoff_is_full_jitter_under_a_doubling_ceiling(waits, jitter):
    wait_ms = next_wait_ms(POLICY, waits, 0, None, jitter)
    assert 0 <= wait_ms <= 500 * 2**waits
    assert next_wait_ms(POLICY, waits, 0, None, 0.999_999) == 500 * 2**waits


def test_the_ceiling_stops_growing():
    patient = RetryPolicy(max_attempts=30, max_backoff_ms=8_000)
    assert next_wait_ms(patient, 29, 0, None, 0.999_999_9) == 8_000


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
        ({"retry-after": "Fri, 31 Dec 99999999999999999999 23:59:59 GMT"}, None),
        ({"retry-after": "Fri, 31 Dec 9999 23:59:59 +99999999999"}, None),
        ({"retry-after": "Sat, 01 Jan 0001 00:00:00 -0000"}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "1e12"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after-ms": "x", "retry-after": "1"}, 1_000),
    ],
)
def test_the_wait_an_answer_asks_for(headers, wait_ms):
    assert asked_wait_ms(headers, now_ms=1_000) == wait_ms
