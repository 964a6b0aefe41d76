"""Bodies that nobody could hold: through a gateway in constant memory, both ways, and not a byte changed."""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests
from aiohttp import web

from tests.support.tollgate_process import Team, Tollgate, eventually, run_tollgate
from tests.support.weighing_upstream import PIECE, WeighingUpstream, digest_of, weighing_upstream

MEGABYTE = 1024 * 1024
EXTRA_BYTES = 64 * MEGABYTE
"""What a gateway may take beyond what it had, whatever passes."""
KEY = "sk-upstream-3nXk81bQ"


@pytest.fixture(scope="module")
def upstream() -> Iterator[WeighingUpstream]:
    with weighing_upstream() as running:
        yield running


@pytest.fixture(scope="module")
def gateway(upstream: WeighingUpstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tollgate]:
    with run_tollgate(tmp_path_factory.mktemp("gateway"), upstream.base_url, KEY) as running:
        yield running


@pytest.fixture(scope="module")
def team(gateway: Tollgate) -> Team:
    return gateway.add_team("hoarders", allow_stateful=True)


@pytest.fixture
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.trust_env = False
        yield session


def pieces(length: int) -> Iterator[bytes]:
    for _ in range(length // len(PIECE)):
        yield PIECE
    yield PIECE[: length % len(PIECE)]


class Sized:
    """A body of a known length that is never whole."""

    def __init__(self, length: int, before: bytes = b"", behind: bytes = b"") -> None:
        self._pieces = iter((before, *pieces(length), behind))
        self.length = length + len(before) + len(behind)

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[bytes]:
        return self._pieces


def grown_bytes(gateway: Tollgate, work: Callable[[], None]) -> int:
    """How much more memory the gateway had at its peak during `work` than before it."""
    place = Path(f"/proc/{gateway.pid}")
    (place / "clear_refs").write_text("5")  # the peak begins anew
    before = resident_bytes(place, "VmRSS")
    work()
    return resident_bytes(place, "VmHWM") - before


def nameless_files(gateway: Tollgate) -> list[str]:
    links = []
    for link in Path(f"/proc/{gateway.pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            links.append(str(link.readlink()))
    return [link for link in links if link.startswith(str(gateway.data_dir)) and "(deleted)" in link]


def resident_bytes(place: Path, what: str) -> int:
    for line in (place / "status").read_text().splitlines():
        if line.startswith(what):
            return int(line.split()[1]) * 1_024
    raise LookupError(what)


@pytest.mark.parametrize("chunked", [False, True], ids=["of a known length", "in chunks"])
def test_an_upload_of_500_mb_takes_64_mb_at_most(gateway, upstream, team, session, chunked):
    length = 500 * 1_000 * 1_000

    def upload() -> None:
        body = pieces(length) if chunked else Sized(length)
        headers = {**team.headers, "Content-Type": "multipart/form-data; boundary=x"}
        answer = session.post(f"{gateway.base_url}/files?purpose=batch", data=body, headers=headers, timeout=120)
        assert (answer.status_code, answer.json()) == (200, {"bytes": length})

    assert grown_bytes(gateway, upload) <= EXTRA_BYTES
    seen = upstream.seen[-1]
    assert (seen.method, seen.path_qs, seen.length) == ("POST", "/v1/files?purpose=batch", length)
    assert seen.sha256 == digest_of(length)
    assert seen.headers.get("content-length") == (None if chunked else str(length))
    assert seen.headers["authorization"] == f"Bearer {KEY}"


def test_an_answer_of_300_mb_takes_64_mb_at_most(gateway, upstream, team, session):
    length = 300 * 1_000 * 1_000

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(length), "Content-Type": "application/jsonl"})
        await response.prepare(request)
        for piece in pieces(length):
            await response.write(piece)
        return response

    upstream.answers["/v1/files/file-1/content"] = answer
    digest = hashlib.sha256()

    def download() -> None:
        url = f"{gateway.base_url}/files/file-1/content"
        with session.get(url, headers=team.headers, stream=True, timeout=120) as got:
            assert got.headers["Content-Length"] == str(length)
            for piece in got.iter_content(MEGABYTE):
                digest.update(piece)

    assert grown_bytes(gateway, download) <= EXTRA_BYTES
    assert digest.hexdigest() == digest_of(length)


def test_a_form_of_100_mb_takes_64_mb_at_most_and_is_sent_again(gateway, upstream, team, session):
    """It is on disk: that is what lets it be sent twice, and the model be found behind it."""
    length = 100 * 1_000 * 1_000
    before = b'--b7\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
    behind = b'\r\n--b7\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper-1\r\n--b7--\r\n'
    usage = {"type": "duration", "seconds": 9}
    tries = iter((500, 200))

    async def answer(_: web.BaseRequest) -> web.StreamResponse:
        assert nameless_files(gateway)
        return web.json_response({"text": "Hm.", "usage": usage}, status=next(tries))

    upstream.answers["/v1/audio/transcriptions"] = answer
    assert not nameless_files(gateway)

    def upload() -> None:
        headers = {**team.headers, "Content-Type": "multipart/form-data; boundary=b7"}
        body = Sized(length, before, behind)
        got = session.post(f"{gateway.base_url}/audio/transcriptions", data=body, headers=headers, timeout=120)
        assert (got.status_code, got.json()) == (200, {"text": "Hm.", "usage": usage})
        assert got.headers["x-tollgate-attempts"] == "2"

    assert grown_bytes(gateway, upload) <= EXTRA_BYTES
    digest = hashlib.sha256(before)
    for piece in pieces(length):
        digest.update(piece)
    digest.update(behind)
    assert [seen.sha256 for seen in upstream.seen[-2:]] == [digest.hexdigest()] * 2
    assert upstream.seen[-1].headers["content-length"] == str(length + len(before) + len(behind))
    # What was on disk is not there any more: a file without a name is there for as long as somebody has it open.
    eventually(lambda: not nameless_files(gateway), what="the end of the file")


def test_a_stream_of_images_takes_64_mb_at_most(gateway, upstream, session):
    """Events of 20 MB each, the last with the usage."""
    team = gateway.add_team("painters")
    image = b"A" * 20_000_000
    usage = b'"usage":{"input_tokens":5,"output_tokens":7,"input_tokens_details":{"text_tokens":5,"image_tokens":0}}'

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for kind, more in ((b"partial_image", b'"partial_image_index":0'), (b"partial_image", b'"n":1'),
                           (b"completed", usage)):  # fmt: skip
            name = b"image_generation." + kind
            await response.write(b'event: %b\ndata: {"type":"%b","b64_json":"' % (name, name))
            await response.write(image)
            await response.write(b'",%b}\n\n' % more)
        return response

    upstream.answers["/v1/images/generations"] = answer
    received = 0

    def ask() -> None:
        nonlocal received
        body = {"model": "gpt-image-1", "prompt": "A fox.", "stream": True}
        url = f"{gateway.base_url}/images/generations"
        with session.post(url, json=body, headers=team.headers, stream=True, timeout=120) as got:
            for piece in got.iter_content(MEGABYTE):
                received += len(piece)

    assert grown_bytes(gateway, ask) <= EXTRA_BYTES
    assert received > 3 * len(image)
    event = gateway.events(team.name, 1)[-1]
    assert (event["endpoint"], event["input_tokens"], event["output_tokens"]) == ("image_generation", 5, 7)


def test_over_the_bound_nothing_is_passed_on_as_whole(upstream, tmp_path, session):
    with run_tollgate(tmp_path, upstream.base_url, KEY, settings="[server]\nmax_upload_bytes = 1_000_000\n") as small:
        team = small.add_team("hoarders", allow_stateful=True)
        before = len(upstream.seen)
        told = session.post(f"{small.base_url}/files", data=b"x" * 1_000_001, headers=team.headers, timeout=30)
        assert (told.status_code, told.json()["error"]["code"]) == (413, "request_too_large")
        assert len(upstream.seen) == before
        in_chunks = session.post(f"{small.base_url}/files", data=pieces(3_000_000), headers=team.headers, timeout=30)
        assert (in_chunks.status_code, in_chunks.json()["error"]["code"]) == (413, "request_too_large")
        (broken,) = eventually(lambda: upstream.seen[before:], what="the upload that was broken off")
        assert not broken.whole
        exact = session.post(f"{small.base_url}/files", data=pieces(1_000_000), headers=team.headers, timeout=30)
        assert exact.json() == {"bytes": 1_000_000}
        events = small.events(team.name, 2)
        assert [(event["outcome"], event["status"]) for event in events] == [("rejected", 413), ("ok", 200)]
        assert json.dumps(small.log_lines()).count('"client_gone"') == 0


def test_there_is_room_for_one_form_after_another(upstream, tmp_path, session):
    """However they end; and no more than four of the largest at once."""
    begin = b'--b7\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
    behind = b'\r\n--b7\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper-1\r\n--b7--\r\n'
    forms = {
        200: begin + b"x" * 90_000 + behind,
        400: begin + b"x" * 90_000,
        404: begin + b"x" * 90_000 + behind.replace(b"whisper-1", b"whisper-9"),
        413: begin + b"x" * 200_000 + behind,
    }
    upstream.answers.pop("/v1/audio/transcriptions", None)
    with run_tollgate(tmp_path, upstream.base_url, KEY, settings="[server]\nmax_upload_bytes = 100_000\n") as small:
        team = small.add_team("writers")
        headers = {**team.headers, "Content-Type": "multipart/form-data; boundary=b7"}
        url = f"{small.base_url}/audio/transcriptions"
        for _ in range(6):
            for status, form in forms.items():
                # In chunks: nobody knows beforehand how much is to come.
                got = session.post(url, data=iter([form[:50_000], form[50_000:]]), headers=headers, timeout=30)
                assert got.status_code == status
        with ExitStack() as begun:

            def is_full() -> bool:
                # One of those before may have come while this was in its place.
                begun.enter_context(closing(session_of(small, team, begin + b"x" * 90_000)))
                got = session.post(url, data=forms[200], headers=headers, timeout=30)
                return got.status_code == 503 and "uploaded" in got.text

            eventually(is_full, what="an end of the room")
        eventually(lambda: session.post(url, data=forms[200], headers=headers, timeout=30).status_code == 200)


def session_of(gateway: Tollgate, team: Team, begin: bytes) -> socket.socket:
    """A connection on which so much of a form was sent, and nothing else will be."""
    place = urlsplit(gateway.base_url)
    connection = socket.create_connection((place.hostname, place.port), timeout=20)
    head = (
        f"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {team.key}\r\n"
        "Content-Type: multipart/form-data; boundary=b7\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    connection.sendall(head.encode() + b"%x\r\n%b\r\n" % (len(begin), begin))
    return connection
