"""The smallest JSON value that a JSON Schema takes, for tool arguments and structured output."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["Json", "instance"]

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]
_DEPTH = 16


def instance(schema: object, root: object = None, depth: int = 0) -> Json:
    """A value for `schema`: every property is there, strings say `text`, lists are as short as allowed.

    Takes `$ref` within the document, `enum`, `const`, `anyOf`, `oneOf`, `allOf` (each by its first branch) and the
    types; other keywords (patterns, ranges) are not looked at. Deeper than 16 levels everything is null.
    """
    if not isinstance(schema, Mapping) or depth > _DEPTH:
        return None
    root = schema if root is None else root
    if isinstance(reference := schema.get("$ref"), str):
        return instance(_resolve(reference, root), root, depth + 1)
    if "const" in schema:
        return _json(schema["const"])
    for keyword in ("enum", "anyOf", "oneOf", "allOf"):
        if isinstance(branches := schema.get(keyword), list) and branches:
            return _json(branches[0]) if keyword == "enum" else instance(branches[0], root, depth + 1)
    return _of_type(schema, root, depth)


def _of_type(schema: Mapping[str, object], root: object, depth: int) -> Json:
    kind = schema.get("type", "object" if "properties" in schema else None)
    if isinstance(kind, list):
        kind = kind[0] if kind else None
    if kind == "object":
        properties = schema.get("properties")
        items = properties.items() if isinstance(properties, Mapping) else ()
        return {str(name): instance(value, root, depth + 1) for name, value in items}
    if kind == "array":
        least = schema.get("minItems")
        count = min(least, 100) if isinstance(least, int) else 0
        return [instance(schema.get("items"), root, depth + 1) for _ in range(count)]
    scalars: dict[object, Json] = {"string": "text", "integer": 1, "number": 1.5, "boolean": True}
    return scalars.get(kind)


def _resolve(reference: str, root: object) -> object:
    found = root
    for step in reference.removeprefix("#").split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def _json(value: object) -> Json:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list):
        return [_json(entry) for entry in value]
    if isinstance(value, Mapping):
        return {str(name): _json(entry) for name, entry in value.items()}
    return None
