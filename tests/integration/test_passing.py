"""What is kept at OpenAI: closed unless a team was opened to it, then passed in both directions as it comes."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import socket
from collections.abc import Iterator
from contextlib import closing
from urllib.parse import urlsplit

import pytest
import requests
from aiohttp import web

from tests.support.tollgate_process import Team, Tollgate, eventually, run_tollgate
from tests.support.weighing_upstream import WeighingUpstream, weighing_upstream

KEY = "sk-upstream-9cTz40pL"
SETTINGS = """
[upstream]
first_backoff_ms = 1
max_backoff_ms = 10
"""


@pytest.fixture(scope="module")
def upstream() -> Iterator[WeighingUpstream]:
    with weighing_upstream() as running:
        yield running


@pytest.fixture(scope="module")
def gateway(upstream: WeighingUpstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tollgate]:
    place = tmp_path_factory.mktemp("gateway")
    with run_tollgate(place, upstream.base_url, KEY, settings=SETTINGS) as running:
        yield running


@pytest.fixture(autouse=True)
def forgetful(upstream: WeighingUpstream) -> None:
    upstream.seen.clear()
    upstream.arrived.clear()
    upstream.answers.clear()
    upstream.early.clear()


@pytest.fixture
def team(gateway: Tollgate, request: pytest.FixtureRequest) -> Team:
    return gateway.add_team(f"opened-{hashlib.sha256(request.node.name.encode()).hexdigest()[:8]}", allow_stateful=True)


@pytest.fixture
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.trust_env = False
        yield session


@pytest.fixture
def ask(gateway: Tollgate, session: requests.Session, team: Team):
    def ask(method: str, path: str, *, by: Team = team, headers: dict[str, str] | None = None, **more: object):
        sent = {**by.headers, **(headers or {})}
        return session.request(method, f"{gateway.base_url}/{path}", headers=sent, timeout=30, **more)

    return ask


def exchange(gateway: Tollgate, request: bytes) -> bytes:
    """Say this on a connection of its own, and return all that comes until it ends."""
    place = urlsplit(gateway.base_url)
    with closing(socket.create_connection((place.hostname, place.port), timeout=20)) as connection:
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(65_536), b""))


PATHS = [
    ("GET", "files?purpose=batch&limit=2", "files"),
    ("DELETE", "files/file-1", "files"),
    ("POST", "batches", "batches"),
    ("POST", "uploads/upload_1/parts", "uploads"),
    ("GET", "vector_stores/vs_1/files?after=a%20b&order=asc", "vector_stores"),
    ("POST", "fine_tuning/jobs", "fine_tuning"),
    ("GET", "chat/completions?model=gpt-4o", "stored_chat"),
    ("DELETE", "chat/completions/chatcmpl-1", "stored_chat"),
    ("GET", "responses/resp_1?include%5B%5D=a", "stored_responses"),
    ("POST", "conversations", "conversations"),
    ("POST", "assistants", "assistants"),
    ("POST", "threads/thread_1/runs", "threads"),
    ("GET", "containers/c/files/f/content", "containers"),
    ("POST", "evals/e/runs", "evals"),
    ("PATCH", "videos/v%3A1", "videos"),
]


@pytest.mark.parametrize(("method", "path", "endpoint"), PATHS)
def test_paths_queries_and_bodies_pass_as_they_came(ask, gateway, upstream, team, method, path, endpoint):
    body = b'{ "a" :\t1 }' if method in {"POST", "PATCH"} else b""
    got = ask(method, path, data=body or None, headers={"x-stainless-lang": "python", "Cookie": "a=b"})
    assert (got.status_code, got.json()) == (200, {"bytes": len(body)})
    (seen,) = upstream.seen
    assert (seen.method, seen.path_qs, seen.head) == (method, f"/v1/{path}", body)
    assert seen.headers["authorization"] == f"Bearer {KEY}"
    assert seen.headers["x-stainless-lang"] == "python"
    assert "cookie" not in seen.headers
    (event,) = gateway.events(team.name, 1)
    assert (event["endpoint"], event["model"], event["outcome"]) == (endpoint, "", "ok")
    assert (event["input_tokens"], event["output_tokens"], event["cost_pico_usd"]) == (0, 0, 0)
    assert (event["price_id"], event["estimated"]) == (None, 0)
    line = gateway.logged(got.headers["x-request-id"])
    assert (line["endpoint"], line["status"]) == (endpoint, 200)
    assert got.headers["Cache-Control"] == "private, no-store"


def test_closed_unless_the_team_was_opened(ask, gateway, upstream):
    closed = gateway.add_team("closed")
    for method, path, _ in PATHS:
        got = ask(method, path, by=closed)
        assert (got.status_code, got.json()["error"]["code"]) == (403, "endpoint_not_allowed")
    assert ask("GET", "files", by=Team("nobody", "sk-tg_000000000000_x", "")).status_code == 401
    assert upstream.seen == []


@pytest.mark.parametrize("path", ["organization", "organization/admin_api_keys", "organization/projects/p"])
def test_the_organization_is_never_open(ask, upstream, path):
    got = ask("GET", path)
    assert (got.status_code, got.json()["error"]["code"]) == (403, "endpoint_not_allowed")
    assert upstream.seen == []


@pytest.mark.parametrize(
    "path",
    ["/files/../organization/users", "/files/%2e%2e/organization", "/files/..%2forganization", "//files", "/files//x",
     "/files/", "/files/a%5cb", "/files/%252e%252e", "/files/./x", "/realtime/client_secrets", "/projects/p/roles",
     "/chatkit/sessions"],
)  # fmt: skip
def test_a_path_that_could_be_read_as_another_is_none(gateway, upstream, team, path):
    head = f"GET /v1{path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {team.key}\r\n\r\n"
    assert exchange(gateway, head.encode()).startswith(b"HTTP/1.1 404 ")
    assert upstream.seen == []


@pytest.mark.parametrize("method", ["TRACE", "OPTIONS", "CONNECT", "BREW"])
def test_methods_that_are_not_passed(gateway, upstream, team, method):
    """A TRACE would be answered with our own key."""
    head = f"{method} /v1/files HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {team.key}\r\n\r\n"
    answer = exchange(gateway, head.encode())
    assert answer[9:12] in {b"404", b"405", b"400"}
    assert KEY.encode() not in answer
    assert upstream.seen == []


def test_answers_pass_compressed_as_they_are(ask, upstream):
    packed = gzip.compress(b'{"id": "file-1"}' * 100)

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        headers = {"Content-Encoding": "gzip", "Content-Type": "application/json", "ETag": '"e"', "Set-Cookie": "a=b",
                   "openai-organization": "org-1", "x-ratelimit-limit-requests": "1", "openai-version": "2020-10-01",
                   "Content-Disposition": 'attachment; filename="a"'}  # fmt: skip
        return web.Response(body=packed, headers=headers)

    upstream.answers["/v1/files/file-1/content"] = answer
    got = ask("GET", "files/file-1/content", headers={"Accept-Encoding": "gzip, zstd"}, stream=True)
    assert got.raw.read(decode_content=False) == packed
    assert upstream.seen[0].headers["accept-encoding"] == "gzip, zstd"
    assert got.headers["Content-Encoding"] == "gzip"
    assert got.headers["Content-Length"] == str(len(packed))
    assert (got.headers["ETag"], got.headers["Content-Disposition"]) == ('"e"', 'attachment; filename="a"')
    assert got.headers["openai-version"] == "2020-10-01"
    assert not {"set-cookie", "openai-organization"} & {name.lower() for name in got.headers}
    assert got.headers.get("x-ratelimit-limit-requests") != "1"


def test_who_takes_no_encoding_is_asked_for_none(ask, upstream):
    ask("GET", "files", headers={"Accept-Encoding": None})
    assert upstream.seen[0].headers["accept-encoding"] == "identity"


def test_requests_pass_compressed_as_they_are(ask, upstream):
    packed = gzip.compress(b'{"a": 1}')
    ask("POST", "batches", data=packed, headers={"Content-Encoding": "gzip", "Content-Type": "application/json"})
    assert upstream.seen[0].head == packed
    assert upstream.seen[0].headers["content-encoding"] == "gzip"


def test_a_head_has_no_body_and_the_length_of_one(ask, upstream):
    async def answer(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response(body=b"x" * 50)

    upstream.answers["/v1/files/file-1/content"] = answer
    got = ask("HEAD", "files/file-1/content")
    assert (got.status_code, got.content, got.headers["Content-Length"]) == (200, b"", "50")
    assert ask("GET", "files/file-1/content").content == b"x" * 50


@pytest.mark.parametrize("status", [204, 206, 304])
def test_statuses_without_a_body_or_with_a_part_of_it(ask, upstream, status):
    async def answer(_: web.BaseRequest) -> web.StreamResponse:
        if status == 206:
            return web.Response(status=206, body=b"bc", headers={"Content-Range": "bytes 1-2/4"})
        return web.Response(status=status)

    upstream.answers["/v1/files/file-1/content"] = answer
    got = ask("GET", "files/file-1/content", headers={"Range": "bytes=1-2", "If-None-Match": '"e"'})
    assert (got.status_code, got.content) == (status, b"bc" if status == 206 else b"")
    assert upstream.seen[0].headers["range"] == "bytes=1-2"
    assert ask("GET", "files").status_code == 200  # the connection is good


def test_events_are_passed_at_once(ask, upstream):
    going_on = asyncio.Event()
    loops = []

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        loops.append(asyncio.get_running_loop())
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"event: a\ndata: {}\n\n")
        await going_on.wait()
        await response.write(b"data: [DONE]\n\n")
        return response

    upstream.answers["/v1/responses/resp_1"] = answer
    got = ask("GET", "responses/resp_1?stream=true", stream=True)
    pieces, first = got.iter_content(None), b""
    while not first.endswith(b"\n\n"):
        first += next(pieces)
    assert first == b"event: a\ndata: {}\n\n"
    loops[0].call_soon_threadsafe(going_on.set)
    assert b"".join(pieces) == b"data: [DONE]\n\n"
    assert got.headers["Content-Type"] == "text/event-stream"
    assert got.headers["X-Accel-Buffering"] == "no"


def test_errors_pass_as_they_are(ask, gateway, upstream, team):
    async def answer(_: web.BaseRequest) -> web.StreamResponse:
        body = gzip.compress(b'{"error": {"message": "No such File object", "code": null}}')
        return web.Response(status=404, body=body, headers={"Content-Encoding": "gzip", "x-should-retry": "false"},
                            content_type="application/json")  # fmt: skip

    upstream.answers["/v1/files/file-9"] = answer
    got = ask("GET", "files/file-9")
    assert (got.status_code, got.json()["error"]["message"]) == (404, "No such File object")
    assert got.headers["x-should-retry"] == "false"
    (event,) = gateway.events(team.name, 1)
    assert (event["status"], event["outcome"]) == (404, "upstream_error")


@pytest.mark.parametrize(("status", "expected"), [(401, 502), (302, 502), (307, 502)])
def test_our_key_and_redirects_are_not_the_clients_business(ask, upstream, status, expected):
    async def answer(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=status, headers={"Location": "http://127.0.0.1:1/steal"}, body=b"sk-...")

    upstream.answers["/v1/files"] = answer
    got = ask("GET", "files")
    assert got.status_code == expected
    assert "Location" not in got.headers
    assert "sk-" not in got.text


def test_what_has_been_sent_is_not_sent_again(ask, gateway, upstream, team):
    async def answer(_: web.BaseRequest) -> web.StreamResponse:
        return web.json_response({"error": {"message": "busy"}}, status=503)

    upstream.answers["/v1/files"] = answer
    assert ask("POST", "files", data=b"x" * 100).status_code == 503
    assert len(upstream.seen) == 1
    upstream.seen.clear()
    # Nothing was taken of a request without a body: it may be asked again.
    assert ask("GET", "files").status_code == 503
    assert len(upstream.seen) == 3
    assert [event["attempts"] for event in gateway.events(team.name, 2)] == [1, 3]


def test_an_upload_that_its_client_breaks_off_never_looks_whole(gateway, upstream, team):
    head = (
        f"POST /v1/files HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {team.key}\r\n"
        "Content-Length: 1000000\r\nContent-Type: multipart/form-data; boundary=x\r\n\r\n"
    )
    place = urlsplit(gateway.base_url)
    with closing(socket.create_connection((place.hostname, place.port), timeout=20)) as connection:
        connection.sendall(head.encode() + b"x" * 300_000)
        eventually(lambda: upstream.arrived, what="the head of the upload")
    (seen,) = eventually(lambda: upstream.seen, what="the upload")
    assert not seen.whole
    (event,) = gateway.events(team.name, 1)
    assert (event["outcome"], event["status"], event["estimated"]) == ("client_gone", 499, 0)


def test_a_body_of_broken_chunks_never_looks_whole(gateway, upstream, team):
    head = (
        f"POST /v1/files HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {team.key}\r\n"
        "Transfer-Encoding: chunked\r\n\r\n"
    )
    place = urlsplit(gateway.base_url)
    with closing(socket.create_connection((place.hostname, place.port), timeout=20)) as connection:
        connection.sendall(head.encode() + b"4\r\nabcd\r\n")
        eventually(lambda: upstream.arrived, what="the head of the upload")
        connection.sendall(b"zz\r\n")
        assert b"".join(iter(lambda: connection.recv(65_536), b""))[9:12] == b"400"
    (seen,) = eventually(lambda: upstream.seen, what="the upload")
    assert not seen.whole
    (event,) = gateway.events(team.name, 1)
    assert (event["outcome"], event["status"]) == ("rejected", 400)


def test_an_answer_that_breaks_off_never_looks_whole(ask, gateway, upstream, team):
    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"x" * 1_000)
        assert request.transport is not None
        request.transport.abort()
        return response

    upstream.answers["/v1/files/file-1/content"] = answer
    with pytest.raises(requests.RequestException):
        ask("GET", "files/file-1/content")
    (event,) = gateway.events(team.name, 1)
    assert (event["outcome"], event["input_tokens"], event["estimated"]) == ("upstream_error", 0, 0)


def test_each_is_one_request_of_the_limit(gateway, ask, upstream):
    # One comes back in a minute: not while this runs.
    few = gateway.add_team("few", "free", requests_per_minute=1, request_capacity=20, allow_stateful=True)
    for left in range(19, -1, -1):
        got = ask("GET", "files", by=few)
        assert (got.status_code, got.headers["x-ratelimit-remaining-requests"]) == (200, str(left))
        assert got.headers["x-ratelimit-remaining-tokens"] == "40000"
    refused = ask("GET", "files", by=few)
    assert (refused.status_code, refused.json()["error"]["type"]) == (429, "requests")
    assert "what is kept at OpenAI" in refused.json()["error"]["message"]


def test_a_budget_lets_nothing_pass_whose_cost_nobody_knows(gateway, ask, upstream, team):
    gateway.cli("teams", "set", team.name, "--budget", "5usd/month")
    eventually(lambda: ask("POST", "batches", json={}).status_code == 403, what="the budget")
    upstream.seen.clear()
    got = ask("POST", "batches", json={})
    assert (got.status_code, got.json()["error"]["code"]) == (403, "model_not_priced")
    assert upstream.seen == []
    assert ask("GET", "batches").status_code == 200
    assert ask("POST", "files", data=b"x").status_code == 200
    assert ask("POST", "batches/batch_1/cancel").status_code == 200


def test_labels_of_metrics_are_the_families(gateway, ask, upstream):
    for number in range(5):
        ask("GET", f"files/file-{number}")
    text = gateway.metrics()
    assert 'endpoint="files"' in text
    assert "file-" not in json.dumps([line for line in text.splitlines() if "tollgate_requests_total" in line])


def _unpriced(text: str) -> float:
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith("tollgate_unpriced_requests"))


def test_what_upstream_may_bill_counts_as_unpriced_and_what_it_does_not_does_not(gateway, ask, upstream):
    before = _unpriced(gateway.metrics())
    ask("GET", "batches")
    ask("POST", "files", data=b"x")
    assert _unpriced(gateway.metrics()) == before
    ask("POST", "batches", json={})
    assert eventually(lambda: _unpriced(gateway.metrics()) > before, what="its count")
    assert _unpriced(gateway.metrics()) == before + 1


def test_an_upload_is_asked_for_only_once_it_is_wanted(gateway, upstream, team):
    closed = gateway.add_team("closed-to-uploads")
    place = urlsplit(gateway.base_url)
    for by, first in ((team, b"HTTP/1.1 100 Continue\r\n\r\n"), (closed, b"HTTP/1.1 403 ")):
        head = (
            f"POST /v1/files HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {by.key}\r\n"
            "Expect: 100-continue\r\nContent-Length: 4\r\n\r\n"
        )
        with closing(socket.create_connection((place.hostname, place.port), timeout=20)) as connection:
            connection.sendall(head.encode())
            assert connection.recv(len(first), socket.MSG_WAITALL) == first
            if by is team:
                connection.sendall(b"abcd")
                assert b"200 OK" in b"".join(iter(lambda: connection.recv(65_536), b""))
    assert [seen.head for seen in upstream.seen] == [b"abcd"]


def test_an_answer_that_comes_early_is_passed_on(gateway, upstream, ask):
    """Upstream refuses an upload before it has it all."""

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        return web.json_response({"error": {"message": "Too large."}}, status=413)

    upstream.early["/v1/files"] = answer
    got = ask("POST", "files", data=b"x" * 20_000)
    assert (got.status_code, got.json()["error"]["message"]) == (413, "Too large.")
