"""One table of things an application asks the official Python SDK, whichever version runs this.

usage: RESET_URL=... python cases.py PLACES, a JSON list of [BASE_URL, KEY]. RESET_URL is where upstream is told to
forget what it keeps. Prints {"version", "seen": for each place the outcomes of both kinds of client}. An outcome is
what the application gets, with ids numbered in the order in which they appear and times left out.
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import json
import os
import re
import sys
import urllib.request
import warnings
from collections.abc import Callable, Generator, Iterable
from typing import Any

import openai
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

Case = Callable[[Any], Generator[Any, Any, Any]]
"""Yields what an asynchronous client must wait for, and gets the result sent; so it serves both kinds of client."""

MODEL = "gpt-4o-mini"
TEXT = "žluť 🦔, and the lock next to it?"
ASKED = {"model": MODEL, "messages": [{"role": "user", "content": f"echo:{TEXT}"}]}
PROMPT = {"model": "gpt-3.5-turbo-instruct", "prompt": ["How deep?", f"echo:{TEXT}"], "echo": True}
RESPONSE = {"model": MODEL, "input": f"echo:{TEXT}", "store": False}
IMAGE = {"model": "gpt-image-1", "prompt": "a lock"}
PNG = ("lock.png", b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "image/png")
SOUND = ("žluť.wav", b"RIFF" + bytes(40_000), "audio/wav")
LINE = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": ASKED}
TOOL = {
    "type": "function",
    "function": {"name": "depth", "parameters": {"type": "object", "properties": {"m": {"type": "integer"}}}},
}


class Depth(BaseModel):
    basin: str
    metres: int


class Each:
    """All that a stream or a list has, page after page."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream


class Within:
    """What `look` sees in a context."""

    def __init__(self, manager: Any, look: Callable[[Any], Any]) -> None:
        self.manager = manager
        self.look = look


CASES: dict[str, Case] = {}


def case(make: Case) -> Case:
    CASES[make.__name__] = make
    return make


def one(name: str, ask: Callable[[Any], Any]) -> None:
    """A case of a single call."""

    def made(client: Any) -> Generator[Any, Any, Any]:
        return (yield ask(client))

    CASES[name] = made


def several(asks: Iterable[Any]) -> Generator[Any, Any, list[Any]]:
    """The results of several calls, one after the other."""
    results = []
    for ask in asks:
        results.append((yield ask))  # noqa: PERF401 - a comprehension cannot yield
    return results


def simulated(**faults: object) -> dict[str, Any]:
    return {"extra_headers": {f"x-simulate-{name.replace('_', '-')}": str(value) for name, value in faults.items()}}


one("chat", lambda c: c.chat.completions.create(**ASKED, n=2, seed=7))
one("chat_stream", lambda c: Each(c.chat.completions.create(**ASKED, stream=True)))
one("chat_stream_usage", lambda c: Each(c.chat.completions.create(
    **ASKED, stream=True, stream_options={"include_usage": True})))  # fmt: skip
one("chat_tools", lambda c: c.chat.completions.create(**ASKED, tools=[TOOL], tool_choice="required"))
one("chat_tools_stream", lambda c: Each(c.chat.completions.create(
    **{**ASKED, "messages": [{"role": "user", "content": "?"}]}, tools=[TOOL], tool_choice="required", stream=True,
)))  # fmt: skip
one("chat_likely", lambda c: c.chat.completions.create(**ASKED, logprobs=True, top_logprobs=2, max_tokens=3))
one("completions", lambda c: c.completions.create(**PROMPT, n=2, best_of=3))
one("completions_stream", lambda c: Each(c.completions.create(**PROMPT, stream=True)))
one("completions_stream_usage", lambda c: Each(c.completions.create(
    **PROMPT, stream=True, stream_options={"include_usage": True})))  # fmt: skip
one("embeddings", lambda c: c.embeddings.create(model="text-embedding-3-small", input=["How", TEXT], dimensions=8))
one("embeddings_floats", lambda c: c.embeddings.create(
    model="text-embedding-3-large", input=[1, 2, 3], encoding_format="float"))  # fmt: skip
one("moderations", lambda c: c.moderations.create(input=["How deep?", "violence"]))
one("responses", lambda c: c.responses.create(**RESPONSE))
one("responses_stream", lambda c: Each(c.responses.create(**RESPONSE, stream=True)))
one("models", lambda c: Each(c.models.list()))
one("model", lambda c: c.models.retrieve(MODEL))
one("images", lambda c: c.images.generate(**IMAGE, n=2, quality="low", size="1536x1024"))
one("images_stream", lambda c: Each(c.images.generate(**IMAGE, stream=True, partial_images=2)))
one("images_older", lambda c: c.images.generate(model="dall-e-3", prompt="a lock", response_format="b64_json"))
one("image_edit", lambda c: c.images.edit(**IMAGE, image=[PNG, PNG], mask=PNG))
one("image_edit_stream", lambda c: Each(c.images.edit(**IMAGE, image=PNG, stream=True, partial_images=1)))
one("image_variation", lambda c: c.images.create_variation(image=PNG, n=2, response_format="b64_json"))
for kind in ("json", "text", "srt", "vtt", "verbose_json"):
    one(f"transcription_{kind}", lambda c, kind=kind: c.audio.transcriptions.create(
        model="whisper-1", file=SOUND, response_format=kind, timestamp_granularities=["word", "segment"],
    ))  # fmt: skip
    one(f"translation_{kind}", lambda c, kind=kind: c.audio.translations.create(
        model="whisper-1", file=SOUND, response_format=kind))  # fmt: skip
one("transcription_tokens", lambda c: c.audio.transcriptions.create(
    model="gpt-4o-transcribe", file=SOUND, prompt=f"echo:{TEXT}"))  # fmt: skip
one("transcription_stream", lambda c: Each(c.audio.transcriptions.create(
    model="gpt-4o-transcribe", file=SOUND, prompt=f"echo:{TEXT}", stream=True)))  # fmt: skip


@case
def speech(client: Any) -> Generator[Any, Any, Any]:
    answer = yield client.audio.speech.create(model="tts-1", voice="alloy", input=TEXT, response_format="wav")
    return [answer.response.headers["content-type"], answer.content]


@case
def speech_streamed(client: Any) -> Generator[Any, Any, Any]:
    manager = client.audio.speech.with_streaming_response.create(model="tts-1", voice="alloy", input=TEXT)
    pieces = yield Within(manager, lambda response: Each(response.iter_bytes()))
    return b"".join(pieces)


@case
def speech_events(client: Any) -> Generator[Any, Any, Any]:
    manager = client.audio.speech.with_streaming_response.create(
        model="gpt-4o-mini-tts", voice="alloy", input=TEXT, stream_format="sse"
    )
    lines = yield Within(manager, lambda response: Each(response.iter_lines()))
    return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]


@case
def chat_helper(client: Any) -> Generator[Any, Any, Any]:
    manager = (client.chat if hasattr(client.chat.completions, "stream") else client.beta.chat).completions.stream(
        model=MODEL, messages=[{"role": "user", "content": "?"}], response_format=Depth
    )
    return (yield Within(manager, Each))


@case
def chat_parsed(client: Any) -> Generator[Any, Any, Any]:
    messages = [{"role": "user", "content": "?"}]
    answer = yield client.chat.completions.parse(model=MODEL, messages=messages, response_format=Depth)
    return [answer, answer.choices[0].message.parsed]


@case
def responses_helper(client: Any) -> Generator[Any, Any, Any]:
    manager = client.responses.stream(**RESPONSE)
    return (yield Within(manager, Each))


@case
def responses_count(client: Any) -> Generator[Any, Any, Any]:
    """Older versions have no method for it."""
    asked = {"model": MODEL, "input": TEXT}
    return (yield client.post("/responses/input_tokens", body=asked, cast_to=dict[str, Any]))


@case
def raw_response(client: Any) -> Generator[Any, Any, Any]:
    raw = yield client.chat.completions.with_raw_response.create(**ASKED)
    assert raw.headers["x-request-id"].startswith("req_")
    told = [raw.headers[name] for name in ("content-type", "openai-version", "openai-model")]
    return [raw.status_code, raw.retries_taken, told, raw.parse(), raw.http_response.json()]


@case
def raw_stream(client: Any) -> Generator[Any, Any, Any]:
    raw = yield client.chat.completions.with_raw_response.create(**ASKED, stream=True)
    return [raw.status_code, raw.headers["content-type"].partition(";")[0], (yield Each(raw.parse()))]


@case
def streaming_response(client: Any) -> Generator[Any, Any, Any]:
    manager = client.chat.completions.with_streaming_response.create(**ASKED, stream=True)
    lines = yield Within(manager, lambda response: Each(response.iter_lines()))
    return [line if line.endswith("[DONE]") else json.loads(line.removeprefix("data: ")) for line in lines if line]


@case
def files(client: Any) -> Generator[Any, Any, Any]:
    made = yield from several(
        client.files.create(file=(f"žluť-{number}.jsonl", b"{}\n" * number + b"{}"), purpose="evals")
        for number in range(5)
    )
    one_by_one = yield Each(client.files.list(limit=2, purpose="evals", order="asc"))
    page = yield client.files.list(limit=2, purpose="evals")
    following = yield page.get_next_page()
    again = yield client.files.retrieve(made[1].id)
    content = yield client.files.content(made[1].id)
    manager = client.files.with_streaming_response.content(made[2].id)
    streamed = yield Within(manager, lambda response: Each(response.iter_bytes()))
    deleted = yield from several(client.files.delete(file.id) for file in made)
    left = yield Each(client.files.list(purpose="evals"))
    return [made, one_by_one, page, following, again, content.content, b"".join(streamed), deleted, left]


@case
def large_file(client: Any) -> Generator[Any, Any, Any]:
    """Past what the simulator keeps whole, and past what one read of a socket has."""
    content = hashlib.shake_256(b"a file").digest(600_000)
    file = yield client.files.create(file=("large.bin", content), purpose="user_data")
    manager = client.files.with_streaming_response.content(file.id)
    streamed = b"".join((yield Within(manager, lambda response: Each(response.iter_bytes()))))
    assert streamed.startswith(f"sha256 {hashlib.sha256(content).hexdigest()}\n".encode())
    return [file, streamed, (yield client.files.delete(file.id))]


@case
def uploads(client: Any) -> Generator[Any, Any, Any]:
    upload = yield client.uploads.create(bytes=8, filename="a.txt", mime_type="text/plain", purpose="user_data")
    parts = yield from several(client.uploads.parts.create(upload.id, data=data) for data in (b"lock", b"deep"))
    done = yield client.uploads.complete(upload.id, part_ids=[part.id for part in reversed(parts)])
    content = yield client.files.content(done.file.id)
    other = yield client.uploads.create(bytes=8, filename="a.txt", mime_type="text/plain", purpose="user_data")
    cancelled = yield client.uploads.cancel(other.id)
    return [upload, parts, done, content.content, cancelled]


@case
def batches(client: Any) -> Generator[Any, Any, Any]:
    file = yield client.files.create(file=("a.jsonl", json.dumps(LINE).encode()), purpose="batch")
    asked = {"input_file_id": file.id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    made = [(yield client.batches.create(**asked)), (yield client.batches.create(**asked, metadata={"a": "b"}))]
    cancelled = yield client.batches.cancel(made[1].id)
    done = yield client.batches.retrieve(made[0].id)
    answered = yield client.files.content(done.output_file_id)
    listed = yield Each(client.batches.list(limit=1))
    return [made, cancelled, done, json.loads(answered.text), listed]


@case
def stored_completions(client: Any) -> Generator[Any, Any, Any]:
    made = yield from several(
        client.chat.completions.create(**ASKED, store=True, metadata={"n": str(number)}) for number in range(3)
    )
    listed = yield Each(client.chat.completions.list(limit=2))
    first = made[0].id
    again = yield client.chat.completions.retrieve(first)
    said = yield Each(client.chat.completions.messages.list(first))
    changed = yield client.chat.completions.update(first, metadata={"a": "b"})
    deleted = yield from several(client.chat.completions.delete(completion.id) for completion in made)
    return [made, listed, again, said, changed, deleted]


@case
def stored_responses(client: Any) -> Generator[Any, Any, Any]:
    asked = {**RESPONSE, "store": True}
    made = yield client.responses.create(**asked)
    again = yield client.responses.retrieve(made.id)
    events = yield Each(client.responses.retrieve(made.id, stream=True))
    items = yield Each(client.responses.input_items.list(made.id))
    deleted = yield client.responses.delete(made.id)
    waiting = yield client.responses.create(**asked, background=True)
    cancelled = yield client.responses.cancel(waiting.id)
    return [made, again, events, items, deleted, waiting, cancelled]


# Errors: each is what the SDK raised. The first few are the gateway's own, in its own words.
OWN_WORDS = ("stranger", "no_such_model", "no_such_model_to_look_at", "missing", "no_such_path")
PARAMS = {"no_such_model": "model"}
"""What the gateway says more than upstream does."""
one("stranger", lambda c: c.with_options(api_key="sk-nobody").chat.completions.create(**ASKED))
one("no_such_model", lambda c: c.chat.completions.create(**{**ASKED, "model": "gpt-none"}))
one("no_such_model_to_look_at", lambda c: c.models.retrieve("gpt-none"))
one("missing", lambda c: c.post("/chat/completions", body={"model": MODEL}, cast_to=object))
one("no_such_path", lambda c: c.get("/nothing", cast_to=object))
one("no_such_file", lambda c: c.files.retrieve("file-none"))
one("no_such_response", lambda c: c.responses.retrieve("resp_none"))
one("an_empty_file", lambda c: c.files.create(file=("a", b""), purpose="batch"))
one("no_such_size", lambda c: c.images.generate(**IMAGE, size="3x3"))
one("no_such_form", lambda c: c.audio.transcriptions.create(
    model="gpt-4o-transcribe", file=SOUND, response_format="srt"))  # fmt: skip
for status in (400, 403, 404, 409, 422, 429, 500, 503):
    one(f"status_{status}", lambda c, status=status: c.chat.completions.create(**ASKED, **simulated(status=status)))
    one(f"status_{status}_stream", lambda c, status=status: Each(
        c.responses.create(**RESPONSE, stream=True, **simulated(status=status))))  # fmt: skip
one("quota", lambda c: c.chat.completions.create(**ASKED, **simulated(status=429, code="insufficient_quota")))
one("error_in_a_stream", lambda c: Each(
    c.chat.completions.create(**ASKED, stream=True, **simulated(error_event_after=2))))  # fmt: skip
one("too_late", lambda c: c.with_options(timeout=0.3).chat.completions.create(**ASKED, **simulated(hang=1)))


def drive(steps: Generator[Any, Any, Any]) -> Any:
    sent = None
    try:
        while True:
            sent = _of_sync(steps.send(sent))
    except StopIteration as end:
        return end.value


def _of_sync(step: Any) -> Any:
    if isinstance(step, Within):
        with step.manager as entered:
            return _of_sync(step.look(entered))
    return list(step.stream) if isinstance(step, Each) else step


async def drive_async(steps: Generator[Any, Any, Any]) -> Any:
    sent = None
    try:
        while True:
            sent = await _of_async(steps.send(sent))
    except StopIteration as end:
        return end.value


async def _of_async(step: Any) -> Any:
    if isinstance(step, Within):
        async with step.manager as entered:
            return await _of_async(step.look(entered))
    if isinstance(step, Each):
        stream = step.stream
        if not hasattr(stream, "__aiter__"):
            stream = await stream
        return [entry async for entry in stream]
    return await step if inspect.isawaitable(step) else step


ID = re.compile(r"\b(batch_req|[a-z]{2,9})([-_])(?=[0-9a-f]*\d)([0-9a-f]{24,64})\b")
TIMES = frozenset({"created", "created_at", "expires_at", "cancelling_at", "cancelled_at", "completed_at",
                   "in_progress_at", "finalizing_at"})  # fmt: skip


class Told:
    """Outcomes as JSON, the ids of one case numbered."""

    def __init__(self) -> None:
        self._ids: dict[str, str] = {}

    def of(self, value: Any) -> Any:
        if isinstance(value, BaseModel):
            name = type(value).__name__.removeprefix("Async").removeprefix("Sync")
            shown = self.of(value.model_dump(mode="json", warnings=False))
            if not hasattr(value, "has_next_page"):
                return {name: shown}
            return {name: shown, "has_next_page": value.has_next_page()}
        if isinstance(value, dict):
            return {name: "time" if name in TIMES and entry else self.of(entry) for name, entry in value.items()}
        if isinstance(value, list | tuple):
            return [self.of(entry) for entry in value]
        if isinstance(value, bytes):
            return {"bytes": len(value), "sha256": hashlib.sha256(value).hexdigest()}
        return ID.sub(self._numbered, value) if isinstance(value, str) else value

    def _numbered(self, match: re.Match[str]) -> str:
        return self._ids.setdefault(match[0], f"{match[1]}{match[2]}{len(self._ids)}")

    def error(self, error: openai.OpenAIError, name: str) -> dict[str, Any]:
        fields = ("status_code", "code", "type", "param", "message", "body")
        told = {field: self.of(getattr(error, field, None)) for field in fields}
        if name in OWN_WORDS:
            told["body"] = sorted(told["body"] or ())
            told["param"] = told["param"] or PARAMS.get(name)
            assert told.pop("message")
        request_id = getattr(error, "request_id", None)
        return {"raised": type(error).__name__, **told, "request_id": str(request_id).partition("_")[0]}


def start_over() -> None:
    request = urllib.request.Request(os.environ["RESET_URL"], method="POST")
    urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10).close()


def outcome(name: str, get: Callable[[], Any]) -> Any:
    told = Told()
    try:
        return told.of(get())
    except openai.OpenAIError as error:
        return told.error(error, name)


def seen_by_sync(base_url: str, key: str) -> dict[str, Any]:
    start_over()
    with OpenAI(base_url=base_url, api_key=key, max_retries=0, timeout=30) as client:
        return {name: outcome(name, lambda make=make: drive(make(client))) for name, make in CASES.items()}


async def seen_by_async(base_url: str, key: str) -> dict[str, Any]:
    seen = {}
    start_over()
    async with AsyncOpenAI(base_url=base_url, api_key=key, max_retries=0, timeout=30) as client:
        for name, make in CASES.items():
            told = Told()
            try:
                seen[name] = told.of(await drive_async(make(client)))
            except openai.OpenAIError as error:
                seen[name] = told.error(error, name)
    return seen


def main() -> None:
    # Some methods are deprecated in newer versions, and answered all the same.
    warnings.simplefilter("ignore", DeprecationWarning)
    places = json.loads(sys.argv[1])
    seen = [
        {"sync": seen_by_sync(base_url, key), "async": asyncio.run(seen_by_async(base_url, key))}
        for base_url, key in places
    ]
    print(json.dumps({"version": openai.__version__, "seen": seen}))


if __name__ == "__main__":
    main()
