"""Azure clients of the official SDK, told nothing but an endpoint and a key; and what speaks their form without it."""

from __future__ import annotations

import json
import subprocess
from itertools import count

import openai
import pytest
from openai import AsyncAzureOpenAI, AzureOpenAI, OpenAI

from tests.support.tollgate_process import clean_environment

MODEL = "gpt-4o-mini"
VERSION = "2024-10-21"
MESSAGES = [{"role": "user", "content": "echo:through another door"}]
REQUEST = {"model": MODEL, "messages": MESSAGES}
_questions = count()


def plain(client):
    return client.chat.completions.create(model=MODEL, messages=MESSAGES)


def places(gateway):
    """Every way to tell an Azure client where the gateway is."""
    return {
        "endpoint": {"azure_endpoint": gateway.root},
        "endpoint with a slash": {"azure_endpoint": f"{gateway.root}/"},
        "deployment": {"azure_endpoint": gateway.root, "azure_deployment": MODEL},
        "base URL": {"base_url": gateway.base_url},
        "base URL of Azure's": {"base_url": f"{gateway.root}/openai"},
        "base URL of its newer API": {"base_url": f"{gateway.root}/openai/v1"},
        "base URL with a deployment": {"base_url": f"{gateway.root}/openai/deployments/{MODEL}"},
    }


PLACES = ["endpoint", "endpoint with a slash", "deployment", "base URL", "base URL of Azure's",
          "base URL of its newer API", "base URL with a deployment"]  # fmt: skip


@pytest.fixture
def azure(gateway, team):
    clients = []

    def client(place="endpoint", **more):
        options = {"api_key": team.key, "api_version": VERSION, "max_retries": 0, "timeout": 30} | more
        clients.append(AzureOpenAI(**places(gateway)[place], **options))
        return clients[-1]

    yield client
    for each in clients:
        each.close()


@pytest.mark.parametrize("place", PLACES)
def test_a_conversation_plain_and_streamed(azure, upstream, straight, place):
    client = azure(place)
    answer = plain(client)
    own = plain(straight)
    assert answer.choices[0].message.content == own.choices[0].message.content == "through another door"
    assert answer.usage == own.usage
    assert answer._request_id.startswith("req_")
    with client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True) as stream:
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    assert text == "through another door"
    for record in upstream.idle_stats()["records"]:
        assert (record["path"], record["query"]) == ("/v1/chat/completions", "")
    sent = upstream.last_headers()
    assert "api-key" not in sent
    assert sent["authorization"] == upstream.key_digest


@pytest.mark.parametrize("place", ["endpoint", "base URL", "base URL of its newer API"])
def test_the_other_endpoints(azure, upstream, straight, place):
    client = azure(place)
    embedded = client.embeddings.create(model="text-embedding-3-small", input=["one", "two"])
    assert embedded == straight.embeddings.create(model="text-embedding-3-small", input=["one", "two"])
    completed = client.completions.create(model="gpt-3.5-turbo-instruct", prompt="echo:x", max_tokens=5)
    assert completed.choices[0].text
    responded = client.responses.create(model=MODEL, input="echo:a response")
    assert responded.output_text == "a response"
    with client.responses.create(model=MODEL, input="echo:a response", stream=True) as stream:
        assert [event.type for event in stream][-1] == "response.completed"
    assert MODEL in {model.id for model in client.models.list()}
    assert client.models.retrieve(MODEL).id == MODEL
    assert {record["query"] for record in upstream.idle_stats()["records"]} == {""}


@pytest.mark.parametrize("place", ["endpoint", "base URL of its newer API"])
def test_media_and_what_is_kept_upstream(azure, new_team, upstream, place):
    client = azure(place, api_key=new_team(allow_stateful=True).key)
    assert client.images.generate(model="gpt-image-1", prompt="a lock").data
    heard = client.audio.transcriptions.create(model="whisper-1", file=("a.wav", b"RIFF0000WAVE"))
    assert heard.text
    assert client.audio.speech.create(model="tts-1", voice="alloy", input="x").content
    kept = client.files.create(file=("a.jsonl", b"{}\n"), purpose="batch")
    assert client.files.retrieve(kept.id).id == kept.id
    assert client.files.delete(kept.id).deleted
    paths = [record["path"] for record in upstream.idle_stats()["records"]]
    assert paths[:4] == ["/v1/images/generations", "/v1/audio/transcriptions", "/v1/audio/speech", "/v1/files"]
    assert {record["query"] for record in upstream.stats()["records"]} == {""}


async def test_asynchronously_and_with_a_bearer_token(gateway, team):
    place = {"azure_endpoint": gateway.root, "api_version": VERSION, "max_retries": 0, "timeout": 30}
    for credentials in ({"api_key": team.key}, {"azure_ad_token": team.key}):
        async with AsyncAzureOpenAI(**place, **credentials) as client:
            answer = await client.chat.completions.create(model=MODEL, messages=MESSAGES)
            assert answer.choices[0].message.content == "through another door"


def test_from_node(node, gateway, team, upstream):
    done = subprocess.run(
        ["node", "client.mjs", "azure", gateway.base_url],
        cwd=node,
        env=clean_environment(TEAM_KEY=team.key),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    text = "žluť 🦔, and the lock next to it?"
    refused = ["AuthenticationError", 401, "invalid_api_key"]
    assert json.loads(done.stdout) == {"plain": text, "text": text, "embedded": 1, "refused": refused}
    records = upstream.idle_stats()["records"]
    assert [(record["path"], record["query"]) for record in records] == [
        ("/v1/chat/completions", ""),
        ("/v1/chat/completions", ""),
        ("/v1/embeddings", ""),
    ]


def test_options_that_are_changed_on_the_way(gateway, azure, new_team):
    client = azure()
    other = new_team(models=frozenset({MODEL}))
    changed = client.with_options(api_key=other.key, default_headers={"x-mine": "1"}, timeout=20)
    request_id = changed.chat.completions.with_raw_response.create(**REQUEST).headers["x-request-id"]
    assert gateway.logged(request_id)["team"] == other.name
    with OpenAI(base_url=gateway.base_url, api_key="sk-tg_nobody", max_retries=0, timeout=30) as plain_client:
        raw = plain_client.with_options(api_key=other.key).chat.completions.with_raw_response.create(**REQUEST)
        assert gateway.logged(raw.headers["x-request-id"])["team"] == other.name
        newer = plain_client.with_options(api_key=other.key, base_url=f"{gateway.root}/openai/v1/")
        assert plain(newer).choices[0].message.content == "through another door"


def test_it_is_the_same_request_for_limits_cache_and_ledger(gateway, azure, team, upstream):
    asked = {**REQUEST, "temperature": 0, "messages": [{"role": "user", "content": f"echo:azure {next(_questions)}"}]}
    first = azure().chat.completions.with_raw_response.create(**asked)
    with OpenAI(base_url=gateway.base_url, api_key=team.key, max_retries=0, timeout=30) as client:
        second = client.chat.completions.with_raw_response.create(**asked)
    assert (first.headers["x-tollgate-cache"], second.headers["x-tollgate-cache"]) == ("miss", "hit")
    assert first.text == second.text
    assert upstream.idle_stats()["requests"] == 1
    events = gateway.events(team.name, 2)
    assert {(event["model"], event["endpoint"]) for event in events} == {(MODEL, "chat")}


def test_a_deployment_is_the_model_where_the_body_names_none(gateway, team, session, upstream):
    url = f"{gateway.root}/openai/deployments/{MODEL}/chat/completions?api-version={VERSION}&trace=1"
    body = b'{ "messages": [{"role":"user","content":"echo:bare"}],  "x": 1.50}'
    headers = {"api-key": team.key, "Content-Type": "application/json"}
    answer = session.post(url, data=body, headers=headers, timeout=30)
    assert answer.json()["choices"][0]["message"]["content"] == "bare"
    assert upstream.last_body() == body.replace(b"{", b'{"model":"%s",' % MODEL.encode(), 1)
    assert upstream.idle_stats()["records"][-1]["query"] == "trace=1"
    (event,) = gateway.events(team.name, 1)
    assert event["model"] == MODEL
    streamed = session.post(url, json={"messages": MESSAGES, "stream": True}, headers=headers, timeout=30)
    assert streamed.content.endswith(b"data: [DONE]\n\n")


def test_a_body_that_names_another_model_is_refused(azure, upstream):
    with pytest.raises(openai.BadRequestError) as refused:
        azure("deployment").chat.completions.create(model="gpt-4o", messages=MESSAGES)
    error = refused.value
    assert (error.param, error.code, error.type) == ("model", None, "invalid_request_error")
    assert MODEL in error.message
    assert "gpt-4o" in error.message
    assert upstream.idle_stats()["requests"] == 0


def test_errors_have_the_shape_the_sdk_reads(azure, new_team, upstream):
    with pytest.raises(openai.AuthenticationError) as refused:
        plain(azure(api_key="sk-tg_0a1B2c3D4e5F_nothing"))
    assert (refused.value.status_code, refused.value.code) == (401, "invalid_api_key")
    narrow = new_team(models=frozenset({"gpt-4o"}))
    with pytest.raises(openai.NotFoundError) as unknown:
        plain(azure(api_key=narrow.key))
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError):
        azure().post("/deployments/gpt-4o/nothing", cast_to=object, body={})
    with pytest.raises(openai.PermissionDeniedError) as closed:
        azure().files.list()
    assert closed.value.code == "endpoint_not_allowed"
    limited = new_team(requests_per_minute=1)
    plain(azure(api_key=limited.key))
    with pytest.raises(openai.RateLimitError) as too_many:
        plain(azure(api_key=limited.key))
    assert int(too_many.value.response.headers["retry-after-ms"]) > 0
    assert upstream.idle_stats()["requests"] == 1


@pytest.mark.parametrize("header", [{}, {"api-key": ""}, {"Authorization": "Basic x", "api-key": "k"}])
def test_no_key_is_told_apart_from_a_wrong_one(gateway, session, header):
    url = f"{gateway.root}/openai/deployments/{MODEL}/chat/completions?api-version={VERSION}"
    answer = session.post(url, data=json.dumps(REQUEST), headers=header, timeout=30)
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] is None
    assert answer.headers["x-request-id"].startswith("req_")
