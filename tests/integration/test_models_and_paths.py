"""The list of models, cut down to what a caller may use; and every path that leads nowhere."""

from __future__ import annotations

import pytest
import requests

ERROR_KEYS = {"message", "type", "param", "code"}


@pytest.fixture
def get(gateway, session, team):
    def ask(path, by=team, method="GET"):
        return session.request(method, f"{gateway.root}{path}", headers=by.headers if by else {}, timeout=30)

    return ask


def ids(answer):
    assert answer.status_code == 200
    return [model["id"] for model in answer.json()["data"]]


def test_models_are_upstreams_own_words(get, upstream, session):
    straight = session.get(
        f"{upstream.base_url}/models", headers={"Authorization": f"Bearer {upstream.key}"}, timeout=30
    ).json()
    own = {model["id"]: model for model in straight["data"]}
    listed = get("/v1/models").json()
    assert listed["object"] == "list"
    assert listed["data"]
    assert all(model == own[model["id"]] for model in listed["data"])
    assert "gpt-4o-mini" in {model["id"] for model in listed["data"]}


def test_a_team_sees_its_models_alone(get, new_team):
    assert ids(get("/v1/models", new_team(models=frozenset({"gpt-4o", "gpt-none"})))) == ["gpt-4o"]
    assert ids(get("/v1/models", new_team(models=frozenset()))) == []


def test_a_key_sees_its_own_of_its_teams_models(gateway, get, new_team):
    wide = new_team(models=frozenset({"gpt-4o", "gpt-4o-mini"}))
    key = gateway.cli("keys", "issue", "--team", wide.name, "--models", "gpt-4o-mini,gpt-5").strip()
    narrow = type(wide)(wide.name, key, "")
    assert ids(get("/v1/models", narrow)) == ["gpt-4o-mini"]
    assert get("/v1/models/gpt-4o", narrow).status_code == 404
    assert get("/v1/models/gpt-4o", wide).json()["id"] == "gpt-4o"


def test_a_model_that_is_not_there(get):
    answer = get("/v1/models/gpt-none")
    assert answer.status_code == 404
    error = answer.json()["error"]
    assert set(error) == ERROR_KEYS
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", "model", "model_not_found")


def test_models_are_free(get, new_team):
    team = new_team(requests_per_minute=1)
    assert [get("/v1/models", team).status_code for _ in range(3)] == [200, 200, 200]


def test_models_need_a_key(get):
    assert get("/v1/models", None).status_code == 401


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/realtime?model=gpt-realtime", 404, None),
        ("GET", "/openai/realtime?api-version=2024-10-01-preview&deployment=gpt-4o", 404, None),
        ("POST", "/openai/deployments/gpt-4o/nothing", 404, None),
        ("GET", "/openai/deployments/gpt-4o/models", 404, None),
        ("GET", "/openai/deployments", 404, None),
        ("GET", "/v1/models/", 404, None),
        ("POST", "/chat/completions", 404, None),
        ("GET", "/", 404, None),
        ("GET", "/metrics", 404, None),
        ("GET", "/v1/files", 403, "endpoint_not_allowed"),
        ("DELETE", "/v1/files/file-1", 403, "endpoint_not_allowed"),
        ("GET", "/v1/chat/completions/chatcmpl-1", 403, "endpoint_not_allowed"),
        ("POST", "/v1/batches", 403, "endpoint_not_allowed"),
        ("GET", "/v1/organization/users", 403, "endpoint_not_allowed"),
        ("GET", "/openai/files?api-version=2024-10-21", 403, "endpoint_not_allowed"),
        ("POST", "/openai/v1/batches", 403, "endpoint_not_allowed"),
    ],
)
def test_other_paths_end_here_in_openais_shape(get, upstream, method, path, status, code):
    answer = get(path, method=method)
    assert answer.status_code == status
    assert answer.headers["Content-Type"].startswith("application/json")
    error = answer.json()["error"]
    assert set(error) == ERROR_KEYS
    assert (error["type"], error["code"]) == ("invalid_request_error", code)
    assert path.partition("?")[0].removeprefix("/openai").removeprefix("/v1") in error["message"]
    assert answer.headers["x-request-id"].startswith("req_")
    assert upstream.stats()["requests"] == 0


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/embeddings", "POST"),
        ("PUT", "/v1/chat/completions", "POST"),
        ("DELETE", "/v1/responses", "POST"),
        ("OPTIONS", "/v1/chat/completions", "POST"),
        ("HEAD", "/v1/moderations", "POST"),
        ("PATCH", "/openai/deployments/gpt-4o/embeddings", "POST"),
        ("POST", "/v1/models", "GET"),
        ("HEAD", "/v1/models", "GET"),
        ("OPTIONS", "/openai/models?api-version=2024-10-21", "GET"),
        ("DELETE", "/v1/models/gpt-4o", "GET"),
        ("POST", "/v1/tollgate/me", "GET"),
    ],
)
def test_an_open_path_says_which_method_it_takes(get, upstream, method, path, allowed):
    answer = get(path, method=method)
    assert (answer.status_code, answer.headers["Allow"]) == (405, allowed)
    assert answer.headers["Content-Type"].startswith("application/json")
    assert answer.headers["x-request-id"].startswith("req_")
    if method == "HEAD":
        assert answer.content == b""
    else:
        error = answer.json()["error"]
        assert set(error) == ERROR_KEYS
        assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", None, None)
        assert error["message"] == f"Not allowed to {method} on {path.partition('?')[0]}: it takes {allowed}."
    assert upstream.stats()["requests"] == 0


def test_a_path_that_climbs_reaches_nothing(gateway, upstream, team):
    """Sent as it is, unlike what most clients make of it."""
    with requests.Session() as session:
        session.trust_env = False
        for path in ("/v1/chat/completions/../../files", "/v1/%66iles", "/v1//files", "/v1/models/../files"):
            prepared = session.prepare_request(requests.Request("GET", gateway.root, headers=team.headers))
            prepared.url = f"{gateway.root}{path}"
            assert session.send(prepared, timeout=30).status_code in {403, 404}
    assert {record["path"] for record in upstream.stats()["records"]} <= {"/v1/models"}
