"""What official SDKs make of comments in a stream that is silent: nothing."""

from __future__ import annotations

import json
import subprocess

import pytest
from openai import AsyncOpenAI, OpenAI

from tests.support.tollgate_process import clean_environment, run_tollgate

TEXT = "žluť 🦔, and the lock next to it?"
ASK = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": f"echo:{TEXT}"}]}
SLOW = {"x-simulate-chunk-ms": "50", "x-simulate-ttft-ms": "200"}
SETTINGS = """
[streams]
keep_alive_seconds = 0.03
"""
USAGE = {"stream_options": {"include_usage": True}}


@pytest.fixture(scope="module")
def wakeful(simulator, tmp_path_factory):
    place = tmp_path_factory.mktemp("wakeful")
    with run_tollgate(place, simulator.base_url, simulator.key, settings=SETTINGS) as running:
        yield running


@pytest.fixture(scope="module")
def user(wakeful):
    return wakeful.add_team("users")


@pytest.fixture
def client(wakeful, user):
    with OpenAI(base_url=wakeful.base_url, api_key=user.key, max_retries=0, timeout=30) as client:
        yield client


def comments(data: bytes) -> int:
    return data.count(b": keep-alive\n\n")


@pytest.mark.parametrize("temperature", [0, 1], ids=["shared", "alone"])
@pytest.mark.parametrize("options", [{}, USAGE], ids=["bare", "usage"])
def test_they_are_there_between_events_and_not_behind_the_last(session, wakeful, user, temperature, options):
    body = {**ASK, **options, "stream": True, "temperature": temperature, "max_tokens": 50 + len(options)}
    url = f"{wakeful.base_url}/chat/completions"
    answer = session.post(url, json=body, headers={**user.headers, **SLOW}, timeout=60)
    assert comments(answer.content) > 0
    assert answer.content.endswith(b"\n\ndata: [DONE]\n\n")
    for event in answer.content.split(b"\n\n")[:-2]:
        assert event == b": keep-alive" or json.loads(event.removeprefix(b"data: "))
    again = session.post(url, json=body, headers={**user.headers, **SLOW}, timeout=30)
    hit = again.headers["Cache-Status"].startswith("tollgate; hit")
    assert hit == (temperature == 0), "comments keep nothing out of the cache"
    assert (comments(again.content) == 0) == hit


@pytest.mark.parametrize("temperature", [0, 1], ids=["shared", "alone"])
def test_the_python_sdk(client, temperature):
    asked = {**ASK, "temperature": temperature}
    chunks = list(client.chat.completions.create(**asked, **USAGE, stream=True, extra_headers=SLOW))
    assert "".join(each.choices[0].delta.content or "" for each in chunks if each.choices) == TEXT
    assert chunks[-1].usage.completion_tokens > 0
    with client.chat.completions.stream(**asked, extra_headers=SLOW) as stream:
        assert stream.get_final_completion().choices[0].message.content == TEXT
    pieces = client.completions.create(
        model="gpt-3.5-turbo-instruct", prompt=f"echo:{TEXT}", stream=True, extra_headers=SLOW
    )
    assert TEXT in "".join(each.choices[0].text for each in pieces if each.choices)


def test_the_python_sdk_with_responses(client):
    with client.responses.stream(model="gpt-4o-mini", input=f"echo:{TEXT}", extra_headers=SLOW) as stream:
        assert {event.type for event in stream} > {"response.created", "response.completed"}
        assert stream.get_final_response().output_text == TEXT


async def test_the_asynchronous_python_sdk(wakeful, user):
    async with AsyncOpenAI(base_url=wakeful.base_url, api_key=user.key, max_retries=0, timeout=30) as client:
        stream = await client.chat.completions.create(**ASK, stream=True, extra_headers=SLOW)
        assert "".join([each.choices[0].delta.content or "" async for each in stream if each.choices]) == TEXT


def test_the_node_sdk(node, wakeful, user):
    done = subprocess.run(
        ["node", "client.mjs", "slowStreams", wakeful.base_url],
        cwd=node,
        env=clean_environment(TEAM_KEY=user.key),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    chat, response = json.loads(done.stdout)
    assert chat["text"] == TEXT
    assert chat["usage"]["completion_tokens"] > 0
    assert response == "completed"
