"""The description of the admin API (OpenAPI 3.1), made from the table that its routes are made from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

import msgspec

from proxy import __version__
from proxy.web.admin.decode import listed_fields
from proxy.web.admin.desk import Desk
from proxy.web.admin.errors import ErrorView, status_of
from proxy.web.admin.operation import PREFIX, Nothing, Operation

__all__ = ["describing", "document", "error_statuses"]

_SUFFIX = "View"
"""Of the names of types; it says nothing to a client."""
_REFERENCE = "#/components/schemas/"
_ALWAYS = (400, 401, 503)
_WITH_BODY = (413, 415)

Json = dict[str, Any]


def describing(describe: Callable[[], Json]) -> Operation:
    """The operation that serves the description."""

    def handle(_: Desk, __: Nothing, ___: Nothing) -> Json:
        return describe()

    return Operation(
        name="describe",
        method="GET",
        path="/openapi.json",
        summary="Show this description.",
        command="",
        handle=handle,
        result=Json,
        example={"openapi": "3.1.0"},
    )


def document(operations: Sequence[Operation]) -> Json:
    """The whole description."""
    kinds = [kind for operation in operations for kind in (operation.params, operation.body, operation.result)]
    kinds = [kind for kind in kinds if kind not in (Nothing, str, Json)]
    _, components = msgspec.json.schema_components([*kinds, ErrorView], ref_template=f"{_REFERENCE}{{name}}")
    parameters = {
        operation.params: components.get(operation.params.__name__, {}).get("properties", {})
        for operation in operations
    }
    for kind in parameters:
        components.pop(kind.__name__, None)
    paths: Json = {}
    for operation in operations:
        described = _operation(operation, parameters[operation.params])
        paths.setdefault(f"{PREFIX}{operation.path}", {})[operation.method.lower()] = described
    whole = {
        "openapi": "3.1.0",
        "info": {
            "title": "Tollgate admin API",
            "version": __version__,
            "summary": "Teams, keys, prices, and what was used.",
            "description": "What `tollgate` does on the command line. The audit log has each change, by `admin-api`.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/"}],
        "security": [{"token": []}],
        "tags": [{"name": name} for name in dict.fromkeys(map(_tag, operations))],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer", "description": "`tollgate admin token` shows it."}
            },
        },
    }
    shortened: Json = _shortened(whole)
    return shortened


def error_statuses(operation: Operation) -> list[int]:
    """Every status an operation can refuse with."""
    found = {*_ALWAYS, *map(status_of, operation.raises)}
    if operation.body is not Nothing:
        found |= {*_WITH_BODY, 422}
    if operation.params is not Nothing:
        found.add(422)
    return sorted(found)


def _operation(operation: Operation, schemas: Mapping[str, Json]) -> Json:
    described: Json = {
        "operationId": operation.name,
        "summary": operation.summary,
        "tags": [_tag(operation)],
        "parameters": list(_parameters(operation, schemas)),
        "responses": _responses(operation),
    }
    if operation.command:
        described["description"] = f"As `tollgate {operation.command}` does."
    if operation.body is not Nothing:
        content = {"schema": _reference(operation.body), "example": operation.example_body}
        described["requestBody"] = {"required": True, "content": {"application/json": content}}
    return described


def _parameters(operation: Operation, schemas: Mapping[str, Json]) -> Iterable[Json]:
    listed = listed_fields(operation.params)
    for name, schema in schemas.items():
        in_path = name in operation.path_params
        yield {
            "name": name,
            "in": "path" if in_path else "query",
            "required": in_path,
            "schema": {key: value for key, value in schema.items() if key != "description"},
            **({"description": schema["description"]} if "description" in schema else {}),
            **({"style": "form", "explode": False} if name in listed else {}),
        }


def _responses(operation: Operation) -> Json:
    schema = {"type": "string"} if operation.result is str else _reference(operation.result)
    content = {operation.media_type: {"schema": schema, "example": msgspec.to_builtins(operation.example)}}
    responses: Json = {str(operation.status): {"description": HTTPStatus(operation.status).phrase, "content": content}}
    for status in error_statuses(operation):
        responses[str(status)] = {
            "description": HTTPStatus(status).phrase,
            "content": {"application/json": {"schema": _reference(ErrorView)}},
        }
    return responses


def _reference(kind: Any) -> Json:
    return {"type": "object"} if kind is Json else {"$ref": f"{_REFERENCE}{kind.__name__}"}


def _tag(operation: Operation) -> str:
    return operation.path.strip("/").replace(".", "/").split("/")[0]


def _shortened(value: Any) -> Any:
    """The same with the types named as a client would name them."""
    if isinstance(value, list):
        return [_shortened(each) for each in value]
    if not isinstance(value, dict):
        return value
    told = {}
    for key, each in value.items():
        if key in ("$ref", "title") and isinstance(each, str):
            told[key] = each.removesuffix(_SUFFIX)
        else:
            told[key.removesuffix(_SUFFIX) if isinstance(each, dict) else key] = _shortened(each)
    return told
