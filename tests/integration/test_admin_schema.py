"""Requests made from the admin API's own description, right ones and wrong ones, against a real server."""

from __future__ import annotations

import json
from copy import deepcopy

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    ignored_auth,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from proxy.web.admin.table import OPERATIONS, described
from tests.support.tollgate_process import Tollgate, run_tollgate

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
    negative_data_rejection,
]
MODES = {"right": GenerationMode.POSITIVE, "wrong": GenerationMode.NEGATIVE}
EXAMPLES = 12
NEVER_TAKEN = {"retirePepper"}
"""It takes a pepper that nobody needs."""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    with run_tollgate(tmp_path_factory.mktemp("schema"), "http://127.0.0.1:9/v1", "sk-nobody") as running:
        yield running


@pytest.fixture(scope="module")
def session(gateway: Tollgate):
    with requests.Session() as session:
        session.trust_env = False
        session.headers["Authorization"] = f"Bearer {(gateway.data_dir / 'admin_token').read_text().strip()}"
        yield session


@pytest.fixture(scope="module")
def team(gateway: Tollgate):
    return gateway.add_team("growth").name


@pytest.fixture
def there(gateway: Tollgate, team: str):
    """What the parameters of paths can name; a key of each test's own, for some of them revoke it."""
    issued = json.loads(gateway.cli("keys", "issue", "--team", team, "--json"))
    return {"team": team, "key_id": issued["id"], "model": "gpt-5", "version": 1}


# What is made of it may be changed in place.
SCHEMA = schemathesis.openapi.from_dict(deepcopy(described()))


def operation_of(name):
    return next(found.ok() for found in SCHEMA.get_all_operations() if found.ok().definition.raw["operationId"] == name)


def requests_of(name, mode, there):
    """Requests with parameters as they come, and with those that lead to something."""
    operation = operation_of(name)
    known = {each: there[each] for each in next(op for op in OPERATIONS if op.name == name).path_params}
    strategies = [operation.as_strategy(mode)]
    if known:
        strategies.append(operation.as_strategy(mode, path_parameters=known))
    if mode is GenerationMode.POSITIVE:
        strategies.append(operation.as_strategy(mode).map(lambda case: of_team(case, there["team"])))
    return st.one_of(strategies)


def example_of(name, there):
    """The request that the description shows."""
    operation, described_by = operation_of(name), next(op for op in OPERATIONS if op.name == name)
    known = {each: there[each] for each in described_by.path_params}
    if described_by.example_body is None:
        return operation.Case(path_parameters=known)
    return operation.Case(path_parameters=known, body=described_by.example_body, media_type="application/json")


def of_team(case, team):
    """The same request for a team that is there."""
    for part in (case.body, case.query):
        if isinstance(part, dict) and "team" in part:
            part["team"] = team
    return case


def has_wrong_requests(name):
    operation = next(op for op in OPERATIONS if op.name == name)
    return operation.params.__struct_fields__ or operation.body.__struct_fields__


CASES = [
    (operation.name, mode)
    for operation in OPERATIONS
    for mode in MODES
    if mode == "right" or has_wrong_requests(operation.name)
]


@pytest.mark.parametrize(("name", "mode"), CASES, ids=[f"{name}-{mode}" for name, mode in CASES])
def test_it_answers_as_it_says(gateway, session, there, name, mode):
    seen = set()

    @given(case=requests_of(name, MODES[mode], there))
    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    def explore(case):
        response = case.call(base_url=gateway.operations_url, session=session)
        seen.add(response.status_code)
        case.validate_response(response, checks=CHECKS)

    explore()
    if mode == "right" and name not in NEVER_TAKEN:
        case = example_of(name, there)
        response = case.call(base_url=gateway.operations_url, session=session)
        case.validate_response(response, checks=CHECKS[:-1])
        assert {200, 201} & {response.status_code, *seen}, "some requests are taken"


@pytest.mark.parametrize("name", [operation.name for operation in OPERATIONS])
def test_nobody_is_let_in_without_the_token(gateway, session, there, name):
    @given(case=requests_of(name, GenerationMode.POSITIVE, there))
    @settings(max_examples=1, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    def explore(case):
        with requests.Session() as stranger:
            stranger.trust_env = False
            response = case.call(base_url=gateway.operations_url, session=stranger)
        assert response.status_code == 401
        case.validate_response(response, checks=CHECKS[:-1])
        response = case.call(base_url=gateway.operations_url, session=session)
        case.validate_response(response, checks=[ignored_auth])

    explore()


def test_what_is_served_is_what_was_tried(gateway, session):
    served = session.get(f"{gateway.operations_url}/admin/v1/openapi.json", timeout=10)
    assert served.json() == described()
    assert {found.ok().definition.raw["operationId"] for found in SCHEMA.get_all_operations()} == {
        operation.name for operation in OPERATIONS
    }
