"""Images and audio: forms with the model behind the file, usage in the answer's last bytes, and no wrong figure."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator

import pytest
import requests
from aiohttp import web
from openai import OpenAI

from proxy.adapters.envelope import zstd
from proxy.core.multipart import FormReader
from tests.support.tollgate_process import Team, Tollgate, eventually, run_tollgate
from tests.support.weighing_upstream import Seen, WeighingUpstream, weighing_upstream

KEY = "sk-upstream-5bWn21uF"
PRICES = {
    "unit": "usd_per_million_tokens",
    "models": {
        "gpt-image-1": {"mode": "image", "prices": {"default": {"input": 5, "output": 40}}},
        "gpt-4o-transcribe": {"mode": "audio", "prices": {"default": {"input": "2.5", "audio_input": 6, "output": 10}}},
        "gpt-4o-mini-tts": {"mode": "audio", "prices": {"default": {"input": "0.6", "output": 1, "audio_output": 12}}},
    },
}
SETTINGS = """
[prices]
file = "prices.json"
[upstream]
first_backoff_ms = 1
max_backoff_ms = 10
[models]
aliases = { painter = "gpt-image-1", scribe = "gpt-4o-transcribe" }
[streams]
keep_alive_seconds = 0.05
"""
MICRO = 1_000_000
"""Pico-dollars in a micro-dollar, which is a dollar for a million tokens."""
IMAGE_USAGE = {
    "total_tokens": 57, "input_tokens": 50, "output_tokens": 7,
    "input_tokens_details": {"text_tokens": 50, "image_tokens": 0},
}  # fmt: skip
AUDIO = bytes(range(256)) * 20


@pytest.fixture(scope="module")
def upstream() -> Iterator[WeighingUpstream]:
    with weighing_upstream() as running:
        yield running


@pytest.fixture(scope="module")
def gateway(upstream: WeighingUpstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tollgate]:
    place = tmp_path_factory.mktemp("gateway")
    (place / "prices.json").write_text(json.dumps(PRICES))
    with run_tollgate(place, upstream.base_url, KEY, settings=SETTINGS) as running:
        yield running


@pytest.fixture(autouse=True)
def forgetful(upstream: WeighingUpstream) -> None:
    upstream.seen.clear()
    upstream.answers.clear()


@pytest.fixture
def team(gateway: Tollgate, request: pytest.FixtureRequest) -> Team:
    return gateway.add_team(f"team-{hashlib.sha256(request.node.name.encode()).hexdigest()[:8]}")


@pytest.fixture
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.trust_env = False
        yield session


@pytest.fixture
def ask(gateway: Tollgate, session: requests.Session, team: Team):
    def ask(path: str, *, by: Team = team, headers: dict[str, str] | None = None, **more: object) -> requests.Response:
        sent = {**by.headers, **(headers or {})}
        return session.post(f"{gateway.base_url}/{path}", headers=sent, timeout=30, **more)

    return ask


def answers(upstream: WeighingUpstream, path: str, body: object, content_type: str = "application/json") -> bytes:
    """Have upstream answer this; return the bytes of it."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()

    async def answer(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response(body=raw, headers={"Content-Type": content_type})

    upstream.answers[f"/v1/{path}"] = answer
    return raw


def fields_of(seen: Seen) -> dict[str, tuple[str, ...]]:
    reader = FormReader(seen.headers["content-type"])
    reader.feed(seen.head)
    return dict(reader.finish().fields)


def only_event(gateway: Tollgate, team: Team) -> dict[str, object]:
    (event,) = gateway.events(team.name, 1)
    return event


def unpriced(gateway: Tollgate) -> float:
    lines = gateway.metrics().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("tollgate_unpriced_requests_total"))


def test_images_are_paid_by_the_usage_behind_them(gateway, upstream, team, ask):
    told = answers(upstream, "images/generations", {"data": [{"b64_json": "A" * 900_000}], "usage": IMAGE_USAGE})
    body = b'{ "model":"gpt-image-1", "prompt": "A fox.", "n":2 }'
    got = ask("images/generations?x=1", data=body, headers={"Content-Type": "application/json"})
    assert (got.status_code, got.content) == (200, told)
    assert (upstream.seen[0].path_qs, upstream.seen[0].head) == ("/v1/images/generations?x=1", body)
    event = only_event(gateway, team)
    assert (event["endpoint"], event["model"], event["outcome"]) == ("image_generation", "gpt-image-1", "ok")
    assert (event["input_tokens"], event["output_tokens"], event["estimated"]) == (50, 7, 0)
    assert event["cost_pico_usd"] == (50 * 5 + 7 * 40) * MICRO
    assert got.headers["Content-Length"] == str(len(told))


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        (None, (0, 0)),
        (IMAGE_USAGE | {"input_tokens_details": {"text_tokens": 10, "image_tokens": 40}}, (50, 7)),
        (IMAGE_USAGE | {"output_tokens_details": {"text_tokens": 3, "image_tokens": 4}}, (50, 7)),
    ],
    ids=["none", "of images read", "of text made"],
)
def test_what_has_no_right_price_is_unpriced(gateway, upstream, team, ask, usage, tokens):
    before = unpriced(gateway)
    answers(upstream, "images/generations", {"data": [], **({"usage": usage} if usage else {})})
    ask("images/generations", json={"model": "gpt-image-1", "prompt": "A fox."})
    event = only_event(gateway, team)
    assert (event["input_tokens"], event["output_tokens"]) == tokens
    assert (event["cost_pico_usd"], event["price_id"], event["outcome"]) == (0, None, "ok")
    assert eventually(lambda: unpriced(gateway) > before, what="its count")
    assert unpriced(gateway) == before + 1


def test_a_model_without_a_price_passes_and_is_counted(gateway, upstream, team, ask):
    before = unpriced(gateway)
    answers(upstream, "images/generations", {"created": 1, "data": [{"url": "https://x/y.png"}]})
    got = ask("images/generations", json={"prompt": "A fox."})
    assert got.status_code == 200
    assert json.loads(upstream.seen[0].head) == {"model": "dall-e-2", "prompt": "A fox."}
    event = only_event(gateway, team)
    assert (event["model"], event["price_id"], event["cost_pico_usd"]) == ("dall-e-2", None, 0)
    # It is a name that metrics know, though it has no price.
    labels = f'endpoint="image_generation",model="dall-e-2",outcome="ok",team="{team.name}"'
    eventually(lambda: labels in gateway.metrics(), what="its labels")
    assert eventually(lambda: unpriced(gateway) > before, what="its count")
    assert unpriced(gateway) == before + 1


def test_a_budget_is_held_against_what_has_a_price_alone(gateway, upstream, session):
    held = gateway.add_team("held")
    gateway.cli("teams", "set", held.name, "--budget", "5usd/month")
    answers(upstream, "audio/transcriptions", {"text": "Hm."})

    def post(model: str) -> requests.Response:
        files = {"file": ("a.wav", AUDIO)}
        url = f"{gateway.base_url}/audio/transcriptions"
        return session.post(url, data={"model": model}, files=files, headers=held.headers, timeout=30)

    refused = post("whisper-1")
    while refused.status_code == 200:
        refused = post("whisper-1")  # the budget is on its way
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "model_not_priced")
    assert post("gpt-4o-transcribe").status_code == 200


def test_a_budget_lets_nothing_pass_that_cannot_tell_its_cost(gateway, upstream, session):
    held = gateway.add_team("held-to-usage")
    gateway.cli("teams", "set", held.name, "--budget", "5usd/month")

    def post(path: str, **more: object) -> tuple[int, str | None]:
        got = session.post(f"{gateway.base_url}/{path}", headers=held.headers, timeout=30, **more)
        return got.status_code, (got.json().get("error") or {}).get("code") if got.status_code >= 400 else None

    speech = {"model": "gpt-4o-mini-tts", "input": "Hi", "voice": "alloy"}
    refused = (403, "model_not_priced")
    eventually(lambda: post("audio/speech", json=speech) == refused, what="the budget")
    upstream.seen.clear()
    edit, image = {"model": "gpt-image-1", "prompt": "Bluer."}, {"image": ("a.png", AUDIO)}
    written = {"model": "gpt-4o-transcribe", "response_format": "text"}
    assert post("images/edits", data=edit, files=image) == refused
    assert post("images/edits", json=edit | {"images": [{"image_url": "data:,"}]}) == refused
    assert post("audio/transcriptions", data=written, files={"file": ("a.wav", AUDIO)}) == refused
    assert upstream.seen == []
    answers(upstream, "audio/speech", b"data: {}\n\n", "text/event-stream")
    assert post("audio/speech", json=speech | {"stream_format": "sse"})[0] == 200


@pytest.mark.parametrize("model_first", [True, False])
def test_the_model_is_found_before_and_behind_the_file(gateway, upstream, team, ask, model_first):
    usage = {"type": "tokens", "input_tokens": 14, "input_token_details": {"text_tokens": 10, "audio_tokens": 4},
             "output_tokens": 31, "total_tokens": 45}  # fmt: skip
    told = answers(upstream, "audio/transcriptions", {"text": "Hm.", "usage": usage})
    model, file = ("model", (None, "gpt-4o-transcribe")), ("file", ("a.wav", AUDIO, "audio/wav"))
    got = ask("audio/transcriptions", files=[model, file] if model_first else [file, model])
    assert got.content == told
    assert got.request.body is not None
    assert upstream.seen[0].sha256 == hashlib.sha256(got.request.body).hexdigest()
    assert upstream.seen[0].headers["content-type"] == got.request.headers["Content-Type"]
    event = only_event(gateway, team)
    assert (event["endpoint"], event["model"]) == ("transcription", "gpt-4o-transcribe")
    assert event["audio_input_tokens"] == 4
    assert event["cost_pico_usd"] == (10 * 2.5 + 4 * 6 + 31 * 10) * MICRO


def test_a_transcription_paid_by_its_seconds_has_no_tokens(gateway, upstream, team, ask):
    answers(upstream, "audio/transcriptions", {"text": "Hm.", "usage": {"type": "duration", "seconds": 9}})
    got = ask("audio/transcriptions", data={"model": "whisper-1"}, files={"file": ("a.wav", AUDIO)})
    assert got.status_code == 200
    event = only_event(gateway, team)
    assert (event["input_tokens"], event["output_tokens"], event["price_id"]) == (0, 0, None)


@pytest.mark.parametrize(
    ("content_type", "text"),
    [("text/plain; charset=utf-8", b"Hm.\n"), ("text/vtt", b"WEBVTT\n"), ("application/x-subrip", b"1\n00:00")],
)
def test_transcripts_in_other_forms_pass_as_they_are(upstream, ask, content_type, text):
    answers(upstream, "audio/translations", text, content_type)
    got = ask("audio/translations", data={"model": "whisper-1"}, files={"file": ("a.wav", AUDIO)})
    assert (got.content, got.headers["Content-Type"]) == (text, content_type)


def test_a_default_model_is_said_in_the_form(gateway, upstream, team, ask):
    answers(upstream, "images/edits", {"data": []})
    ask("images/edits", data={"prompt": "Bluer."}, files=[("image[]", ("a.png", AUDIO)), ("mask", ("m.png", AUDIO))])
    assert upstream.seen[0].head.count(b'name="model"\r\n\r\ngpt-image-1.5\r\n') == 1
    assert only_event(gateway, team)["model"] == "gpt-image-1.5"


def test_an_alias_in_a_form_is_the_model_upstream(gateway, upstream, team, ask):
    answers(upstream, "audio/transcriptions", {"text": "Hm."})
    ask("audio/transcriptions", files=[("file", ("a.wav", b"RIFF")), ("model", (None, "scribe"))])
    assert fields_of(upstream.seen[0]) == {"model": ("gpt-4o-transcribe",)}
    assert upstream.seen[0].headers["content-length"] == str(upstream.seen[0].length)
    assert only_event(gateway, team)["model"] == "gpt-4o-transcribe"


def test_an_alias_in_json(upstream, ask):
    answers(upstream, "images/generations", {"data": []})
    ask("images/generations", json={"model": "painter", "prompt": "A fox."})
    assert json.loads(upstream.seen[0].head)["model"] == "gpt-image-1"


def test_an_azure_deployment_names_the_model_of_a_form(gateway, upstream, team, session):
    answers(upstream, "audio/transcriptions", {"text": "Hm."})
    url = f"{gateway.root}/openai/deployments/whisper-1/audio/transcriptions?api-version=2024-10-21"
    files = {"file": ("a.wav", b"RIFF")}
    got = session.post(url, files=files, headers={"api-key": team.key}, timeout=30)
    assert got.status_code == 200
    assert fields_of(upstream.seen[0]) == {"model": ("whisper-1",)}
    other = session.post(url, files=files, data={"model": "gpt-4o-transcribe"}, headers=team.headers, timeout=30)
    assert (other.status_code, other.json()["error"]["param"]) == (400, "model")


def test_models_that_a_team_may_not_use(gateway, upstream, ask):
    narrow = gateway.add_team("narrow", models=frozenset({"whisper-1"}))
    answers(upstream, "audio/transcriptions", {"text": "Hm."})
    files = {"file": ("a.wav", AUDIO)}
    assert ask("audio/transcriptions", by=narrow, data={"model": "whisper-1"}, files=files).status_code == 200
    for model in ("gpt-4o-transcribe", "scribe", "no-such-model"):
        got = ask("audio/transcriptions", by=narrow, data={"model": model}, files=files)
        assert (got.status_code, got.json()["error"]["code"]) == (404, "model_not_found")
    # What is left out is no way around it.
    assert ask("images/generations", by=narrow, json={"prompt": "x"}).status_code == 404
    assert len(upstream.seen) == 1


def test_what_refers_to_the_account_is_closed(gateway, upstream, ask):
    answers(upstream, "images/edits", {"data": []})
    answers(upstream, "audio/speech", b"mp3", "audio/mpeg")
    opened = gateway.add_team("opened", allow_stateful=True)
    edit = {"model": "gpt-image-1", "prompt": "x", "images": [{"file_id": "file-1"}]}
    speech = {"model": "tts-1", "input": "Hi", "voice": {"id": "voice_1"}}
    for path, body, param in (("images/edits", edit, "images"), ("audio/speech", speech, "voice")):
        got = ask(path, json=body)
        assert (got.status_code, got.json()["error"]["param"]) == (403, param)
        assert ask(path, by=opened, json=body).status_code == 200


def test_speech_is_passed_as_it_is_spoken(gateway, upstream, team, ask):
    going_on, loops = asyncio.Event(), []

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        loops.append(asyncio.get_running_loop())
        response = web.StreamResponse(headers={"Content-Type": "audio/mpeg"})
        await response.prepare(request)
        await response.write(AUDIO)
        await going_on.wait()
        await response.write(b"end")
        return response

    upstream.answers["/v1/audio/speech"] = answer
    got = ask("audio/speech", json={"model": "gpt-4o-mini-tts", "input": "Hi", "voice": "alloy"}, stream=True)
    pieces, spoken = got.iter_content(None), b""
    # The last byte of what has come waits for the account, for it may be the last of all.
    while len(spoken) < len(AUDIO) - 1:
        spoken += next(pieces)
    assert spoken == AUDIO[:-1]
    loops[0].call_soon_threadsafe(going_on.set)
    assert b"".join(pieces) == AUDIO[-1:] + b"end"
    event = only_event(gateway, team)
    assert (event["endpoint"], event["price_id"], event["outcome"]) == ("speech", None, "ok")


def sse(*events: dict[str, object]) -> bytes:
    return b"".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode() for event in events)


def test_streams_of_speech_and_of_images(gateway, upstream, team, ask):
    usage = {"input_tokens": 5, "output_tokens": 70, "total_tokens": 75}
    told = sse({"type": "speech.audio.delta", "audio": "AAAA"}, {"type": "speech.audio.done", "usage": usage})
    answers(upstream, "audio/speech", told, "text/event-stream")
    body = {"model": "gpt-4o-mini-tts", "input": "Hi", "voice": "alloy", "stream_format": "sse"}
    got = ask("audio/speech", json=body)
    assert got.content == told
    assert got.headers["Cache-Control"] == "no-cache, no-store"
    told = sse({"type": "image_edit.partial_image", "b64_json": "A" * 50_000},
               {"type": "image_edit.completed", "b64_json": "A" * 90_000, "usage": IMAGE_USAGE})  # fmt: skip
    answers(upstream, "images/edits", told, "text/event-stream")
    form = {"model": "gpt-image-1", "prompt": "Bluer.", "stream": "true"}
    assert ask("images/edits", data=form, files={"image": ("a.png", AUDIO)}).content == told
    speech, image = gateway.events(team.name, 2)
    assert speech["cost_pico_usd"] == 5 * 600_000 + 70 * 12 * MICRO
    assert image["cost_pico_usd"] == (50 * 5 + 7 * 40) * MICRO


def test_a_silent_stream_of_images_is_kept_alive_between_its_events(upstream, ask):
    last = sse({"type": "image_generation.completed", "b64_json": "AAAA", "usage": IMAGE_USAGE})
    going_on, loops = asyncio.Event(), []

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        loops.append(asyncio.get_running_loop())
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await going_on.wait()
        await response.write(last[:40])
        await asyncio.sleep(0.2)
        await response.write(last[40:])
        return response

    upstream.answers["/v1/images/generations"] = answer
    got = ask("images/generations", json={"model": "gpt-image-1", "prompt": "x", "stream": True}, stream=True)
    pieces = got.iter_content(None)
    received = next(pieces)
    loops[0].call_soon_threadsafe(going_on.set)
    received += b"".join(pieces)
    comments = received.removesuffix(last)
    assert comments == b": keep-alive\n\n" * (len(comments) // 14) != b""


def broken(upstream: WeighingUpstream, path: str, content_type: str, begin: bytes, *, clean: bool) -> None:
    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": content_type})
        await response.prepare(request)
        await response.write(begin)
        if not clean:
            assert request.transport is not None
            request.transport.abort()
        return response

    upstream.answers[f"/v1/{path}"] = answer


@pytest.mark.parametrize("clean", [True, False], ids=["ended", "cut"])
def test_half_a_json_answer_never_looks_whole(gateway, upstream, team, ask, clean):
    broken(upstream, "images/generations", "application/json", b'{"data": [{"b64_json": "AAAA', clean=clean)
    with pytest.raises(requests.RequestException):
        ask("images/generations", json={"model": "gpt-image-1", "prompt": "A fox."})
    event = only_event(gateway, team)
    assert (event["outcome"], event["estimated"]) == ("upstream_error", 1)


@pytest.mark.parametrize("clean", [True, False], ids=["ended", "cut"])
def test_half_a_stream_ends_with_an_error_and_never_looks_whole(gateway, upstream, team, ask, clean):
    begin = sse({"type": "image_generation.partial_image", "b64_json": "AAAA"}) + b"event: image_generation.comp"
    broken(upstream, "images/generations", "text/event-stream", begin, clean=clean)
    got = ask("images/generations", json={"model": "gpt-image-1", "prompt": "x", "stream": True}, stream=True)
    pieces: list[bytes] = []
    with pytest.raises(requests.RequestException):
        pieces.extend(got.iter_content(None))
    received = b"".join(pieces)
    assert received.startswith(begin + b"\n\ndata: ")
    error = json.loads(received.removeprefix(begin + b"\n\ndata: "))["error"]
    assert error["code"] == ("upstream_content" if clean else "upstream_broken")
    assert only_event(gateway, team)["outcome"] == "upstream_error"


@pytest.mark.parametrize(
    ("path", "content_type", "body"),
    [("images/generations", "text/html", b"<html>"), ("images/generations", "application/json", b"[]")],
)
def test_what_is_no_answer_is_told_as_an_error(gateway, upstream, team, ask, path, content_type, body):
    answers(upstream, path, body, content_type)
    got = ask(path, json={"model": "gpt-image-1", "prompt": "x"})
    assert (got.status_code, got.json()["error"]["type"]) == (502, "server_error")
    assert only_event(gateway, team)["outcome"] == "upstream_error"


def test_forms_are_sent_again_where_that_may_help(gateway, upstream, team, ask):
    statuses = iter((503, 429, 200))

    async def answer(_: web.BaseRequest) -> web.StreamResponse:
        return web.json_response({"text": "Hm."}, status=next(statuses))

    upstream.answers["/v1/audio/transcriptions"] = answer
    got = ask("audio/transcriptions", data={"model": "whisper-1"}, files={"file": ("a.wav", AUDIO)})
    assert (got.status_code, got.headers["x-tollgate-attempts"]) == (200, "3")
    assert len({seen.sha256 for seen in upstream.seen}) == 1
    assert only_event(gateway, team)["attempts"] == 3


@pytest.mark.parametrize(
    ("data", "files", "status", "param"),
    [
        ({}, {"file": ("a.wav", AUDIO)}, 400, "model"),
        ({"model": "whisper-1"}, {"other": ("a.wav", AUDIO)}, 400, "file"),
        ([("model", "whisper-1"), ("model", "gpt-4o-transcribe")], {"file": ("a.wav", AUDIO)}, 400, "model"),
    ],
)
def test_forms_that_are_refused(upstream, ask, data, files, status, param):
    got = ask("audio/transcriptions", data=data, files=files)
    assert (got.status_code, got.json()["error"]["param"]) == (status, param)
    assert upstream.seen == []


def test_bodies_that_are_no_forms(upstream, ask):
    assert ask("audio/transcriptions", json={"model": "whisper-1"}).json()["error"]["message"].count("form")
    packed = gzip.compress(b"--x--\r\n")
    headers = {"Content-Type": "multipart/form-data; boundary=x", "Content-Encoding": "gzip"}
    assert ask("audio/transcriptions", data=packed, headers=headers).status_code == 400
    assert upstream.seen == []


def test_none_is_kept(upstream, ask):
    answers(upstream, "images/generations", {"data": []})
    for _ in range(2):
        got = ask("images/generations", json={"model": "dall-e-3", "prompt": "x"})
        assert got.headers["x-tollgate-cache"] == "bypass"
    assert len(upstream.seen) == 2


@pytest.mark.parametrize("coding", ["gzip", "zstd", "deflate"])
def test_compressed_json_goes_upstream_as_what_it_is(gateway, upstream, team, ask, coding):
    answers(upstream, "images/generations", {"data": []})
    body = json.dumps({"model": "dall-e-3", "prompt": "x" * 100_000}).encode()
    packed = {"gzip": gzip.compress, "zstd": zstd.compress, "deflate": zlib.compress}[coding](body)
    headers = {"Content-Type": "application/json", "Content-Encoding": coding}
    assert ask("images/generations", data=packed, headers=headers).status_code == 200
    assert upstream.seen[0].sha256 == hashlib.sha256(body).hexdigest()
    assert "content-encoding" not in upstream.seen[0].headers


def test_the_official_sdk(gateway, upstream, team):
    with OpenAI(base_url=gateway.base_url, api_key=team.key, max_retries=0, timeout=30) as client:
        answers(upstream, "audio/transcriptions", {"text": "Hm."})
        assert client.audio.transcriptions.create(file=("a.wav", AUDIO), model="whisper-1").text == "Hm."
        answers(upstream, "images/edits", {"created": 1, "data": [{"b64_json": "QUFB"}], "usage": IMAGE_USAGE})
        edited = client.images.edit(image=[("a.png", AUDIO), ("b.png", AUDIO)], prompt="Bluer.", model="gpt-image-1")
        assert edited.data[0].b64_json == "QUFB"
        answers(upstream, "images/variations", {"created": 1, "data": [{"url": "https://x"}]})
        with pytest.warns(DeprecationWarning, match="deprecated"):
            assert client.images.create_variation(image=("a.png", AUDIO)).data[0].url == "https://x"
        answers(upstream, "audio/speech", AUDIO, "audio/mpeg")
        assert client.audio.speech.create(model="tts-1", input="Hi", voice="alloy").content == AUDIO
    assert [event["model"] for event in gateway.events(team.name, 4)] == [
        "whisper-1",
        "gpt-image-1",
        "dall-e-2",
        "tts-1",
    ]
