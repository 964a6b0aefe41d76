import pytest
from multidict import CIMultiDict

from proxy.core import headers
from proxy.core.bucket import Gauge, Standing
from proxy.core.headers import (
    as_json,
    forwardable,
    rate_limit_headers,
    returnable,
    returned_as_it_is,
    without_keys,
)

SECRETS = ["Authorization", "api-key", "X-Api-Key", "Cookie", "Proxy-Authorization"]
OURS = ["Host", "Content-Length", "Transfer-Encoding", "Connection", "Keep-Alive", "TE", "Trailer", "Upgrade", "Expect",
        "Accept-Encoding", "Content-Encoding"]  # fmt: skip
CLAIMS = ["Forwarded", "Via", "X-Forwarded-For", "x-forwarded-host", "X-Real-IP", "OpenAI-Organization",
          "OpenAI-Project", "x-tollgate-max-wait", "X-HTTP-Method-Override", "X-Original-URL"]  # fmt: skip
PASSING = ["Content-Type", "Accept", "User-Agent", "x-stainless-retry-count", "OpenAI-Beta", "Idempotency-Key", "x-new"]


KEY = "sk-tg_abcdefghijkl_0123456789"


@pytest.mark.parametrize(
    "told", [("Authorization", f"Bearer {KEY}"), ("authorization", f"bearer  {KEY}"), ("Api-Key", KEY)]
)
@pytest.mark.parametrize(
    "also", [("Authorisation", f"Bearer {KEY}"), ("x-client-request-id", KEY), ("x-a", f"token={KEY}; b")]
)
def test_the_key_goes_upstream_in_no_header_of_any_name(told, also):
    assert forwardable([also, told, ("x-kept", "v")]) == (("x-kept", "v"),)
    assert forwardable([("api-key", "another-key-of-theirs"), told, also]) == ()


def test_a_key_that_is_a_word_takes_no_header_with_it():
    told = [("Authorization", "Bearer json"), ("Content-Type", "application/json"), ("x-a", "Bearer")]
    assert forwardable(told) == (("Content-Type", "application/json"), ("x-a", "Bearer"))
    assert without_keys("format=json", dict(told)) == "format=json"


def test_a_query_goes_on_without_the_key():
    headers = {"Authorization": f"Bearer {KEY}", "x-a": "b"}
    assert without_keys(f"api_key={KEY}", headers) == ""
    assert without_keys(f"a=%20&key={KEY.replace('_', '%5F')}&&c", headers) == "a=%20&&c"
    assert without_keys("a=b", {}) == "a=b"


@pytest.mark.parametrize("name", SECRETS + OURS + CLAIMS)
def test_what_never_goes_upstream(name):
    assert forwardable([(name, "v"), (name.upper(), "v"), ("x-kept", "v")]) == (("x-kept", "v"),)


@pytest.mark.parametrize("name", PASSING)
def test_what_does(name):
    assert forwardable([(name, "v")]) == ((name, "v"),)


@pytest.mark.parametrize(
    "value",
    ["application/json; charset=utf-7", "application/json; charset=utf-8; charset=utf-16", "text/plain", "",
     "application/x-www-form-urlencoded", "multipart/form-data; boundary=b"],
)  # fmt: skip
def test_a_body_goes_by_the_name_it_was_read_by(value):
    headers = (("x-a", "v"), ("content-type", value), ("x-b", "v"))
    assert as_json(headers) == (headers[0], ("content-type", "application/json"), headers[2])


@pytest.mark.parametrize(
    "value", ["application/json", "Application/JSON;charset=UTF-8", 'application/json; charset="utf8"']
)
def test_one_that_has_it_keeps_it(value):
    headers = (("x-a", "v"), ("content-type", value))
    assert as_json(headers) is headers
    assert as_json(headers[:1]) == headers[:1]


def test_what_connection_names_is_for_this_hop_alone():
    assert forwardable([("Connection", "close, X-Hop"), ("x-hop", "v"), ("x-kept", "v")]) == (("x-kept", "v"),)


def test_names_that_clients_make_up_are_no_matter():
    for number in range(3_000):
        sent = ((f"X-{number}", "a"), (f"X-Tollgate-{number}", "a"), ("x" * 1_000 + str(number), "a"))
        assert forwardable(sent) == (sent[0], sent[2])
        assert forwardable((("CoOkIe", "a"), ("Accept", "b"))) == (("Accept", "b"),)
    assert len(headers._known) <= 1_024
    assert max(map(len, headers._known)) <= 64


@pytest.mark.parametrize(
    "name",
    ["Set-Cookie", "openai-organization", "openai-project", "x-ratelimit-remaining-tokens", "Transfer-Encoding",
     "Connection", "Content-Length", "x-request-id", "Server", "Alt-Svc", "Strict-Transport-Security"],
)  # fmt: skip
def test_what_never_comes_back(name):
    assert returnable([(name, "v")], error=True) == ()


def test_what_comes_back():
    told = (("Content-Type", "application/json"), ("openai-processing-ms", "5"), ("openai-version", "2020-10-01"))
    assert returnable(told, error=False) == told
    assert returnable([("Retry-After", "5")], error=False) == ()
    assert returnable([("Retry-After", "5")], error=True) == (("Retry-After", "5"),)


def test_what_comes_back_is_plain_text():
    headers = CIMultiDict([("Content-Type", "application/json"), ("openai-version", "2020-10-01")])
    assert {type(name) for name in headers} != {str}
    assert {type(text) for pair in returnable(headers.items(), error=False) for text in pair} == {str}


@pytest.mark.parametrize("character", [chr(code) for code in (*range(32), 127) if code != 9])
def test_what_no_head_may_have_stays_behind_and_nothing_else(character):
    bad, fine = ("Content-Type", f"application/json{character}"), ("openai-version", "2020-10-01\t\xe9")
    assert returnable([bad, fine], error=False) == returnable([bad, fine], error=True) == (fine,)
    assert returned_as_it_is([("ETag", f"a{character}b"), fine]) == (fine,)


def test_where_the_limits_stand():
    standing = Standing(Gauge(20, 19, 3_000), Gauge(40_000, 0, 51_189))
    assert dict(rate_limit_headers(standing)) == {
        "x-ratelimit-limit-requests": "20",
        "x-ratelimit-remaining-requests": "19",
        "x-ratelimit-reset-requests": "3s",
        "x-ratelimit-limit-tokens": "40000",
        "x-ratelimit-remaining-tokens": "0",
        "x-ratelimit-reset-tokens": "51.189s",
        "RateLimit-Policy": '"requests";q=20;w=60, "tokens";q=40000;w=60',
        "RateLimit": '"requests";r=19;t=3, "tokens";r=0;t=52',
    }
    assert rate_limit_headers(Standing()) == ()
