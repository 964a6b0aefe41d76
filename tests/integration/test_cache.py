"""Answers given twice: to whom, for what, at which price, and what is said of it."""

from __future__ import annotations

import json
import re

import pytest
import requests

from proxy.core.principal import CacheMode
from proxy.core.replay import assemble

MODEL = "gpt-4o-mini"
_count = iter(range(1_000_000))


@pytest.fixture
def question():
    """A deterministic request nobody has made before."""
    text = f"echo:question {next(_count)}"
    return {"model": MODEL, "temperature": 0, "messages": [{"role": "user", "content": text}]}


def asked(upstream):
    return upstream.idle_stats()["requests"]


def told(answer):
    """The completion of a plain answer, or of a stream however it was cut."""
    if answer.headers["Content-Type"] == "application/json":
        return answer.json()
    *events, done, _ = answer.content.split(b"\n\n")
    assert done == b"data: [DONE]"
    return assemble([json.loads(event.removeprefix(b"data: ")) for event in events])


@pytest.mark.parametrize("form", [{}, {"stream": True}, {"stream": True, "stream_options": {"include_usage": True}}])
def test_the_second_answer_is_the_first_one(call, upstream, question, form):
    first, second = call({**question, **form}), call({**question, **form})
    assert asked(upstream) == 1
    assert told(first) == told(second)
    assert form or first.content == second.content
    assert first.headers["Content-Type"] == second.headers["Content-Type"]
    # A stream's headers go out before it is known whether it will be kept.
    stored = "tollgate; fwd=uri-miss" if form else "tollgate; fwd=uri-miss; stored"
    assert first.headers["Cache-Status"] == stored
    (left,) = re.fullmatch(r"tollgate; hit; ttl=(\d+)", second.headers["Cache-Status"]).groups()
    assert 86_400 - 60 < int(left) <= 86_400
    assert 0 <= int(second.headers["Age"]) < 60
    assert "Age" not in first.headers
    assert first.headers["x-request-id"] != second.headers["x-request-id"]
    assert "x-upstream-request-id" in first.headers
    assert "x-upstream-request-id" not in second.headers
    assert "no-store" in second.headers["Cache-Control"]


def test_a_hit_costs_a_request_and_no_tokens(call, new_team, question):
    team = new_team(requests_per_minute=1, request_capacity=3, tokens_per_minute=60, token_capacity=2_000)
    sizes = {**question, "max_tokens": 1_900}
    first, second, third = (call(sizes, by=team) for _ in range(3))
    assert [each.headers["x-ratelimit-remaining-requests"] for each in (first, second, third)] == ["2", "1", "0"]
    # The first one's reservation is given back, and the others take nothing: more is left, not less.
    left = [int(each.headers["x-ratelimit-remaining-tokens"]) for each in (first, second, third)]
    assert left[0] < 100
    assert 1_950 < left[1] <= left[2] <= 2_000
    assert call(sizes, by=team).status_code == 429


def test_the_ledger_knows_what_was_saved(gateway, call, team, question):
    for _ in range(3):
        assert call(question).status_code == 200
    paid, *saved = gateway.events(team.name, 3)
    assert paid["outcome"] == "ok"
    assert paid["cost_pico_usd"] > 0
    assert paid["saved_pico_usd"] == 0
    for event in saved:
        assert (event["outcome"], event["upstream"], event["attempts"]) == ("cached", "", 0)
        assert event["cost_pico_usd"] == 0
        assert event["saved_pico_usd"] == paid["cost_pico_usd"]
        assert event["output_tokens"] == paid["output_tokens"]


def test_another_team_pays_for_itself(call, new_team, upstream, question):
    one, other = new_team(), new_team()
    assert call(question, by=one).status_code == 200
    assert "uri-miss" in call(question, by=other).headers["Cache-Status"]
    assert asked(upstream) == 2
    assert "hit" in call(question, by=one).headers["Cache-Status"]


def test_two_keys_of_a_team_share_its_answers(gateway, call, team, upstream, question):
    other = type(team)(team.name, gateway.cli("keys", "issue", "--team", team.name).strip(), "")
    assert call(question).content == call(question, by=other).content
    assert asked(upstream) == 1


def test_spelling_makes_no_difference(call, upstream, question):
    text = question["messages"][0]["content"]
    one = f'{{"model":"{MODEL}","temperature":0,"messages":[{{"role":"user","content":"{text}"}}]}}'
    other = (
        f'{{ "messages":\n[{{"content": "\\u0065{text[1:]}", "role":"user"}}], "temperature": 0.0, "model":"{MODEL}"}}'
    )
    assert call(one.encode()).content == call(other.encode()).content
    assert asked(upstream) == 1


@pytest.mark.parametrize(
    "change",
    [{"max_tokens": 3}, {"seed": 1}, {"model": "gpt-4o"}, {"n": 2}, {"unknown": [1]}],
    ids=lambda change: next(iter(change)),
)
def test_whatever_differs_is_asked_again(call, upstream, question, change):
    call(question)
    assert "uri-miss" in call({**question, **change}).headers["Cache-Status"]
    assert asked(upstream) == 2


def test_notes_beside_a_question_make_no_difference(call, upstream, question):
    one = call({**question, "metadata": {"run": "1"}})
    assert call({**question, "prompt_cache_key": "other"}).content == one.content
    assert asked(upstream) == 1


@pytest.mark.parametrize("name", ["user", "safety_identifier"])
def test_an_end_user_is_not_given_the_answer_of_another(call, upstream, question, name):
    for value in ("one", "other"):
        assert "uri-miss" in call({**question, name: value}).headers["Cache-Status"]
    assert "hit" in call({**question, name: "one"}).headers["Cache-Status"]
    assert asked(upstream) == 2


def test_no_cache_asks_again_and_keeps_the_newer_answer(call, upstream, question):
    call(question)
    newer = call(question, {"Cache-Control": "no-cache"})
    assert newer.headers["Cache-Status"] == "tollgate; fwd=request; stored; detail=no-cache"
    assert asked(upstream) == 2
    assert call(question).content == newer.content
    assert asked(upstream) == 2


def test_no_store_leaves_no_trace(call, upstream, question):
    assert call(question, {"Cache-Control": "no-store"}).headers["Cache-Status"] == (
        "tollgate; fwd=bypass; detail=no-store"
    )
    assert "uri-miss" in call(question).headers["Cache-Status"]
    assert asked(upstream) == 2


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"temperature": 1}, "temperature"),
        ({"temperature": None}, "temperature"),
        ({"store": True}, "store"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
    ],
)
def test_what_may_not_be_kept_says_why(call, upstream, question, change, reason):
    for _ in range(2):
        answer = call({**question, **change})
        assert answer.headers["Cache-Status"] == f"tollgate; fwd=bypass; detail={reason}"
    assert asked(upstream) == 2


@pytest.mark.parametrize(
    "faults",
    [{"x-simulate-status": "400"}, {"x-simulate-malformed": "1"}, {"x-simulate-no-usage": "1"}],
    ids=lambda faults: next(iter(faults)),
)
def test_what_went_wrong_is_not_kept(call, upstream, question, faults):
    # The same headers again: another wish of the simulator would be another request.
    for _ in range(2):
        assert "hit" not in call(question, faults).headers.get("Cache-Status", "")
    assert asked(upstream) == 2


def test_a_broken_stream_is_not_kept(call, upstream, question):
    streamed = {**question, "stream": True}
    for _ in range(2):
        with pytest.raises(requests.exceptions.ChunkedEncodingError):
            call(streamed, {"x-simulate-cut-after": "3"})
    assert asked(upstream) == 2


def test_a_header_that_goes_upstream_is_a_part_of_the_question(call, upstream, question):
    plain = call(question)
    for beta in ("assistants=v2", "assistants=v1"):
        assert "uri-miss" in call(question, {"OpenAI-Beta": beta}).headers["Cache-Status"]
    assert asked(upstream) == 3
    for name in ("User-Agent", "traceparent", "X-Stainless-Retry-Count", "openai-organization", "x-request-id"):
        assert call(question, {name: "other"}).content == plain.content
    assert asked(upstream) == 3


def test_a_team_can_do_without(call, new_team, upstream, question):
    team = new_team(cache_mode=CacheMode.OFF)
    for _ in range(2):
        assert call(question, by=team).headers["Cache-Status"] == "tollgate; fwd=bypass; detail=off"
    assert asked(upstream) == 2
