"""Images and audio: what follows from what, how it is counted, and that streams say what plain answers say."""

import base64
import json
import struct
import zlib

import aiohttp
import pytest
import pytest_asyncio

from proxy.simulator.pictures import picture

SOUND = b"0" * 40_000


@pytest_asyncio.fixture
async def harness(simulate):
    return await simulate()


@pytest.fixture
def post(harness):
    def ask(path, body, headers=None):
        url, sent = f"{harness.root}/v1/{path}", {"Authorization": "Bearer sk-test", **(headers or {})}
        content = {"json": body} if isinstance(body, dict) else {"data": body}
        return harness.session.post(url, headers=sent, **content)

    return ask


def form(*files, **fields):
    data = aiohttp.FormData(default_to_multipart=True)
    for name, content in files:
        data.add_field(name, content, filename=f"{name}.bin")
    for name, value in fields.items():
        data.add_field(name, value)
    return data


def events(stream):
    lines = [line for line in stream.split(b"\n") if line.startswith(b"data: ")]
    return [json.loads(line.removeprefix(b"data: ")) for line in lines]


def test_a_picture_is_a_png():
    image = picture(b"1", side=7)
    assert image.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", image[16:24])
    length = int.from_bytes(image[33:37], "big")
    assert (width, height, len(zlib.decompress(image[41 : 41 + length]))) == (7, 7, 7 * 8)
    assert image != picture(b"2", side=7)


@pytest.mark.parametrize(
    ("look", "tokens"),
    [({}, 1_056), ({"quality": "low", "size": "1024x1536"}, 408), ({"quality": "high", "n": 2}, 8_320)],
)
async def test_images_and_their_usage(harness, post, look, tokens):
    asked = {"model": "gpt-image-1", "prompt": "a lock, closed", **look}
    body = await (await post("images/generations", asked)).json()
    usage = body["usage"]
    assert (usage["input_tokens"], usage["output_tokens"], usage["total_tokens"]) == (4, tokens, 4 + tokens)
    assert (harness.stats.input_tokens, harness.stats.output_tokens) == (4, tokens)
    images = [base64.b64decode(each["b64_json"]) for each in body["data"]]
    assert len(set(images)) == look.get("n", 1)
    assert body["data"] == (await (await post("images/generations", asked)).json())["data"]


async def test_a_stream_of_images_says_what_the_plain_answer_says(post):
    asked = {"model": "gpt-image-1", "prompt": "a lock"}
    plain = await (await post("images/generations", asked)).json()
    stream = await (await post("images/generations", {**asked, "stream": True, "partial_images": 2})).read()
    *partial, last = events(stream)
    assert [each["partial_image_index"] for each in partial] == [0, 1]
    assert last["type"] == "image_generation.completed"
    assert stream.count(b"event: image_generation.partial_image\ndata: ") == 2
    assert last["b64_json"] == plain["data"][0]["b64_json"]
    assert last["usage"]["output_tokens"] == plain["usage"]["output_tokens"] + 200


async def test_a_stream_counts_what_it_sent(harness, post):
    asked = {"model": "gpt-image-1", "prompt": "a lock", "stream": True, "n": 3, "quality": "low", "partial_images": 1}
    *_, last = events(await (await post("images/generations", asked)).read())
    (record,) = harness.stats.records
    assert last["usage"]["output_tokens"] == record.output_tokens == record.output_tokens_sent == 3 * 272 + 100
    assert record.completed


async def test_edits_count_what_is_sent_in(post):
    files = [("image[]", b"one"), ("image[]", b"two"), ("mask", b"three")]
    body = await (await post("images/edits", form(*files, model="gpt-image-1", prompt="a lock"))).json()
    assert body["usage"]["input_tokens_details"] == {"text_tokens": 2, "image_tokens": 3 * 194}
    other = await (await post("images/edits", form(*files[:2], model="gpt-image-1", prompt="a lock"))).json()
    assert other["data"] != body["data"]
    asked = form(*files, model="gpt-image-1", prompt="a lock", stream="true")
    assert events(await (await post("images/edits", asked)).read())[0]["type"] == "image_edit.completed"


@pytest.mark.parametrize(("model", "revised"), [("dall-e-2", False), ("dall-e-3", True)])
async def test_the_older_models_tell_no_usage(post, model, revised):
    body = await (await post("images/generations", {"model": model, "prompt": "a lock"})).json()
    assert set(body) == {"created", "data"}
    assert set(body["data"][0]) == ({"url", "revised_prompt"} if revised else {"url"})
    assert (await post("images/generations", {"model": model, "prompt": "a lock", "stream": True})).status == 400


async def test_variations(post):
    body = await (await post("images/variations", form(("image", b"1"), n="2", response_format="b64_json"))).json()
    assert [set(each) for each in body["data"]] == [{"b64_json"}] * 2
    assert (await post("images/variations", form(("image", b"1"), model="gpt-image-1"))).status == 400


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("images/generations", {"model": "gpt-image-1", "prompt": "x", "size": "3x3"}, "size"),
        ("images/generations", {"model": "gpt-image-1", "prompt": "x", "quality": "best"}, "quality"),
        ("images/generations", {"model": "gpt-image-1", "prompt": "x", "response_format": "url"}, "response_format"),
        ("images/generations", {"model": "gpt-image-1"}, "prompt"),
        ("images/edits", {"model": "gpt-image-1", "prompt": "x"}, None),
        ("audio/speech", {"model": "tts-1", "voice": "alloy", "input": "x", "stream_format": "sse"}, "stream_format"),
        ("audio/speech", {"model": "gpt-4o", "voice": "alloy", "input": "x"}, "model"),
    ],
)
async def test_what_is_refused(post, path, body, param):
    answer = await post(path, body)
    assert answer.status in {400, 404}
    assert (await answer.json())["error"]["param"] == param


async def test_speech_in_events_is_speech(post):
    asked = {"model": "gpt-4o-mini-tts", "voice": "alloy", "input": "How deep is it?"}
    answer = await post("audio/speech", asked)
    assert answer.headers["Content-Type"] == "audio/mpeg"
    assert answer.headers["Transfer-Encoding"] == "chunked"
    sound = await answer.read()
    *pieces, done = events(await (await post("audio/speech", {**asked, "stream_format": "sse"})).read())
    assert b"".join(base64.b64decode(each["audio"]) for each in pieces) == sound
    assert done == {
        "type": "speech.audio.done",
        "usage": {"input_tokens": 4, "output_tokens": 80, "total_tokens": 84},
    }
    wave = await (await post("audio/speech", {**asked, "response_format": "wav"})).read()
    assert (wave[:4], wave[8:12], len(wave)) == (b"RIFF", b"WAVE", len(sound) + 44)


async def test_what_is_heard_in_each_form(post):
    async def heard(kind, **more):
        asked = form(("file", SOUND), model="whisper-1", prompt="echo:How deep is it?", response_format=kind, **more)
        answer = await post("audio/transcriptions", asked)
        assert answer.status == 200
        return answer.headers["Content-Type"], await answer.read()

    text = "How deep is it?"
    assert json.loads((await heard("json"))[1]) == {"text": text, "usage": {"type": "duration", "seconds": 3}}
    assert await heard("text") == ("text/plain; charset=utf-8", f"{text}\n".encode())
    assert (await heard("srt"))[1] == f"1\n00:00:00,000 --> 00:00:03,000\n{text}\n\n".encode()
    assert (await heard("vtt"))[1] == f"WEBVTT\n\n00:00:00.000 --> 00:00:03.000\n{text}\n\n".encode()
    verbose = json.loads((await heard("verbose_json", **{"timestamp_granularities[]": "word"}))[1])
    assert (verbose["duration"], [each["word"] for each in verbose["words"]]) == (3.0, text.split())
    assert "segments" not in verbose


async def test_a_stream_of_a_transcript(harness, post):
    asked = {"model": "gpt-4o-transcribe", "prompt": "echo:How deep is it?"}
    plain = await (await post("audio/transcriptions", form(("file", SOUND), **asked))).json()
    stream = await (await post("audio/transcriptions", form(("file", SOUND), **asked, stream="true"))).read()
    *deltas, done = events(stream)
    assert "".join(each["delta"] for each in deltas) == done["text"] == plain["text"]
    assert done["usage"] == plain["usage"]
    assert done["usage"]["input_token_details"] == {"text_tokens": 5, "audio_tokens": 30}
    assert harness.stats.records[-1].output_tokens == done["usage"]["output_tokens"] == 4


async def test_translations_are_english_and_tell_no_usage(post):
    asked = form(("file", SOUND), model="whisper-1", language="cs", response_format="verbose_json")
    body = await (await post("audio/translations", asked)).json()
    assert (body["language"], body["task"], "usage" in body) == ("english", "translate", False)
    assert (await post("audio/translations", form(("file", SOUND), model="gpt-4o-transcribe"))).status == 400


@pytest.mark.parametrize("path", ["audio/transcriptions", "images/edits"])
async def test_a_form_is_needed_and_a_file_in_it(post, path):
    answer = await post(path, form(model="gpt-4o-transcribe", prompt="x", another="y"))
    assert answer.status == 400
    assert (await answer.json())["error"]["param"] in {"file", "image"}
