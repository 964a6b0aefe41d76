"""Plain clients: curl and requests; what upstream gets of their requests, and they of its answers."""

from __future__ import annotations

import json
import re
import subprocess

import pytest
import requests

from tests.support.canned_upstream import canned_upstream
from tests.support.tollgate_process import run_tollgate

CONVERSATION = [
    {"role": "system", "content": "You are a lock-keeper."},
    {"role": "user", "content": "How deep is the basin?"},
    {"role": "assistant", "content": "Four metres."},
    {"role": "user", "content": "And the lock next to it?"},
]
REQUEST = {"model": "gpt-4o-mini", "messages": CONVERSATION}
TOOL = {
    "type": "function",
    "function": {
        "name": "depth_of",
        "parameters": {"type": "object", "properties": {"basin": {"type": "string"}, "tide": {"type": "integer"}}},
    },
}
OWN_TO_AN_ANSWER = re.compile(rb'"id":"chatcmpl-[0-9a-f]+"|"created":\d+')


def same(body: bytes) -> bytes:
    """A body without what differs between any two answers to one request: id and time."""
    assert OWN_TO_AN_ANSWER.search(body)
    return OWN_TO_AN_ANSWER.sub(b"-", body)


@pytest.fixture
def direct(upstream, session):
    """The same request straight to the upstream."""

    def post(body, headers=None, query=""):
        content = {"data": body} if isinstance(body, bytes) else {"json": body}
        return session.post(
            f"{upstream.base_url}/chat/completions{query}",
            headers={"Authorization": f"Bearer {upstream.key}", **(headers or {})},
            timeout=30,
            **content,
        )

    return post


def test_curl_gets_an_answer(gateway, team, tmp_path):
    head = tmp_path / "head"
    done = subprocess.run(
        ["curl", "--silent", "--show-error", "--noproxy", "*", "--dump-header", head, "--max-time", "30",
         f"{gateway.base_url}/chat/completions", "-H", f"Authorization: Bearer {team.key}",
         "-H", "Content-Type: application/json", "--data", json.dumps(REQUEST)],
        capture_output=True, check=True,
    )  # fmt: skip
    assert head.read_text().startswith("HTTP/1.1 200 ")
    answer = json.loads(done.stdout)
    assert answer["choices"][0]["message"]["content"]
    assert answer["usage"]["prompt_tokens"] == 3 + sum(4 + -(-len(each["content"]) // 4) for each in CONVERSATION)


def test_curl_streams(gateway, team):
    done = subprocess.run(
        ["curl", "--silent", "--no-buffer", "--noproxy", "*", "--max-time", "30",
         f"{gateway.base_url}/chat/completions", "-H", f"Authorization: Bearer {team.key}",
         "-H", "Content-Type: application/json", "--data", json.dumps({**REQUEST, "stream": True})],
        capture_output=True, check=True,
    )  # fmt: skip
    events = done.stdout.split(b"\n\n")
    assert events[-2:] == [b"data: [DONE]", b""]
    assert all(event.startswith(b"data: ") for event in events[:-1])


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"n": 2, "max_tokens": 5},
        {"tools": [TOOL], "tool_choice": "required"},
        {"response_format": {"type": "json_object"}},
        {"seed": 7},
        {"a_field_of_tomorrow": {"deeply": [1, 2.50, None]}},
    ],
    ids=["plain", "n", "tools", "json", "seed", "unknown"],
)
def test_a_plain_answer_is_the_upstreams_own(call, direct, more):
    through, straight = call({**REQUEST, **more}), direct({**REQUEST, **more})
    assert through.status_code == straight.status_code == 200
    assert same(through.content) == same(straight.content)
    assert through.headers["Content-Type"] == straight.headers["Content-Type"]


@pytest.mark.parametrize("split", [None, 1, 7, 1_000], ids=["events", "bytes", "sevens", "lumps"])
@pytest.mark.parametrize("options", [None, {"include_usage": True}, {"include_usage": False}], ids=str)
def test_a_stream_is_the_upstreams_own(call, direct, options, split):
    """Byte for byte what a client gets without us, whether or not it wants the usage that we always ask for."""
    body = {**REQUEST, "stream": True, "max_tokens": 6} | ({} if options is None else {"stream_options": options})
    faults = {} if split is None else {"x-simulate-split": str(split)}
    through, straight = call(body, faults), direct(body, faults)
    assert same(through.content) == same(straight.content)
    assert (b'"usage"' in through.content) == bool(options and options["include_usage"])
    assert through.headers["Content-Type"] == straight.headers["Content-Type"]
    assert through.headers["X-Accel-Buffering"] == "no"
    assert "no-store" in through.headers["Cache-Control"]


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
def test_many_choices_and_tool_calls_stream_alike(call, direct, stream):
    body = {**REQUEST, "n": 2, "tools": [TOOL], "tool_choice": "required", "stream": stream}
    assert same(call(body).content) == same(direct(body).content)


def test_text_passes_in_every_script(call, direct):
    text = 'echo:žlutý 🦔 \u2028 "quoted" \\ نص \x7f 末'
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": text}]}
    through = call(body)
    assert through.json()["choices"][0]["message"]["content"] == text.removeprefix("echo:")
    assert same(through.content) == same(direct(body).content)
    streamed = call({**body, "stream": True})
    assert same(streamed.content) == same(direct({**body, "stream": True}).content)


@pytest.mark.parametrize(
    "raw",
    [
        b'{"model":"gpt-4o-mini","messages":[{"role":"user","content":"\\u0161 \xc5\xa1"}]}',
        b' {\n "messages" : [ { "content" : "x", "role" : "user" } ] ,\r\n\t"model":"gpt-4o", "temperature": 1.0e0} \n',
        b'{"model":"gpt-4o-mini","messages":[{"role":"user","content":[{"type":"text","text":"a"}]}],"x":1e30,"y":-0.0}',
    ],
    ids=["escapes", "blanks", "numbers"],
)
def test_the_body_reaches_upstream_byte_for_byte(call, upstream, raw):
    assert call(raw).status_code == 200
    assert upstream.last_body() == raw


def test_only_the_wish_for_usage_is_added_to_a_stream(call, upstream):
    raw = b'{"model": "gpt-4o-mini",  "messages": [{"role": "user", "content": "x"}], "stream": true, "z": 1.50}'
    assert call(raw).status_code == 200
    sent = upstream.last_body()
    assert sent.replace(b'"stream_options":{"include_usage":true},', b"") == raw
    asking = raw.replace(b'"z": 1.50', b'"stream_options": {"include_usage": true}')
    assert call(asking).status_code == 200
    assert upstream.last_body() == asking


def test_secrets_of_the_client_do_not_reach_upstream(call, upstream, team):
    told = {
        "Cookie": "session=oven",
        "X-Forwarded-For": "203.0.113.9",
        "X-Forwarded-Proto": "https",
        "Forwarded": "for=203.0.113.9",
        "OpenAI-Organization": "org-mine",
        "OpenAI-Project": "proj-mine",
        "api-key": team.key,
        "X-Request-ID": "mine-1",
        "X-Hop": "drop me",
        "Connection": "keep-alive, X-Hop",
    }
    assert call(REQUEST, {**told, "X-Kept": "kept", "OpenAI-Beta": "basin=v2"}).status_code == 200
    seen = upstream.last_headers()
    assert seen["authorization"] == upstream.key_digest
    assert seen["x-kept"] == "kept"
    assert seen["openai-beta"] == "basin=v2"
    assert seen["host"] == upstream.root.removeprefix("http://")
    assert not {name.lower() for name in told} - {"connection"} & set(seen)
    assert team.key not in str(seen)


def test_what_is_the_accounts_own_does_not_come_back(call, direct, new_team):
    account = {"set-cookie", "openai-organization", "server", "cf-cache-status"}
    straight = direct(REQUEST)
    assert account <= {name.lower() for name in straight.headers}
    limited = new_team("free")
    answers = [call(REQUEST, by=limited), call({**REQUEST, "stream": True}, by=limited),
               call(REQUEST, {"x-simulate-status": "400"}, by=limited)]  # fmt: skip
    for answer in answers:
        named = {name.lower() for name in answer.headers}
        assert not named & (account - {"server"})
        assert "cloudflare" not in answer.headers.get("Server", "")
        assert answer.headers["x-ratelimit-limit-requests"] == "20"
        assert answer.headers["x-request-id"].startswith("req_")
        assert answer.headers["x-request-id"] != answer.headers["x-upstream-request-id"]
        assert not answer.cookies
    assert answers[0].headers["openai-version"] == straight.headers["openai-version"]
    assert answers[0].headers["openai-model"] == straight.headers["openai-model"]
    # A team without limits is not told the account's.
    assert not [name for name in call(REQUEST).headers if name.lower().startswith("x-ratelimit")]


def test_what_another_charset_would_hide_is_sent_as_what_was_read(call, upstream):
    # In UTF-7 this names another model, behind the one that was looked at.
    hidden = b"+ACI-,+ACI-model+ACI-:+ACI-gpt-4o"
    body = b'{"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hi"}], "user": "%b"}' % hidden
    assert b'"model":"gpt-4o"' in body.decode("utf-7").encode()
    assert call(body, {"Content-Type": "application/json; charset=utf-7"}).status_code == 200
    assert (upstream.last_body(), upstream.last_headers()["content-type"]) == (body, "application/json")


def test_the_query_passes_as_it_was_written(call, upstream):
    assert call(REQUEST, query="?beta=true&name=a%2Fb+c&empty=").status_code == 200
    assert upstream.idle_stats()["records"][-1]["query"] == "beta=true&name=a%2Fb+c&empty="


def test_a_key_may_come_as_azure_clients_send_it(gateway, session, team):
    answer = session.post(
        f"{gateway.base_url}/chat/completions", json=REQUEST, headers={"api-key": team.key}, timeout=30
    )
    assert answer.status_code == 200


def test_upstream_errors_pass_with_status_and_body(call, direct):
    faults = {"x-simulate-status": "400"}
    through, straight = call(REQUEST, faults), direct(REQUEST, faults)
    assert (through.status_code, through.content) == (straight.status_code, straight.content)


def test_a_refused_upstream_key_is_not_the_clients_fault(call):
    answer = call(REQUEST, {"x-simulate-status": "401"})
    assert answer.status_code == 502
    assert answer.json()["error"]["code"] == "upstream_key_refused"
    assert answer.headers["x-should-retry"] == "false"


def test_bodies_that_cannot_be_read_are_refused_here(call, upstream):
    for body, code in [
        (b"{", None),
        (b'{"model":"gpt-4o","model":"gpt-4o-mini","messages":[{"role":"user","content":"x"}]}', None),
        (b'{"model":"gpt-4o-mini","messages":"x"}', "invalid_type"),
        (b'{"messages":[{"role":"user","content":"x"}]}', "missing_required_parameter"),
    ]:
        answer = call(body)
        assert answer.status_code == 400
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
        if code:
            assert answer.json()["error"]["code"] == code
    assert upstream.stats()["requests"] == 0


@pytest.mark.parametrize("fault", ["cut-after", "error-event-after"])
def test_a_stream_that_upstream_breaks_off_cannot_look_whole(call, fault):
    """An error event for those who read events, and no proper end for those who do not."""
    with call({**REQUEST, "stream": True}, {f"x-simulate-{fault}": "3"}, stream=True) as answer:
        pieces, rest = [], answer.iter_content(None)
        with pytest.raises(requests.exceptions.ChunkedEncodingError):
            pieces.extend(rest)
    *_, last, end = b"".join(pieces).split(b"\n\n")
    assert end == b""
    assert json.loads(last.removeprefix(b"data: "))["error"]["type"] == "server_error"


def test_a_stream_that_ends_too_soon_is_broken_off(tmp_path, session):
    """SDKs take any clean end for the end of the answer: this one came in mid-sentence."""
    begun = b'data: {"choices":[{"index":0,"delta":{"content":"Four"},"finish_reason":null}]}\n\n'
    with (
        canned_upstream(200, "text/event-stream", begun) as upstream,
        run_tollgate(tmp_path, upstream.base_url, "sk-unused") as gateway,
    ):
        team = gateway.add_team("cautious")
        url = f"{gateway.base_url}/chat/completions"
        with pytest.raises(requests.exceptions.ChunkedEncodingError):
            session.post(url, json={**REQUEST, "stream": True}, headers=team.headers, timeout=30)
        (event,) = gateway.events(team.name, 1)
        assert (event["outcome"], event["estimated"], event["output_tokens"]) == ("upstream_error", 1, 1)


def test_an_upstream_that_speaks_html_is_put_into_shape(tmp_path, session):
    with (
        canned_upstream(404, "text/html", b"<h1>Not here</h1>") as upstream,
        run_tollgate(tmp_path, upstream.base_url, "sk-unused") as gateway,
    ):
        team = gateway.add_team("cautious")
        answer = session.post(f"{gateway.base_url}/chat/completions", json=REQUEST, headers=team.headers, timeout=30)
        assert answer.status_code == 404
        assert answer.headers["Content-Type"].startswith("application/json")
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
