"""Requests with a few bytes changed: upstream sees one request in canonical form or none, and nobody else notices."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.support.raw_corpus import CHUNKED, LENGTH, ONE_CHUNK, ask, post
from tests.support.recording_upstream import Recorder
from tests.support.tollgate_process import Tollgate, run_tollgate

QUIET_SECONDS = 0.1
"""Without a byte from the server for so long it is taken to wait for more, and told that there is none."""
PATIENCE_SECONDS = 60.0


@pytest.fixture(scope="module")
def upstream() -> Iterator[Recorder]:
    """A recorder on a loop of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    recorder = Recorder()
    asyncio.run_coroutine_threadsafe(recorder.__aenter__(), loop).result(10)
    try:
        yield recorder
    finally:
        asyncio.run_coroutine_threadsafe(recorder.__aexit__(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.fixture(scope="module")
def tollgate(upstream: Recorder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tollgate]:
    place = tmp_path_factory.mktemp("mutations")
    with run_tollgate(place, upstream.url, "sk-upstream", settings="[cache]\nenabled = false\n") as running:
        yield running


@pytest.fixture(scope="module")
def key(tollgate: Tollgate) -> str:
    return tollgate.add_team("mutants").key


def spoken(tollgate: Tollgate, data: bytes, answers: int = 0) -> bytes:
    """Everything that is answered to some bytes, until the server closes; it is waited for so many answers."""
    port = int(tollgate.root.rpartition(":")[2])
    found = b""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_SECONDS) as client, suppress(ConnectionError):
        client.sendall(data)
        while True:
            client.settimeout(PATIENCE_SECONDS if found.count(b"HTTP/1.1 ") < answers else QUIET_SECONDS)
            try:
                piece = client.recv(65_536)
            except TimeoutError:
                break
            if not piece:
                return found
            found += piece
        # It may wait for what will not come, or stand still: after its end nothing of this goes upstream any more.
        client.shutdown(socket.SHUT_WR)
        client.settimeout(PATIENCE_SECONDS)
        while piece := client.recv(65_536):
            found += piece
    return found


NOISE = st.binary(min_size=1, max_size=3) | st.sampled_from(
    [
        *(b"\r", b"\n", b"\r\n", b"\r\n ", b"\r\n\r\n", b"\x00", b" ", b"\t", b":", b"\x0b", b"\xff", b"0", b",", b";"),
        *(b"\x7f", b"-", b"chunked", b"Transfer-Encoding: chunked\r\n", b"Content-Length: 0\r\n", b"Host: b\r\n"),
    ]
)
PLACE = st.integers(0, 10_000)
CHANGE = st.tuples(st.sampled_from(["insert", "delete", "replace", "double", "swap"]), PLACE, NOISE)


def changed(request: bytes, changes: list[tuple[str, int, bytes]], frame: int) -> bytes:
    """A request with its head and what frames its body changed, in places anywhere in it."""
    for kind, place, noise in changes:
        at = place % frame
        match kind:
            case "insert":
                request = request[:at] + noise + request[at:]
            case "delete":
                request = request[:at] + request[at + len(noise) :]
            case "replace":
                request = request[:at] + noise + request[at + len(noise) :]
            case "double":
                start = request.rfind(b"\r\n", 0, at) + 2
                line = request[start : request.find(b"\r\n", at) + 2]
                request = request[:start] + line + request[start:]
            case _:
                request = request[:at] + request[at : at + 2][::-1] + request[at + 2 :]
    return request


def canonical(head: bytes) -> None:
    lines = head.split(b"\r\n")
    assert re.fullmatch(rb"(GET|POST|DELETE|PUT|PATCH) /v1/[!-~]* HTTP/1\.1", lines[0]), head
    assert not re.search(rb"[\x00-\x08\x0a-\x1f\x7f]", b"".join(lines)), head
    names = [line.partition(b": ")[0].lower() for line in lines[1:]]
    assert all(re.fullmatch(rb"[!#$%&'*+.^_`|~0-9a-z-]+", name) for name in names), head
    assert names.count(b"host") == names.count(b"content-length") == names.count(b"authorization") == 1, head
    assert not {b"transfer-encoding", b"te", b"upgrade", b"connection", b"trailer"} & set(names), head


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.booleans(), st.booleans(), st.lists(CHANGE, min_size=1, max_size=3))
@example(chunks=True, followed=True, changes=[])
@example(chunks=False, followed=True, changes=[])
def test_one_or_none(
    tollgate: Tollgate,
    upstream: Recorder,
    key: str,
    chunks: bool,
    followed: bool,
    changes: list[tuple[str, int, bytes]],
) -> None:
    request = post(key, CHUNKED, b"x-a: b", body=ONE_CHUNK) if chunks else post(key, LENGTH, b"x-a: b")
    frame = request.index(b"\r\n\r\n") + 4 + (6 if chunks else 0)
    data = changed(request, changes, frame)
    # Behind it comes one that is refused for its key: where the first one ends is no matter to upstream.
    sent = data + (post("sk-tg_wrong", LENGTH) if followed else b"")
    answers = spoken(tollgate, sent, answers=0 if changes else 1 + followed)
    innocent = spoken(
        tollgate,
        post(key, b"Content-Length: %d" % len(ask("innocent")), b"Connection: close", body=ask("innocent")),
        answers=1,
    )
    assert innocent.startswith(b"HTTP/1.1 200 ")
    assert json.loads(innocent.partition(b"\r\n\r\n")[2])["choices"][0]["message"]["content"] == "innocent"
    heads, bodies = list(upstream.heads), list(upstream.bodies)
    upstream.forget()
    assert upstream.strays == b""
    assert bodies.pop() == ask("innocent")
    assert len(bodies) <= 1, sent
    for head in heads:
        canonical(head)
        assert b"\r\nAuthorization: Bearer sk-upstream\r\n" in head
    for line in re.findall(rb"HTTP/1\.[01] (\d+)", answers):
        assert line[:1] in b"1245", answers
    assert answers.count(b"HTTP/1.1 200 ") <= len(bodies), sent
    if not changes:
        assert len(bodies) == 1
