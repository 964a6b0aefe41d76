"""Official SDKs, old and new, cannot tell the gateway from upstream: every open endpoint, and errors of every kind."""

from __future__ import annotations

import json
import subprocess

import pytest

from proxy.core.kinds import KINDS
from tests.support.sdk_versions import SDKS, sdk_of
from tests.support.tollgate_process import ROOT, clean_environment, eventually

pytestmark = pytest.mark.timeout(300)

UNPRICED = '"chatgpt-4o-latest"'
RAISED = {
    400: "BadRequestError",
    403: "PermissionDeniedError",
    404: "NotFoundError",
    409: "ConflictError",
    422: "UnprocessableEntityError",
    429: "RateLimitError",
    500: "InternalServerError",
    503: "InternalServerError",
}
LOCKS = {"1": "sdks/openai-1.txt", "2": "sdks/openai-2.txt", "newest": "requirements.lock"}


@pytest.fixture
def ask(gateway, upstream, new_team):
    """Run a table of cases at upstream itself and through the gateway, for a team that may keep things there."""

    def run(command, cwd, **environment):
        team = new_team(allow_stateful=True)
        places = [[upstream.base_url, upstream.key], [gateway.base_url, team.key]]
        done = subprocess.run(
            [*command, json.dumps(places)],
            cwd=cwd,
            env=clean_environment(RESET_URL=f"{upstream.root}/simulator/reset", **environment),
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        # No open endpoint is left out.
        eventually(lambda: {event["endpoint"] for event in gateway.events(team.name, 1)} >= KINDS.keys(), what="all")
        return json.loads(done.stdout)

    return run


def differing(straight, through):
    """What is not the same at both; of models, the gateway shows those that have a price."""
    straight = {**straight, "models": [model for model in straight["models"] if UNPRICED not in json.dumps(model)]}
    return {name: (straight[name], through[name]) for name in straight if straight[name] != through[name]}


@pytest.mark.parametrize("generation", LOCKS)
def test_the_python_sdk(ask, generation):
    sdk = sdk_of(generation)
    told = ask([*sdk.python, "cases.py"], SDKS, **sdk.environment)
    assert f"\nopenai=={told['version']} " in (ROOT / "tests" / LOCKS[generation]).read_text()
    straight, through = told["seen"]
    assert straight["sync"].keys() == through["async"].keys()
    assert len(straight["sync"]) > 70
    assert differing(straight["sync"], through["sync"]) == {}
    assert differing(straight["async"], through["async"]) == {}
    assert differing(through["sync"], through["async"]) == {}
    holds_water(through["sync"])


def test_the_node_sdk(ask, node):
    straight, through = ask(["node", "cases.mjs"], node)["seen"]
    assert len(through) > 50
    assert differing(straight, through) == {}
    kinds = {name: case["raised"] for name, case in through.items() if isinstance(case, dict) and "raised" in case}
    assert kinds == {
        "stranger": "AuthenticationError",
        "noSuchModel": "NotFoundError",
        "noSuchFile": "NotFoundError",
        "noSuchSize": "BadRequestError",
        "errorInAStream": "APIError",
        "tooLate": "APIConnectionTimeoutError",
        **{f"status{status}{form}": kind for status, kind in RAISED.items() for form in ("", "Stream")},
    }


def holds_water(seen):
    """That two places agree says little where both refuse: what must be an answer is one, and what must fail fails."""
    raised = {name: case["raised"] for name, case in seen.items() if isinstance(case, dict) and "raised" in case}
    assert raised == {
        "stranger": "AuthenticationError",
        **dict.fromkeys(("no_such_model", "no_such_model_to_look_at", "no_such_path"), "NotFoundError"),
        **dict.fromkeys(("no_such_file", "no_such_response"), "NotFoundError"),
        **dict.fromkeys(("missing", "an_empty_file", "no_such_size", "no_such_form"), "BadRequestError"),
        **{f"status_{status}{form}": kind for status, kind in RAISED.items() for form in ("", "_stream")},
        "quota": "RateLimitError",
        "error_in_a_stream": "APIError",
        "too_late": "APITimeoutError",
    }
