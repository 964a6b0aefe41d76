"""One cache entry for a plain answer and a streamed one, as the official SDK reads them."""

from __future__ import annotations

import itertools
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import requests
from openai import LengthFinishReasonError, OpenAI

from proxy.core.replay import assemble
from tests.support.tollgate_process import run_tollgate

MODEL = "gpt-4o-mini"
USAGE = {"stream_options": {"include_usage": True}}
TOOL = {
    "type": "function",
    "function": {
        "name": "depth_of",
        "parameters": {"type": "object", "properties": {"basin": {"type": "string"}, "at": {"type": "integer"}}},
    },
}
KINDS = {
    "text": {},
    "two choices": {"n": 2},
    "cut short": {"max_tokens": 3},
    "a tool call": {"tools": [TOOL], "tool_choice": "required"},
    "a tool call in each of two choices": {"tools": [TOOL], "tool_choice": "required", "n": 2},
    "json": {"response_format": {"type": "json_object"}},
}
_numbers = itertools.count()


@pytest.fixture(params=KINDS)
def question(request):
    """A deterministic request nobody has made before."""
    messages = [{"role": "user", "content": f"In both forms, number {next(_numbers)}: žluť 🦔?"}]
    return {"model": MODEL, "temperature": 0, "messages": messages, **KINDS[request.param]}


@pytest.fixture
def client(gateway, team):
    with OpenAI(base_url=gateway.base_url, api_key=team.key, max_retries=0, timeout=30) as client:
        yield client


def plain(client, question):
    return client.chat.completions.create(**question)


def streamed(client, question, **options):
    with client.chat.completions.create(**question, stream=True, **options) as stream:
        return list(stream)


def helped(client, question):
    """What the SDK's stream helper makes of a stream."""
    with client.chat.completions.stream(**question, **USAGE) as stream:
        try:
            return stream.get_final_completion()
        except LengthFinishReasonError as error:  # its way of handing out an answer that was cut short
            return error.completion


def said(completion):
    """What an answer says, without what only one of the SDK's types has room for."""
    told = completion.to_dict(exclude_none=True)
    for choice in told["choices"]:
        # Upstream has no annotations in a stream, and the SDK leaves traces of what it parsed.
        choice["message"] = {
            name: value for name, value in choice["message"].items() if name not in {"annotations", "parsed"}
        }
        for call in choice["message"].get("tool_calls") or ():
            call.pop("index", None)
            call["function"].pop("parsed_arguments", None)
    return told


def put_together(chunks):
    return assemble([chunk.to_dict() for chunk in chunks])


FILLS = {
    "plain": plain,
    "stream": streamed,
    "stream with usage": lambda client, question: streamed(client, question, **USAGE),
}


@pytest.mark.parametrize("fill", FILLS)
def test_one_entry_answers_every_form(client, upstream, question, fill):
    first = FILLS[fill](client, question)
    whole = plain(client, question)
    if fill == "plain":
        assert whole.to_dict() == first.to_dict()
    else:
        assert (whole.id, whole.created) == (first[0].id, first[0].created)
        # A stream without usage tells everything else.
        told = put_together(first)
        assert {**told, "usage": whole.usage.to_dict()} == whole.to_dict()
    assert all(choice.finish_reason for choice in whole.choices)
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens

    bare, counted = streamed(client, question), streamed(client, question, **USAGE)
    assert all("usage" not in chunk.to_dict() for chunk in bare)
    assert [chunk.usage for chunk in counted] == [None] * (len(counted) - 1) + [whole.usage]
    assert put_together(counted) == whole.to_dict()
    assert put_together(bare) | {"usage": whole.usage.to_dict()} == whole.to_dict()
    assert said(helped(client, question)) == said(whole)
    assert upstream.idle_stats()["requests"] == 1


def test_the_helper_makes_one_answer_of_a_stream_and_of_its_replay(client, upstream, question):
    first, second = helped(client, question), helped(client, question)
    assert said(first) == said(second) == said(plain(client, question))
    assert upstream.idle_stats()["requests"] == 1


@pytest.fixture
def echo():
    text = f"echo:both forms {next(_numbers)}"
    return {"model": MODEL, "temperature": 0, "messages": [{"role": "user", "content": text}]}


@pytest.mark.parametrize("fill", [{}, {"stream": True}], ids=["plain", "stream"])
def test_headers_are_those_of_the_form_that_was_asked_for(call, upstream, echo, fill):
    call(echo | fill)
    whole, told = call(echo), call({**echo, "stream": True})
    assert upstream.idle_stats()["requests"] == 1
    assert whole.headers["Content-Type"] == "application/json"
    assert told.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert whole.headers["Cache-Control"] == "private, no-store"
    assert told.headers["Cache-Control"] == "no-cache, no-store"
    assert told.headers["X-Accel-Buffering"] == "no"
    for answer in (whole, told):
        assert answer.headers["Cache-Status"].startswith("tollgate; hit; ttl=")
        assert int(answer.headers["Age"]) < 60
        assert answer.headers["openai-version"] == "2020-10-01"
    assert told.content.startswith(b'data: {"id":"chatcmpl-')
    assert told.content.endswith(b'"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n')


def test_what_a_hit_saves_does_not_depend_on_its_form(gateway, call, team, echo):
    for form in ({"stream": True}, {}, {"stream": True}, {"stream": True, **USAGE}):
        assert call(echo | form).status_code == 200
    paid, *saved = gateway.events(team.name, 4)
    assert paid["cost_pico_usd"] > 0
    for event in saved:
        assert (event["outcome"], event["cost_pico_usd"]) == ("cached", 0)
        assert event["saved_pico_usd"] == paid["cost_pico_usd"]
        assert (event["input_tokens"], event["output_tokens"]) == (paid["input_tokens"], paid["output_tokens"])


def test_no_cache_renews_the_answer_of_both_forms(call, upstream, echo):
    first = call(echo).json()
    call({**echo, "stream": True}, {"Cache-Control": "no-cache"})
    renewed = call(echo)
    assert "hit" in renewed.headers["Cache-Status"]
    assert renewed.json()["id"] != first["id"]
    assert upstream.idle_stats()["requests"] == 2


@contextmanager
def strange_upstream(chunks, whole):
    """An upstream with a dialect of its own: both of its answers have a member that nobody knows."""
    calls = []
    stream = b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks) + b"data: [DONE]\n\n"

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            calls.append(asked.get("stream", False))
            body, kind = (
                (stream, "text/event-stream") if calls[-1] else (json.dumps(whole).encode(), "application/json")
            )
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1", calls
        finally:
            server.shutdown()
            thread.join()


def test_what_only_one_form_can_tell_serves_that_form_alone(tmp_path, session):
    head = {"id": "chatcmpl-1", "created": 1, "model": MODEL, "x_dialect": 1}
    usage = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
    chunk = {**head, "object": "chat.completion.chunk", "obfuscation": "hB7", "usage": None}
    delta = {"role": "assistant", "content": "deep", "mood": "calm"}
    chunks = [
        {**chunk, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]},
        {**chunk, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
        {**chunk, "choices": [], "usage": usage},
    ]
    message = {"role": "assistant", "content": "deep", "mood": "calm"}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    whole = {**head, "object": "chat.completion", "choices": [choice], "usage": usage}
    question = {"model": MODEL, "temperature": 0, "messages": [{"role": "user", "content": "?"}]}
    forms = {"plain": {}, "stream": {"stream": True}, "usage": {"stream": True, **USAGE}}
    with (
        strange_upstream(chunks, whole) as (base_url, calls),
        run_tollgate(tmp_path, base_url, "sk-upstream") as gateway,
    ):
        # Whichever form comes first, each has an answer of its own.
        for seed, order in enumerate(itertools.permutations(forms, 3)):
            team, before = gateway.add_team(f"team-{seed}"), len(calls)
            for name in (*order, *order):
                url = f"{gateway.base_url}/chat/completions"
                answer = session.post(url, json=question | forms[name], headers=team.headers, timeout=30)
                told = told_by(answer)
                fresh = "hit" not in answer.headers["Cache-Status"]
                expected = chunks if name != "plain" else [whole]
                if name == "stream":
                    expected = [{key: each[key] for key in each if key != "usage"} for each in chunks[:-1]]
                if not fresh:
                    expected = [{key: each[key] for key in each if key != "obfuscation"} for each in expected]
                assert told == expected
            assert sorted(calls[before:]) == [False, True]


def told_by(answer: requests.Response):
    assert answer.status_code == 200
    if answer.headers["Content-Type"].startswith("application/json"):
        return [answer.json()]
    *events, done, nothing = answer.content.split(b"\n\n")
    assert (done, nothing) == (b"data: [DONE]", b"")
    return [json.loads(event.removeprefix(b"data: ")) for event in events]
