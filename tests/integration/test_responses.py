"""The Responses API, as the official SDK and plain clients see it, and as it is accounted for."""

from __future__ import annotations

import itertools
import json
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
import requests
from openai import OpenAI

MODEL = "gpt-4o-mini"
INPUT_PICO_USD, OUTPUT_PICO_USD = 150_000, 600_000
"""Prices of the model per token, as the table in the package has them."""
TEXT = "žluť 🦔, and the lock next to it?"
PARAMETERS = {"type": "object", "properties": {"basin": {"type": "string"}}}
TOOL = {"type": "function", "name": "depth_of", "parameters": PARAMETERS, "strict": True}
CALL = {"type": "function_call", "call_id": "c", "name": "depth_of", "arguments": "{}"}
_numbers = itertools.count()
REQUESTS = {
    "a text": {"input": "How deep is the basin?"},
    "an echo of it": {"input": f"echo:{TEXT}", "instructions": "You are a lock-keeper."},
    "items": {"input": [{"role": "user", "content": [{"type": "input_text", "text": "How?"}]}, CALL,
                        {"type": "function_call_output", "call_id": "c", "output": "4"}]},
    "cut short": {"input": "How deep?", "max_output_tokens": 3},
    "a call": {"input": "How deep?", "tools": [TOOL], "tool_choice": "required"},
}  # fmt: skip


@pytest.fixture
def client(gateway, team):
    with OpenAI(base_url=gateway.base_url, api_key=team.key, max_retries=0, timeout=30) as client:
        yield client


@pytest.fixture
def text():
    """A text nobody has sent before."""
    return f"How deep is lock {next(_numbers)}?"


OWN = {"id", "created_at", "completed_at", "item_id", "call_id"}


def seen(value):
    """An answer or an event without what differs between two."""
    if isinstance(value, list):
        return [seen(each) for each in value]
    if isinstance(value, dict):
        return {name: seen(each) for name, each in value.items() if name not in OWN}
    return value if value is None or isinstance(value, str | int | float) else seen(value.model_dump())


def tokens_of(text):
    return 3 + 4 + -(-len(text) // 4)


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
def test_an_answer_is_upstreams_own(client, straight, request_):
    through = client.responses.create(model=MODEL, **request_)
    assert seen(through) == seen(straight.responses.create(model=MODEL, **request_))
    assert through.usage.total_tokens > 0
    assert through.output


@pytest.mark.parametrize("split", [None, 1, 7, 64, 1_000])
@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
def test_a_stream_is_upstreams_own(client, straight, request_, split):
    cut = {"x-simulate-split": str(split)} if split else {}
    asked = {"model": MODEL, **request_, "stream": True}
    through = [seen(event) for event in client.responses.create(**asked, extra_headers=cut)]
    assert through == [seen(event) for event in straight.responses.create(**asked)]
    assert through[-1]["response"]["usage"]["output_tokens"] > 0


def test_the_helper_puts_a_stream_together(client):
    with client.responses.stream(model=MODEL, input=f"echo:{TEXT}") as stream:
        deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
    assert "".join(deltas) == stream.get_final_response().output_text == TEXT


@pytest.mark.parametrize("stream", [False, True])
def test_what_it_costs(gateway, post, team, upstream, text, stream):
    answer = post("responses", {"model": MODEL, "input": text, "max_output_tokens": 9, "stream": stream})
    assert answer.status_code == 200
    assert b"stream_options" not in upstream.last_body()
    (event,) = gateway.events(team.name, 1)
    assert (event["endpoint"], event["model"], event["outcome"]) == ("responses", MODEL, "ok")
    assert (event["input_tokens"], event["output_tokens"], event["estimated"]) == (tokens_of(text), 9, False)
    assert event["cost_pico_usd"] == tokens_of(text) * INPUT_PICO_USD + 9 * OUTPUT_PICO_USD


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("more", "reserved"), [({"max_output_tokens": 50}, 50), ({}, 1_024)])
def test_what_is_reserved(post, new_team, stream, more, reserved):
    team = new_team(requests_per_minute=60, tokens_per_minute=1, token_capacity=5_000)
    answer = post("responses", {"model": MODEL, "input": "a" * 40, "stream": stream, **more}, by=team)
    estimated = 3 + 3 + 10 + 1
    assert int(answer.headers["x-ratelimit-remaining-tokens"]) == 5_000 - estimated - reserved
    never = post("responses", {"model": MODEL, "input": "a", "max_output_tokens": 5_001}, by=team)
    assert never.status_code == 429
    assert "too large" in never.json()["error"]["message"]


def test_a_stream_that_upstream_cuts_is_charged_and_looks_cut(gateway, post, team, client, text):
    cut = {"x-simulate-cut-after": "6"}
    body = {"model": MODEL, "input": text, "stream": True}
    pieces: list[bytes] = []
    with post("responses", body, cut, stream=True) as answer, pytest.raises(requests.RequestException):
        pieces.extend(answer.iter_content(None))
    *_, last, _ = b"".join(pieces).split(b"\n\n")
    name, _, data = last.partition(b"\n")
    told = json.loads(data.removeprefix(b"data: "))
    assert name == b"event: error"
    assert (told["type"], told["code"], told["param"]) == ("error", "upstream_broken", None)
    assert told["sequence_number"] == 6
    events = []
    with pytest.raises(openai.APIConnectionError):
        events.extend(client.responses.create(**body, extra_headers=cut))
    assert "response.completed" not in {event.type for event in events}
    for event in gateway.events(team.name, 2):
        assert (event["outcome"], event["estimated"]) == ("upstream_error", True)
        assert event["input_tokens"] > 0
        assert event["output_tokens"] >= 2
        assert event["cost_pico_usd"] > 0


def test_an_error_of_upstreams_passes_as_it_came(gateway, post, team, text):
    answer = post("responses", {"model": MODEL, "input": text, "stream": True}, {"x-simulate-error-event-after": "5"})
    assert answer.content.count(b"event: error\n") == 1
    (event,) = gateway.events(team.name, 1)
    assert (event["outcome"], event["estimated"]) == ("upstream_error", True)


def test_a_client_that_leaves_pays_for_what_has_run(gateway, post, team, text):
    slow = {"x-simulate-chunk-ms": "600000"}
    with post("responses", {"model": MODEL, "input": text, "stream": True}, slow, stream=True) as answer:
        next(answer.iter_lines())
    (event,) = gateway.events(team.name, 1)
    assert (event["outcome"], event["estimated"]) == ("client_gone", True)
    assert event["input_tokens"] > 0


def test_a_stream_without_usage_is_counted_here(gateway, post, team, text):
    post("responses", {"model": MODEL, "input": text, "stream": True}, {"x-simulate-no-usage": "1"})
    (event,) = gateway.events(team.name, 1)
    assert (event["outcome"], event["estimated"]) == ("ok", True)
    assert event["input_tokens"] > 0
    assert event["output_tokens"] > 0


def test_the_second_answer_is_the_first_one_in_its_form(gateway, post, upstream, team, text):
    body = {"model": MODEL, "input": text, "temperature": 0, "store": False}
    plain = [post("responses", body) for _ in range(2)]
    streams = [post("responses", {**body, "stream": True}) for _ in range(2)]
    assert upstream.idle_stats()["requests"] == 2, "one for each form"
    assert plain[0].content == plain[1].content
    assert streams[0].content == streams[1].content
    assert streams[1].headers["Content-Type"].startswith("text/event-stream")
    assert plain[1].headers["Content-Type"] == "application/json"
    hits = [answer.headers["Cache-Status"].startswith("tollgate; hit") for answer in (*plain, *streams)]
    assert hits == [False, True, False, True]
    events = gateway.events(team.name, 4)
    assert [event["outcome"] for event in events] == ["ok", "cached", "ok", "cached"]
    assert events[1]["saved_pico_usd"] == events[0]["cost_pico_usd"] > 0


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"temperature": 0}, "store"),
        ({"temperature": 0, "store": True}, "store"),
        ({"store": False}, "temperature"),
        ({"store": False, "temperature": 0, "tools": [{"type": "web_search"}]}, "tools"),
    ],
)
def test_what_is_asked_each_time(post, upstream, text, fields, reason):
    for _ in range(2):
        answer = post("responses", {"model": MODEL, "input": text, **fields})
        assert answer.status_code == 200
        assert answer.headers["Cache-Status"] == f"tollgate; fwd=bypass; detail={reason}"
        assert json.loads(upstream.last_body()) == {"model": MODEL, "input": text, **fields}
    assert upstream.idle_stats()["requests"] == 2


def test_an_answer_that_was_cut_short_is_not_kept(post, upstream, text):
    body = {"model": MODEL, "input": text, "temperature": 0, "store": False, "max_output_tokens": 2}
    for _ in range(2):
        assert post("responses", body).json()["status"] == "incomplete"
    assert upstream.idle_stats()["requests"] == 2


@pytest.mark.parametrize("stream", [False, True])
def test_what_is_asked_for_at_once_goes_upstream_once(gateway, post, upstream, team, text, stream):
    body = {"model": MODEL, "input": text, "temperature": 0, "store": False, "stream": stream}
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda _: post("responses", body, {"x-simulate-delay-ms": "400"}), range(4)))
    assert upstream.idle_stats()["requests"] == 1
    assert len({answer.content for answer in answers}) == 1
    events = gateway.events(team.name, 4)
    assert sorted(event["outcome"] for event in events) == ["cached", "cached", "cached", "ok"]


STATE = [
    ({"previous_response_id": "resp_1"}, "previous_response_id"),
    ({"conversation": "conv_1"}, "conversation"),
    ({"background": True}, "background"),
    ({"prompt": {"id": "pmpt_1"}}, "prompt"),
    ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0]"),
    ({"tools": [{"type": "file_search", "vector_store_ids": ["vs_1"]}]}, "tools[0]"),
]


@pytest.mark.parametrize(("fields", "param"), STATE, ids=[param for _, param in STATE])
@pytest.mark.parametrize("path", ["responses", "responses/input_tokens"])
def test_what_others_may_have_left_there_is_closed(gateway, post, upstream, team, path, fields, param):
    answer = post(path, {"model": MODEL, "input": "Hi", **fields})
    assert answer.status_code == 403
    error = answer.json()["error"]
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, "endpoint_not_allowed")
    assert upstream.stats()["requests"] == 0
    assert post("responses", {"model": MODEL, "input": "good"}).status_code == 200
    assert [event["status"] for event in gateway.events(team.name, 1)] == [200]


@pytest.mark.parametrize(("fields", "param"), STATE, ids=[param for _, param in STATE])
def test_it_is_open_to_a_team_that_may(post, new_team, upstream, fields, param):
    team = new_team(allow_stateful=True)
    body = {"model": MODEL, "input": "Hi", "temperature": 0, "store": False, **fields}
    answer = post("responses", body, by=team)
    assert answer.status_code == 200, param
    assert answer.headers["Cache-Status"].startswith("tollgate; fwd=bypass")
    assert json.loads(upstream.last_body()) == body


def test_what_runs_in_the_background_is_charged_as_reserved(gateway, post, new_team):
    team = new_team(allow_stateful=True)
    body = {"model": MODEL, "input": "Hi", "background": True, "max_output_tokens": 77}
    assert post("responses", body, by=team).json()["status"] == "queued"
    (event,) = gateway.events(team.name, 1)
    assert (event["output_tokens"], event["estimated"]) == (77, True)
    assert event["input_tokens"] > 0


def test_counting_costs_one_request_and_no_tokens(gateway, client, straight, post, new_team, text):
    counted = client.responses.input_tokens.count(model=MODEL, input=text)
    assert counted.input_tokens == tokens_of(text)
    assert seen(counted) == seen(straight.responses.input_tokens.count(model=MODEL, input=text))
    team = new_team(requests_per_minute=60, tokens_per_minute=1, token_capacity=5)
    answer = post("responses/input_tokens", {"model": MODEL, "input": "a" * 4_000}, by=team)
    assert answer.status_code == 200
    assert answer.headers["x-ratelimit-remaining-requests"] == "59"
    assert answer.headers["x-ratelimit-remaining-tokens"] == "5"
    (event,) = gateway.events(team.name, 1)
    assert event["endpoint"] == "responses_input_tokens"
    assert (event["input_tokens"], event["output_tokens"], event["cost_pico_usd"], event["estimated"]) == (
        0,
        0,
        0,
        False,
    )


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"input": "a"}, 400, "model"),
        ({"model": MODEL}, 400, "input"),
        ({"model": MODEL, "input": 5}, 400, "input"),
        ({"model": MODEL, "input": ["a"]}, 400, "input[0]"),
        ({"model": MODEL, "input": "a", "max_output_tokens": 0}, 400, "max_output_tokens"),
        ({"model": MODEL, "input": "a", "max_output_tokens": 10**6}, 400, "max_output_tokens"),
        ({"model": MODEL, "input": "a", "tools": [5]}, 400, "tools[0]"),
        ({"model": "gpt-none", "input": "a"}, 404, "model"),
        (b'{"model":"gpt-4o-mini","input":"a","store":false,"store":true}', 400, None),
    ],
)
def test_what_is_refused_here_goes_nowhere(gateway, post, upstream, team, body, status, param):
    answer = post("responses", body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)
    assert upstream.stats()["requests"] == 0
    assert post("responses", {"model": MODEL, "input": "good"}).status_code == 200
    assert [event["status"] for event in gateway.events(team.name, 1)] == [200]


def test_what_upstream_refuses_is_told_in_its_words(gateway, client, upstream, team):
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model=MODEL, input="a", tool_choice="required")
    assert caught.value.param == "tool_choice"
    assert upstream.idle_stats()["requests"] == 1
    (event,) = gateway.events(team.name, 1)
    assert (event["outcome"], event["cost_pico_usd"]) == ("upstream_error", 0)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "responses/resp_1"),
        ("DELETE", "responses/resp_1"),
        ("POST", "responses/resp_1/cancel"),
        ("GET", "responses/resp_1/input_items"),
        ("POST", "responses/compact"),
        ("GET", "responses/input_tokens"),
    ],
)
@pytest.mark.parametrize("may", [False, True])
def test_what_is_kept_there_is_for_teams_that_may(gateway, session, new_team, upstream, method, path, may):
    team = new_team(allow_stateful=may)
    answer = session.request(method, f"{gateway.base_url}/{path}", headers=team.headers, json={}, timeout=30)
    if may:
        # Upstream has nothing there, and says so itself.
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] != "endpoint_not_allowed"
        assert answer.headers["x-upstream-request-id"]
    else:
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "endpoint_not_allowed")
        assert upstream.stats()["requests"] == 0


@pytest.mark.parametrize("may", [False, True])
def test_a_chat_that_names_a_file_kept_there_is_for_teams_that_may(gateway, session, new_team, upstream, may):
    team = new_team(allow_stateful=may)
    file = {"type": "file", "file": {"file_id": "file-abc"}}
    data = {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,AA=="}}
    for content, closed in (([{"type": "text", "text": "What is in it?"}, file], not may), ([data], False)):
        body = {
            "model": MODEL,
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": content}],
        }
        url = f"{gateway.base_url}/chat/completions"
        answer = session.post(url, headers=team.headers, json=body, timeout=30)
        if closed:
            error = answer.json()["error"]
            assert (answer.status_code, error["code"]) == (403, "endpoint_not_allowed")
            assert error["param"] == "messages[1].content[1].file.file_id"
        else:
            assert answer.status_code == 200
    assert upstream.stats()["requests"] == (2 if may else 1)
