"""Legacy completions, as the official SDK and plain clients see them, and as they are accounted for."""

from __future__ import annotations

import itertools
import json
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
import requests
from openai import OpenAI

MODEL = "gpt-3.5-turbo-instruct"
INPUT_PICO_USD, OUTPUT_PICO_USD = 1_500_000, 2_000_000
"""Prices of the model per token, as the table in the package has them."""
TEXT = "žluť 🦔, and the lock next to it?"
_numbers = itertools.count()
REQUESTS = {
    "a text": {"prompt": "How deep is the basin?"},
    "an echo of it": {"prompt": f"echo:{TEXT}"},
    "several": {"prompt": ["How deep?", "And how wide?"], "n": 2},
    "token ids": {"prompt": [15_339, 1_917], "max_tokens": 3},
    "lists of them": {"prompt": [[1], [2, 3]], "echo": True},
    "a suffix": {"prompt": "How", "suffix": "deep?"},
}


@pytest.fixture
def client(gateway, team):
    with OpenAI(base_url=gateway.base_url, api_key=team.key, max_retries=0, timeout=30) as client:
        yield client


@pytest.fixture
def prompt():
    """A prompt nobody has sent before."""
    return f"Into lock {next(_numbers)}, and then"


def seen(answer):
    """An answer, or a chunk of one, without what differs between two."""
    return answer.model_dump(exclude={"id", "created"})


@pytest.mark.parametrize("request_", [*REQUESTS.values(), {"prompt": "a", "n": 2, "best_of": 5}],
                         ids=[*REQUESTS, "the best"])  # fmt: skip
def test_an_answer_is_upstreams_own(client, straight, request_):
    through = client.completions.create(model=MODEL, **request_)
    assert seen(through) == seen(straight.completions.create(model=MODEL, **request_))
    assert through.usage.prompt_tokens > 0


@pytest.mark.parametrize("usage", [False, True], ids=["bare", "usage"])
@pytest.mark.parametrize("split", [None, 1, 7, 64, 1_000])
@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
def test_a_stream_is_upstreams_own(client, straight, request_, split, usage):
    options = {"stream_options": {"include_usage": True}} if usage else {}
    cut = {"x-simulate-split": str(split)} if split else {}
    asked = {"model": MODEL, **request_, "stream": True, **options}
    through = [seen(chunk) for chunk in client.completions.create(**asked, extra_headers=cut)]
    assert through == [seen(chunk) for chunk in straight.completions.create(**asked)]
    assert any(chunk.get("usage") for chunk in through) is usage


def test_every_candidate_is_paid_for(gateway, post, team, prompt):
    body = {"model": MODEL, "prompt": [prompt, prompt], "n": 2, "best_of": 4, "max_tokens": 5}
    answer = post("completions", body)
    assert len(answer.json()["choices"]) == 4
    (event,) = gateway.events(team.name, 1)
    tokens = 2 * -(-len(prompt) // 4)
    assert (event["endpoint"], event["model"], event["outcome"]) == ("text_completion", MODEL, "ok")
    assert (event["input_tokens"], event["output_tokens"], event["estimated"]) == (tokens, 2 * 4 * 5, False)
    assert event["cost_pico_usd"] == tokens * INPUT_PICO_USD + 40 * OUTPUT_PICO_USD


@pytest.mark.parametrize(
    ("more", "reserved"),
    [({}, 16), ({"max_tokens": 50}, 50), ({"n": 3}, 48), ({"n": 2, "best_of": 5, "max_tokens": 10}, 50)],
)
def test_what_is_reserved_until_the_end(post, new_team, more, reserved):
    team = new_team(requests_per_minute=60, tokens_per_minute=1, token_capacity=1_000)
    body = {"model": MODEL, "prompt": "a" * 40, "stream": "best_of" not in more, **more}
    with post("completions", body, by=team, stream=True) as answer:
        # The head of a stream shows the reservation, that of a plain answer too: it is written with what was decided.
        assert int(answer.headers["x-ratelimit-remaining-tokens"]) == 1_000 - 10 - reserved
        assert answer.content
    never = post("completions", {**body, "max_tokens": 100_000 // 128, "n": 128, "best_of": 1}, by=team)
    assert never.status_code == 429
    assert "too large" in never.json()["error"]["message"]


def test_a_stream_is_paid_for_though_nobody_asked_for_its_usage(gateway, post, team, upstream, prompt):
    answer = post("completions", {"model": MODEL, "prompt": prompt, "stream": True, "max_tokens": 5})
    assert b"usage" not in answer.content
    assert json.loads(upstream.last_body())["stream_options"] == {"include_usage": True}
    (event,) = gateway.events(team.name, 1)
    assert (event["output_tokens"], event["estimated"]) == (5, False)


def test_a_stream_that_upstream_cuts_is_charged_and_looks_cut(gateway, post, team, client, prompt):
    cut = {"x-simulate-cut-after": "4"}
    with pytest.raises(openai.APIError):
        list(client.completions.create(model=MODEL, prompt=prompt, stream=True, extra_headers=cut))
    with (
        pytest.raises(requests.RequestException),
        post("completions", {"model": MODEL, "prompt": prompt, "stream": True}, cut, stream=True) as answer,
    ):
        list(answer.iter_content(None))
    for event in gateway.events(team.name, 2):
        assert (event["outcome"], event["estimated"]) == ("upstream_error", True)
        assert event["input_tokens"] > 0
        assert event["output_tokens"] >= 4
        assert event["cost_pico_usd"] > 0


def test_a_client_that_leaves_pays_for_what_has_run(gateway, post, team, prompt):
    slow = {"x-simulate-chunk-ms": "600000"}
    body = {"model": MODEL, "prompt": prompt, "stream": True, "max_tokens": 1_000, "seed": None}
    with post("completions", body, slow, stream=True) as answer:
        next(answer.iter_lines())
    (event,) = gateway.events(team.name, 1)
    assert (event["outcome"], event["estimated"]) == ("client_gone", True)
    assert event["input_tokens"] > 0


@pytest.mark.parametrize("wish", [{"temperature": 0}, {"top_p": 0}, {"seed": 5}], ids=["temperature", "top_p", "seed"])
def test_the_second_answer_is_the_first_one_in_its_form(gateway, post, upstream, team, prompt, wish):
    body = {"model": MODEL, "prompt": prompt, **wish}
    plain = [post("completions", body) for _ in range(2)]
    streams = [post("completions", {**body, "stream": True}) for _ in range(2)]
    with_usage = post("completions", {**body, "stream": True, "stream_options": {"include_usage": True}})
    again = post("completions", body)
    assert upstream.idle_stats()["requests"] == 2, "one for each form"
    assert plain[0].content == plain[1].content == again.content
    assert events_of(streams[0]) == events_of(streams[1])
    assert [chunk for chunk in events_of(with_usage) if chunk["choices"]] == [
        {**chunk, "usage": None} for chunk in events_of(streams[0])
    ]
    assert events_of(with_usage)[-1]["usage"]["completion_tokens"] == 16
    hits = [
        answer.headers["Cache-Status"].startswith("tollgate; hit") for answer in (*plain, *streams, with_usage, again)
    ]
    assert hits == [False, True, False, True, True, True]
    events = gateway.events(team.name, 6)
    assert [event["outcome"] for event in events] == ["ok", "cached", "ok", "cached", "cached", "cached"]
    assert all(event["cost_pico_usd"] == 0 for event in events if event["outcome"] == "cached")


def events_of(answer):
    *events, done, _ = answer.content.split(b"\n\n")
    assert done == b"data: [DONE]"
    return [json.loads(event.removeprefix(b"data: ")) for event in events]


def test_by_chance_is_asked_each_time(post, upstream, prompt):
    for _ in range(2):
        answer = post("completions", {"model": MODEL, "prompt": prompt})
        assert answer.headers["Cache-Status"] == "tollgate; fwd=bypass; detail=temperature"
    assert upstream.idle_stats()["requests"] == 2


@pytest.mark.parametrize("stream", [False, True])
def test_what_is_asked_for_at_once_goes_upstream_once(gateway, post, upstream, team, prompt, stream):
    body = {"model": MODEL, "prompt": prompt, "temperature": 0, "stream": stream}
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda _: post("completions", body, {"x-simulate-delay-ms": "400"}), range(4)))
    assert upstream.idle_stats()["requests"] == 1
    assert len({answer.content for answer in answers}) == 1
    events = gateway.events(team.name, 4)
    assert sorted(event["outcome"] for event in events) == ["cached", "cached", "cached", "ok"]


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"prompt": "a"}, 400, "model"),
        ({"model": MODEL, "prompt": 5}, 400, "prompt"),
        ({"model": MODEL, "prompt": []}, 400, "prompt"),
        ({"model": MODEL, "prompt": ["a", 5]}, 400, "prompt"),
        ({"model": MODEL, "prompt": "a", "n": 129}, 400, "n"),
        ({"model": MODEL, "prompt": "a", "best_of": 21}, 400, "best_of"),
        ({"model": MODEL, "prompt": "a", "max_tokens": -1}, 400, "max_tokens"),
        ({"model": MODEL, "prompt": "a", "max_tokens": 4_097}, 400, "max_tokens"),
        ({"model": MODEL, "prompt": "a", "stream": "yes"}, 400, "stream"),
        ({"model": "davinci-none", "prompt": "a"}, 404, "model"),
        (b"{", 400, None),
    ],
)
def test_what_is_refused_here_goes_nowhere(gateway, post, upstream, team, body, status, param):
    answer = post("completions", body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)
    assert upstream.stats()["requests"] == 0
    assert post("completions", {"model": MODEL, "prompt": "good"}).status_code == 200
    assert [event["status"] for event in gateway.events(team.name, 1)] == [200]


@pytest.mark.parametrize("more", [{"model": "gpt-4o-mini"}, {"n": 3, "best_of": 2}, {"best_of": 2, "stream": True}])
def test_what_upstream_refuses_is_told_in_its_words(gateway, post, upstream, team, more):
    answer = post("completions", {"model": MODEL, "prompt": "a", **more})
    assert answer.status_code in {400, 404}
    assert upstream.idle_stats()["requests"] == 1
    (event,) = gateway.events(team.name, 1)
    assert (event["outcome"], event["cost_pico_usd"]) == ("upstream_error", 0)
