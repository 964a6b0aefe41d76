"""The table of the admin API: complete, and told truly."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import click
import jsonschema
import msgspec
import pytest

import proxy.web.admin
from proxy.cli import main
from proxy.core import registry
from proxy.core.books import Books
from proxy.core.registry import Registry, RegistryError
from proxy.web.admin import errors
from proxy.web.admin.decode import body_of
from proxy.web.admin.description import error_statuses
from proxy.web.admin.operation import PREFIX, Nothing
from proxy.web.admin.table import OPERATIONS, described, find

ELSEWHERE = {
    "serve": "runs the server",
    "check": "reads a file of the machine it is run on",
    "doctor": "examines the machine it is run on",
    "simulate-openai": "runs a server",
    "completion": "is for a shell",
    "metrics": "tells of the version, not of a server",
    "prices check": "reads a file of the machine it is run on",
    "reconcile": "reads files of the machine it is run on",
    "admin token": "whoever could ask for the token would have it",
}
"""Commands that are nothing for a server to do, and why."""


def commands(group, *path):
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from commands(command, *path, name)
        else:
            yield " ".join((*path, name))


def methods_of(port):
    return {name for name, _ in inspect.getmembers(port, inspect.isfunction) if not name.startswith("_")}


def calls_on(name):
    """Methods that the operations call on what they have under this name."""
    found = set()
    for path in Path(proxy.web.admin.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(func=ast.Attribute(value=ast.Name(id=owner), attr=method)) if owner == name:
                    found.add(method)
    return found


def test_every_command_has_an_operation_or_a_reason():
    on_the_command_line = set(commands(main))
    here = {operation.command for operation in OPERATIONS if operation.command}
    assert here <= on_the_command_line
    assert here | ELSEWHERE.keys() == on_the_command_line
    assert not here & ELSEWHERE.keys()


@pytest.mark.parametrize(("name", "port"), [("registry", Registry), ("books", Books)])
def test_every_method_of_a_port_has_an_operation(name, port):
    assert {method for method in calls_on(name) if method.islower()} == methods_of(port)


@pytest.mark.parametrize(
    ("name", "fields"),
    [("addTeam", registry.TeamFields), ("setTeam", registry.TeamChanges), ("issueKey", registry.KeyLimits),
     ("importKeys", registry.KeyLimits), ("setKey", registry.KeyChanges)],
)  # fmt: skip
def test_every_field_of_a_change_can_be_sent(name, fields):
    (operation,) = (operation for operation in OPERATIONS if operation.name == name)
    sent = {errors._AS_THEY_ARE_SENT.get(field, field) for field in fields.__annotations__}
    assert sent <= set(operation.body.__struct_fields__)


def test_nothing_is_there_twice():
    assert len({operation.name for operation in OPERATIONS}) == len(OPERATIONS)
    assert len({(operation.method, operation.path) for operation in OPERATIONS}) == len(OPERATIONS)
    kinds = {kind for operation in OPERATIONS for kind in (operation.params, operation.body, operation.result)}
    assert len({kind.__name__ for kind in kinds}) == len(kinds)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_each_is_found_by_its_path_and_its_parameters_exist(operation):
    path = operation.path
    for name in operation.path_params:
        assert name in operation.params.__struct_fields__
        path = path.replace(f"{{{name}}}", "a%2Fb")
    found = find(operation.method, f"{PREFIX}{path}")
    assert found.operation is operation
    assert found.params == dict.fromkeys(operation.path_params, "a/b")
    assert find("BREW", f"{PREFIX}{path}").operation is None
    assert operation.method in find("BREW", f"{PREFIX}{path}").methods


@pytest.mark.parametrize("path", ["", "/", "/team", "/teams/", "/teams//", "/teams/a/b", "/keys/import/x", "//teams"])
def test_other_paths_lead_nowhere(path):
    found = find("GET", f"{PREFIX}{path}")
    assert (found.operation, found.methods) == (None, ())


def test_a_path_that_is_spelled_out_goes_first():
    assert find("POST", f"{PREFIX}/keys/import").operation.name == "importKeys"
    assert find("GET", f"{PREFIX}/keys/import").methods == ("POST",)


def test_the_description_refers_to_what_is_there():
    document = described()
    schemas = document["components"]["schemas"]

    def walk(value):
        if isinstance(value, dict):
            if "$ref" in value:
                assert value["$ref"].removeprefix("#/components/schemas/") in schemas
            for each in value.values():
                walk(each)
        elif isinstance(value, list):
            for each in value:
                walk(each)

    walk(document)
    assert not [name for name in schemas if name.endswith(("View", "Query", "Path"))]
    assert document["security"] == [{"token": []}]
    assert document["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    for schema in schemas.values():
        jsonschema.Draft202012Validator.check_schema(schema)


def described_operation(operation):
    return described()["paths"][f"{PREFIX}{operation.path}"][operation.method.lower()]


def is_valid(schema, value):
    validator = jsonschema.Draft202012Validator({**schema, "components": described()["components"]})
    return validator.is_valid(value)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_examples_are_what_the_description_says(operation):
    told = described_operation(operation)
    content = told["responses"][str(operation.status)]["content"][operation.media_type]
    assert is_valid(content["schema"], content["example"])
    assert not is_valid(content["schema"], 7), "a schema that takes anything says nothing"
    if operation.body is Nothing:
        assert "requestBody" not in told
        return
    body = told["requestBody"]["content"]["application/json"]
    assert is_valid(body["schema"], body["example"])
    assert not is_valid(body["schema"], {**body["example"], "unheard_of": 1})
    assert isinstance(body_of(operation, msgspec.json.encode(body["example"])), operation.body)
    with pytest.raises(errors.Unprocessable) as refused:
        body_of(operation, msgspec.json.encode({**body["example"], "unheard_of": 1}))
    assert refused.value.param == "unheard_of"


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_every_error_is_described(operation):
    told = {int(status) for status in described_operation(operation)["responses"]}
    assert told == {operation.status, *error_statuses(operation)}
    assert {400, 401, 503} <= told
    assert ({413, 415} <= told) is (operation.body is not Nothing)


def test_every_refusal_has_a_status():
    family = {
        kind
        for _, kind in inspect.getmembers(registry, inspect.isclass)
        if issubclass(kind, RegistryError) and kind is not RegistryError
    }
    assert family <= errors._TABLE.keys()
    assert {errors.status_of(kind) for kind in errors._TABLE} == {404, 409, 422}


def test_what_nobody_foresaw_says_nothing(caplog):
    answer = errors.refusal_of(RuntimeError("sk-tg_secret"))
    assert answer.status == 500
    assert "secret" not in f"{answer} {caplog.text}"


REFUSALS = [
    (registry.TeamUnknown("growth"), 404, "team", "team_not_found"),
    (registry.TeamExists("growth"), 409, "name", "team_exists"),
    (registry.KeyUnknown("0" * 12), 404, None, "key_not_found"),
    (registry.BadName("G"), 422, "name", "invalid_value"),
    (registry.BadValue("label", "no"), 422, "label", "invalid_value"),
    (registry.BadLine(3, "no"), 422, "keys[2]", "invalid_value"),
    (registry.DataUnusable("no"), 409, None, "data_unusable"),
]


@pytest.mark.parametrize(("error", "status", "param", "code"), REFUSALS, ids=lambda case: type(case).__name__)
def test_a_refusal_names_what_it_is_about(error, status, param, code):
    answer = errors.refusal_of(error)
    assert (answer.status, answer.param, answer.code, answer.message) == (status, param, code, str(error))
