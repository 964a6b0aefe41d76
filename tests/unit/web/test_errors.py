import inspect
import json

import pytest

from proxy.core import errors
from proxy.core.bucket import Dimension, Gauge, NeverFits, OverBudget, Refused, Standing
from proxy.core.budget import Cap, Period, span_of
from proxy.core.errors import UpstreamFault
from proxy.core.event import Outcome
from proxy.web.errors import answer_of, reply_of, status_of

STANDING = Standing(Gauge(20, 0, 60_000), Gauge(40_000, 9_000, 46_500))


def refused(dimension=Dimension.REQUESTS, wait_ms=2_999):
    return errors.LimitReached("growth", "gpt-4o-mini", Refused(wait_ms, "team", dimension, 20, 20, 1, STANDING))


def never():
    return errors.NeverAdmissible("growth", "m", NeverFits("team", Dimension.TOKENS, 40_000, 50_000, STANDING))


def over(scope="team", period=Period.MONTH, used=499_990_000_000):
    cap = Cap(scope, span_of(period, 1_795_262_400_000), 500_000_000_000, None)
    return errors.BudgetUsedUp("growth", "gpt-5", OverBudget(cap, used, 12_500_000, STANDING), "ci")


CASES = [
    (errors.MissingKey(), 401, "invalid_request_error", None),
    (over(), 429, "insufficient_quota", "insufficient_quota"),
    (errors.ModelNotPriced("growth", "m"), 403, "invalid_request_error", "model_not_priced"),
    (errors.InvalidKey(), 401, "invalid_request_error", "invalid_api_key"),
    (errors.InvalidRequest("no", "model", "c"), 400, "invalid_request_error", "c"),
    (errors.BodyTooLarge(10), 413, "invalid_request_error", "request_too_large"),
    (errors.BodyTimedOut(), 408, "invalid_request_error", "request_timeout"),
    (errors.ModelNotFound("m"), 404, "invalid_request_error", "model_not_found"),
    (errors.NotInCache("uri-miss"), 504, "invalid_request_error", "not_in_cache"),
    (errors.EndpointClosed("/v1/files"), 403, "invalid_request_error", "endpoint_not_allowed"),
    (errors.UnknownPath("GET", "/x"), 404, "invalid_request_error", None),
    (errors.MethodNotAllowed("GET", "/x", "POST"), 405, "invalid_request_error", None),
    (refused(), 429, "requests", "rate_limit_exceeded"),
    (refused(Dimension.TOKENS), 429, "tokens", "rate_limit_exceeded"),
    (refused(Dimension.PARALLEL), 429, "requests", "rate_limit_exceeded"),
    (never(), 429, "tokens", "rate_limit_exceeded"),
    (errors.UpstreamFailure("u", UpstreamFault.UNREACHABLE), 502, "server_error", "upstream_unreachable"),
    (errors.UpstreamFailure("u", UpstreamFault.BROKEN), 502, "server_error", "upstream_unreachable"),
    (errors.UpstreamFailure("u", UpstreamFault.CONTENT), 502, "server_error", "upstream_unreachable"),
    (errors.UpstreamFailure("u", UpstreamFault.TIMEOUT), 504, "server_error", "upstream_timeout"),
    (errors.UpstreamKeyRefused("u"), 502, "server_error", "upstream_key_refused"),
    (errors.Overloaded("draining"), 503, "service_unavailable_error", "server_is_overloaded"),
    (errors.StoreAway("keys", "find"), 503, "service_unavailable_error", "server_is_overloaded"),
]


@pytest.mark.parametrize(("error", "status", "kind", "code"), CASES, ids=lambda case: type(case).__name__)
def test_every_error_has_openais_shape(error, status, kind, code):
    reply = reply_of(answer_of(error))
    body = json.loads(reply.body)
    assert list(body) == ["error"]
    assert sorted(body["error"]) == ["code", "message", "param", "type"]
    assert (reply.status, body["error"]["type"], body["error"]["code"]) == (status, kind, code)
    assert status_of(error) == status
    names = [name.lower() for name, _ in reply.headers]
    assert len(names) == len(set(names)), "exactly one of each header"


def test_no_member_of_the_family_is_left_out():
    family = {
        kind
        for _, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, errors.TollgateError) and kind is not errors.TollgateError
    }
    assert family == {type(case[0]) for case in CASES}


def test_a_refusal_says_what_when_and_how_much():
    reply = reply_of(answer_of(refused()))
    headers = dict(reply.headers)
    assert (headers["retry-after-ms"], headers["Retry-After"]) == ("2999", "3")
    assert headers["x-ratelimit-remaining-tokens"] == "9000"
    assert "x-should-retry" not in headers
    message = json.loads(reply.body)["error"]["message"]
    for fact in ("gpt-4o-mini", "growth", "RPM", "Limit 20", "Used 20", "Requested 1", "2.999s"):
        assert fact in message


HOLDERS = [
    ("team", "m of team growth on"),
    ("key:0a1B", "m of key nightly build on"),
    ("model:gpt-4o:ft", "m of team growth for model gpt-4o:ft on"),
]


@pytest.mark.parametrize(("scope", "said"), HOLDERS)
def test_a_refusal_says_whose_limit_it_is_and_nobody_elses(scope, said):
    limited = Refused(1_000, scope, Dimension.TOKENS, 20, 20, 1, STANDING)
    too_large = NeverFits(scope, Dimension.TOKENS, 20, 21, STANDING)
    for error in (
        errors.LimitReached("growth", "m", limited, "nightly build"),
        errors.NeverAdmissible("growth", "m", too_large, "nightly build"),
    ):
        message = answer_of(error).message
        assert said in message
        assert ("nightly" in message) is (scope == "key:0a1B")
        assert "0a1B" not in message
    # A key without a name is known to its holder by its id.
    assert ("key 0a1B on" in answer_of(errors.LimitReached("growth", "m", limited)).message) is (scope == "key:0a1B")


def test_a_refusal_for_want_of_a_place_promises_no_wait():
    refusal = Refused(1_000, "key:0a1B", Dimension.PARALLEL, 2, 3, 1, STANDING)
    answer = answer_of(errors.LimitReached("growth", "m", refusal, "ci"))
    headers = dict(answer.headers)
    assert (headers["Retry-After"], headers["retry-after-ms"]) == ("1", "1000")
    assert headers["x-ratelimit-remaining-tokens"] == "9000"
    assert "x-should-retry" not in headers
    assert answer.message == (
        "Too many requests at one time for m of key ci: Limit 2, In flight 3. "
        "Please try again when one of them has ended."
    )


def test_a_wait_that_sdks_would_not_sit_through_is_not_retried():
    assert dict(reply_of(answer_of(refused(wait_ms=60_001))).headers)["x-should-retry"] == "false"
    assert "x-should-retry" not in dict(reply_of(answer_of(refused(wait_ms=60_000))).headers)


@pytest.mark.parametrize(("wait_ms", "seconds"), [(1, "1"), (250, "1"), (1_000, "1"), (1_001, "2")])
def test_an_overload_says_when_to_come_back_in_whole_seconds_rounded_up(wait_ms, seconds):
    headers = dict(answer_of(errors.Overloaded("draining", retry_after_ms=wait_ms)).headers)
    assert headers == {"retry-after-ms": str(wait_ms), "Retry-After": seconds}


def test_what_can_never_fit_has_no_wait():
    reply = reply_of(answer_of(never()))
    headers = dict(reply.headers)
    assert headers["x-should-retry"] == "false"
    assert not {"Retry-After", "retry-after-ms"} & set(headers)
    assert "Used" not in json.loads(reply.body)["error"]["message"]


def test_a_fault_of_ours_tells_nothing():
    class Surprise(errors.TollgateError):
        pass

    assert "Surprise" not in reply_of(answer_of(Surprise("sk-secret"))).body.decode()
    assert status_of(Surprise()) == 500


def test_a_budget_that_is_used_up_is_no_wait_and_says_whose_how_much_and_until_when():
    answer = answer_of(over())
    assert answer.message == (
        "You exceeded your current budget: team growth may spend 500.00 USD a month (2026-11, UTC), has used 499.99 "
        "USD, and this request for gpt-5 may cost up to 0.0125 USD. It opens again at 2026-12-01T00:00:00Z."
    )
    headers = dict(reply_of(answer).headers)
    assert headers["x-should-retry"] == "false"
    assert headers["x-ratelimit-remaining-requests"]
    assert "Retry-After" not in headers
    assert "retry-after-ms" not in headers
    assert answer.outcome is Outcome.LIMITED


def test_a_budget_of_a_key_names_the_key_and_one_in_total_does_not_open_again():
    message = answer_of(over("key:0a1B2c3D4e5F", Period.TOTAL)).message
    assert "key ci may spend 500.00 USD in total, has used" in message
    assert "does not open again by itself" in message
