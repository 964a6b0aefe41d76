"""The official Node SDK, told nothing but another base URL and key."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace

import pytest

from tests.support.tollgate_process import clean_environment

TEXT = "žluť 🦔, and the lock next to it?"


@pytest.fixture
def run(node, gateway, team):
    def scenario(name, by=team, base_url=gateway.base_url):
        done = subprocess.run(
            ["node", "client.mjs", name, base_url],
            cwd=node,
            env=clean_environment(TEAM_KEY=by.key),
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return scenario


def test_a_conversation(run, new_team):
    seen = run("plain", new_team("free"))
    assert seen["text"] == TEXT
    assert seen["usage"]["total_tokens"] == seen["usage"]["prompt_tokens"] + seen["usage"]["completion_tokens"]
    assert seen["requestId"] == seen["headers"]["x-request-id"]
    assert seen["headers"]["x-ratelimit-limit-requests"] == "20"
    assert seen["headers"]["x-ratelimit-remaining-requests"] == "19"
    assert seen["headers"]["cache-status"] == "tollgate; fwd=bypass; detail=temperature"


def test_a_stream(run):
    assert run("stream") == {"text": TEXT, "usage": None, "emptyChunks": 0}


def test_a_stream_with_usage(run):
    seen = run("streamWithUsage")
    assert (seen["text"], seen["emptyChunks"]) == (TEXT, 1)
    assert seen["usage"]["completion_tokens"] == -(-len(TEXT) // 4)


def test_a_tool_call_through_the_stream_helper(run):
    function = run("tools")
    assert function["name"] == "depth_of"
    assert json.loads(function["arguments"]) == {"basin": "text"}


def test_models(run, new_team):
    models = frozenset({"gpt-4o-mini", "gpt-4o"})
    assert run("models", new_team(models=models)) == {"ids": ["gpt-4o", "gpt-4o-mini"], "one": "gpt-4o-mini"}


def test_errors_become_the_sdks_own(run):
    seen = run("errors")
    assert seen["authentication"] == ["AuthenticationError", 401, "invalid_api_key"]
    assert seen["notFound"] == ["NotFoundError", 404, "model_not_found"]
    assert seen["badRequest"] == ["BadRequestError", 400, "decimal_above_max_value"]
    assert seen["internal"][:2] == ["InternalServerError", 500]
    assert seen["permission"] == ["PermissionDeniedError", 403, "endpoint_not_allowed"]
    assert seen["brokenStream"][0] == "APIError"


@pytest.mark.parametrize("scenario", ["embeddings", "moderations", "completions", "responses"])
def test_other_endpoints_are_upstreams_own(run, simulator, team, scenario):
    through = run(scenario)
    assert through == run(scenario, replace(team, key=simulator.key), simulator.base_url)
    assert through["usage" if scenario != "moderations" else "results"]


def test_responses(run):
    seen = run("responses")
    assert seen["texts"] == [TEXT, TEXT]
    assert seen["kinds"][-1] == "response.completed"


def test_errors_of_responses_become_the_sdks_own(run):
    seen = run("responseErrors")
    assert seen["state"] == ["PermissionDeniedError", 403, "endpoint_not_allowed"]
    assert seen["kept"] == ["PermissionDeniedError", 403, "endpoint_not_allowed"]
    assert seen["badRequest"] == ["BadRequestError", 400, "integer_below_min_value"]
    assert seen["brokenStream"] != "no error"


def test_it_waits_as_long_as_it_is_told_and_no_longer(run, new_team):
    one_each_half_second = new_team(requests_per_minute=120, request_capacity=1)
    seen = run("limited", one_each_half_second)
    assert seen["impatient"] == ["RateLimitError", 429, "rate_limit_exceeded"]
    assert seen["text"] == TEXT
