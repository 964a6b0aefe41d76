"""Embeddings and moderations, as the official SDK and plain clients see them, and as they are accounted for."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from openai import OpenAI

EMBEDDING = "text-embedding-3-small"
MODERATION = "omni-moderation-latest"
PICO_USD = 20_000
"""Price of the embedding model per token, as the table in the package has it."""
TEXTS = ["How deep is the basin?", "žluť 🦔"]
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
_numbers = itertools.count()


@pytest.fixture
def client(gateway, team):
    with OpenAI(base_url=gateway.base_url, api_key=team.key, max_retries=0, timeout=30) as client:
        yield client


@pytest.fixture
def text():
    """A text nobody has sent before."""
    return f"How deep is basin {next(_numbers)}?"


def tokens_of(text):
    return -(-len(text) // 4)


def seen(answer):
    """An answer without what differs between two."""
    return answer.model_dump(exclude={"id"})


@pytest.mark.parametrize("given", [TEXTS[0], TEXTS, [15_339, 1_917], [[1], [2, 3]]], ids=["1", "2", "ids", "2 x ids"])
@pytest.mark.parametrize("options", [{}, {"encoding_format": "float"}, {"dimensions": 8}], ids=["bare", "float", "8"])
def test_embeddings_are_upstreams_own(client, straight, given, options):
    through = client.embeddings.create(model=EMBEDDING, input=given, **options)
    assert seen(through) == seen(straight.embeddings.create(model=EMBEDDING, input=given, **options))
    assert len(through.data[0].embedding) == options.get("dimensions", 1_536)
    assert sum(number * number for number in through.data[0].embedding) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("given", [TEXTS[0], TEXTS, [{"type": "text", "text": "Hi"}, PICTURE]], ids=["1", "2", "parts"])
@pytest.mark.parametrize("model", [{}, {"model": "omni-moderation-2024-09-26"}], ids=["default", "named"])
def test_moderations_are_upstreams_own(client, straight, given, model):
    through = client.moderations.create(input=given, **model)
    assert seen(through) == seen(straight.moderations.create(input=given, **model))
    assert through.model == model.get("model", MODERATION)
    assert through.results


def test_what_an_embedding_costs(gateway, post, team, text):
    assert post("embeddings", {"model": EMBEDDING, "input": [text, "Hi"]}).status_code == 200
    (event,) = gateway.events(team.name, 1)
    tokens = tokens_of(text) + tokens_of("Hi")
    assert (event["endpoint"], event["model"], event["outcome"]) == ("embeddings", EMBEDDING, "ok")
    assert (event["input_tokens"], event["output_tokens"], event["estimated"]) == (tokens, 0, False)
    assert event["cost_pico_usd"] == tokens * PICO_USD
    assert event["price_id"]


def test_moderations_are_free_and_priced(gateway, post, team, text):
    assert post("moderations", {"input": text}).status_code == 200
    (event,) = gateway.events(team.name, 1)
    assert (event["endpoint"], event["model"], event["outcome"]) == ("moderations", MODERATION, "ok")
    assert event["cost_pico_usd"] == 0
    assert event["price_id"], "free is a price"
    # Upstream tells no usage: what it read was counted here.
    assert event["estimated"]
    assert 0 < event["input_tokens"] < len(text)
    assert event["output_tokens"] == 0


@pytest.mark.parametrize(
    ("path", "body"), [("embeddings", {"model": EMBEDDING, "input": "a" * 400}), ("moderations", {"input": "a" * 400})]
)
def test_no_output_is_reserved(post, new_team, path, body):
    team = new_team(requests_per_minute=60, tokens_per_minute=60, token_capacity=150)
    first = post(path, body, by=team)
    assert first.status_code == 200
    assert first.headers["x-ratelimit-remaining-requests"] == "59"
    assert first.headers["x-ratelimit-remaining-tokens"] == "50"
    other = {**body, "input": "b" * 640}
    refused = post(path, other, by=team)
    assert refused.status_code == 429
    assert refused.json()["error"]["type"] == "tokens"
    assert "Requested 160" in refused.json()["error"]["message"]


def test_token_ids_are_charged_one_by_one(post, new_team):
    team = new_team(requests_per_minute=60, tokens_per_minute=1, token_capacity=100)
    answer = post("embeddings", {"model": EMBEDDING, "input": [[next(_numbers)] * 7, [1] * 30]}, by=team)
    assert answer.headers["x-ratelimit-remaining-tokens"] == "63"


@pytest.mark.parametrize("path", ["embeddings", "moderations"])
def test_the_second_answer_is_the_first_one(gateway, post, upstream, team, text, path):
    body = {"model": EMBEDDING if path == "embeddings" else MODERATION, "input": text}
    first, second = post(path, body), post(path, body)
    assert upstream.idle_stats()["requests"] == 1
    assert first.content == second.content
    assert first.headers["Cache-Status"] == "tollgate; fwd=uri-miss; stored"
    assert second.headers["Cache-Status"].startswith("tollgate; hit; ttl=")
    paid, saved = gateway.events(team.name, 2)
    assert (paid["outcome"], saved["outcome"], saved["cost_pico_usd"]) == ("ok", "cached", 0)
    assert saved["saved_pico_usd"] == paid["cost_pico_usd"]
    assert saved["input_tokens"] == paid["input_tokens"] > 0


def test_numbers_and_base64_are_two_requests(post, upstream, text):
    body = {"model": EMBEDDING, "input": text, "dimensions": 4}
    forms = [{}, {"encoding_format": "float"}, {"encoding_format": "base64"}]
    answers = [post("embeddings", {**body, **form}).json()["data"][0]["embedding"] for form in forms]
    assert [type(answer) for answer in answers] == [list, list, str]
    assert answers[0] == answers[1]
    assert upstream.idle_stats()["requests"] == 3


def test_a_picture_that_is_elsewhere_is_looked_at_each_time(post, upstream):
    linked = {"input": [{"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}]}
    for _ in range(2):
        assert post("moderations", linked).headers["Cache-Status"] == "tollgate; fwd=bypass; detail=image_url"
    assert upstream.idle_stats()["requests"] == 2


@pytest.mark.parametrize("path", ["embeddings", "moderations"])
def test_what_is_asked_for_at_once_goes_upstream_once(gateway, post, upstream, team, text, path):
    body = {"model": EMBEDDING if path == "embeddings" else MODERATION, "input": text}
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda _: post(path, body, {"x-simulate-delay-ms": "400"}), range(4)))
    assert upstream.idle_stats()["requests"] == 1
    assert len({answer.content for answer in answers}) == 1
    events = gateway.events(team.name, 4)
    assert sorted(event["outcome"] for event in events) == ["cached", "cached", "cached", "ok"]


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("embeddings", {}, 400, "model"),
        ("embeddings", {"model": EMBEDDING}, 400, "input"),
        ("embeddings", {"model": EMBEDDING, "input": ""}, 400, "input"),
        ("embeddings", {"model": EMBEDDING, "input": [1, "a"]}, 400, "input"),
        ("embeddings", {"model": EMBEDDING, "input": ["a"] * 2_049}, 400, "input"),
        ("embeddings", {"model": EMBEDDING, "input": "a", "dimensions": "8"}, 400, "dimensions"),
        ("embeddings", {"model": "text-none", "input": "a"}, 404, "model"),
        ("embeddings", b'{"model":"text-embedding-3-small","input":"a","input":"b"}', 400, None),
        ("embeddings", b"hello", 400, None),
        ("moderations", {}, 400, "input"),
        ("moderations", {"input": [{"type": "image_url", "image_url": {}}]}, 400, "input[0].image_url.url"),
        ("moderations", {"input": "a", "model": 5}, 400, "model"),
        ("moderations", {"input": "a", "model": "omni-none"}, 404, "model"),
    ],
)
def test_what_is_refused_here_goes_nowhere(gateway, post, upstream, team, path, body, status, param):
    answer = post(path, body)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert (sorted(error), error["param"]) == (["code", "message", "param", "type"], param)
    assert upstream.stats()["requests"] == 0
    # What is good is the first that the ledger sees.
    assert post("moderations", {"input": "good"}).status_code == 200
    assert [event["status"] for event in gateway.events(team.name, 1)] == [200]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("embeddings", {"model": "gpt-4o-mini", "input": "a"}),
        ("embeddings", {"model": EMBEDDING, "input": "a", "encoding_format": "hex"}),
        ("moderations", {"model": "gpt-4o-mini", "input": "a"}),
    ],
)
def test_what_upstream_refuses_is_told_in_its_words_and_costs_a_turn(gateway, post, upstream, team, path, body):
    answer = post(path, body)
    assert answer.status_code in {400, 404}
    assert upstream.idle_stats()["requests"] == 1
    (event,) = gateway.events(team.name, 1)
    assert (event["outcome"], event["input_tokens"], event["cost_pico_usd"]) == ("upstream_error", 0, 0)


def test_errors_become_the_sdks_own(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model=EMBEDDING, input="")
    assert caught.value.param == "input"
    with pytest.raises(openai.NotFoundError):
        client.moderations.create(model="omni-none", input="a")


def test_an_answer_without_usage_is_counted_here(gateway, post, team, text):
    assert post("embeddings", {"model": EMBEDDING, "input": text}, {"x-simulate-no-usage": "1"}).status_code == 200
    (event,) = gateway.events(team.name, 1)
    assert event["estimated"]
    assert 0 < event["input_tokens"] < len(text)
    again = post("embeddings", {"model": EMBEDDING, "input": text})
    assert again.headers["Cache-Status"] == "tollgate; fwd=uri-miss; stored"


def test_half_an_answer_is_none(gateway, post, team, text):
    answer = post("embeddings", {"model": EMBEDDING, "input": text}, {"x-simulate-cut-after": "1"})
    assert answer.status_code == 502
    (event,) = gateway.events(team.name, 1)
    assert event["outcome"] == "upstream_error"
    assert event["input_tokens"] > 0


def test_a_team_may_use_its_models_alone(post, new_team, text):
    team = new_team(models=frozenset({EMBEDDING}))
    assert post("embeddings", {"model": EMBEDDING, "input": text}, by=team).status_code == 200
    assert post("moderations", {"input": text}, by=team).status_code == 404
