"""One id for each request: the same in its answer, in the log and in the ledger, and none that a client chose."""

from __future__ import annotations

import re
import socket
from http.client import HTTPResponse

import pytest

MODEL = "gpt-4o-mini"
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "echo:x"}]}
OURS = re.compile(r"req_[0-9a-f]{32}")


def id_of(answer):
    (found,) = answer.raw.headers.getlist("x-request-id")
    assert OURS.fullmatch(found)
    return found


def raw(gateway, data):
    """The status and the ids of what a socket is answered that sends just that."""
    host, _, port = gateway.root.removeprefix("http://").rpartition(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(data)
        with HTTPResponse(connection) as answer:
            answer.begin()
            return answer.status, answer.headers.get_all("x-request-id")


def test_answer_log_and_ledger_agree(gateway, call, team, upstream):
    hit = {**CHAT, "temperature": 0, "messages": [{"role": "user", "content": "echo:the same id everywhere"}]}
    answers = [call(CHAT), call({**CHAT, "stream": True}), call(hit), call(hit), call({**hit, "stream": True}),
               call(CHAT, {"x-simulate-status": "400"}), call(CHAT, {"x-simulate-reset": "1"}),
               call({**CHAT, "stream": True}, {"x-simulate-cut-after": "1"}, stream=True)]  # fmt: skip
    ids = [id_of(answer) for answer in answers]
    assert len(set(ids)) == len(ids)
    answers[-1].close()
    assert {event["request_id"] for event in gateway.events(team.name, len(ids))} == set(ids)
    for answer, request_id in zip(answers, ids, strict=True):
        assert gateway.logged(request_id)["status"] == answer.status_code


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status"),
    [
        ("GET", "/v1/models", None, {}, 200),
        ("GET", "/v1/tollgate/me", None, {}, 200),
        ("GET", "/v1/nowhere", None, {}, 404),
        ("GET", "/elsewhere", None, {}, 404),
        ("GET", "/v1/embeddings", None, {}, 405),
        ("HEAD", "/v1/models", None, {}, 405),
        ("OPTIONS", "/v1/chat/completions", None, {}, 405),
        ("GET", "/v1/models", None, {"Authorization": "Bearer sk-tg_nobody"}, 401),
        ("GET", "/v1/files", None, {}, 403),
        ("POST", "/v1/chat/completions", b"{", {}, 400),
        ("POST", "/v1/chat/completions", b'{"model": "no-such-model", "messages": []}', {}, 400),
        ("POST", "/v1/chat/completions", b"x" * 100, {"Content-Encoding": "zebra"}, 400),
    ],
)
def test_an_answer_that_went_nowhere_has_one_too(gateway, session, team, method, path, body, headers, status):
    answer = session.request(
        method, f"{gateway.root}{path}", data=body, headers={**team.headers, **headers}, timeout=30
    )
    assert answer.status_code == status
    assert gateway.logged(id_of(answer))["status"] == status


def test_a_body_that_is_too_large_is_refused_under_an_id(gateway, team):
    head = [
        "POST /v1/chat/completions HTTP/1.1",
        "Host: gateway",
        f"Authorization: Bearer {team.key}",
        f"Content-Length: {2**40}",
    ]
    status, (request_id,) = raw(gateway, "\r\n".join(head).encode() + b"\r\n\r\n")
    assert (status, gateway.logged(request_id)["status"]) == (413, 413)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET /v1/models HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"POST /v1/x HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"GET /v1/models HTTP/1.1\r\nHost: a\r\nx: " + b"y" * 70_000 + b"\r\n\r\n", 431),
    ],
    ids=["no HTTP", "two lengths", "length and chunks", "a head too large"],
)
def test_what_is_no_request_is_answered_under_an_id(gateway, data, status):
    answers = [raw(gateway, data) for _ in range(2)]
    assert [answer[0] for answer in answers] == [status, status]
    (first,), (second,) = (answer[1] for answer in answers)
    assert OURS.fullmatch(first)
    assert OURS.fullmatch(second)
    assert first != second


def test_a_clients_own_id_is_noted_and_not_taken(gateway, call):
    answer = call(CHAT, {"x-request-id": "job-7.step:3"})
    assert gateway.logged(id_of(answer))["client_request_id"] == "job-7.step:3"
    again = call(CHAT, {"x-request-id": id_of(answer)})
    assert id_of(again) != id_of(answer)
    assert gateway.logged(id_of(again))["client_request_id"] == id_of(answer)
