"""What a client sent, read strictly: what is not known is refused, and named."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import parse_qsl, unquote

import msgspec
from msgspec import inspect

from proxy.core.errors import InvalidRequest
from proxy.core.strict_json import parse_object
from proxy.web.admin.errors import Unprocessable
from proxy.web.admin.operation import Nothing, Operation, Strict

__all__ = ["body_of", "listed_fields", "params_of", "segment"]

_MAX_PARAMETERS = 20
_SHOWN_CHARACTERS = 300
_PLACE = re.compile(r" - at `\$\.?(.*?)`$", re.DOTALL)
_MEMBER = re.compile(r"(?:unknown|required) field `(.*?)`", re.DOTALL)


def params_of(operation: Operation, path: dict[str, str], query: str) -> Strict:
    """Parameters of the path and of the query. Raises `InvalidRequest`, `Unprocessable`."""
    found: dict[str, Any] = {}
    for name, text in _pairs(query):
        if name in operation.path_params or name in found:
            raise InvalidRequest(f"The parameter {name[:64]!r} is given twice.", param=name[:64])
        found[name] = text
    for name in listed_fields(operation.params):
        if name in found:
            found[name] = [each.strip() for each in found[name].split(",") if each.strip()]
    return _converted({**found, **path}, operation.params, strict=False)


def body_of(operation: Operation, content: bytes) -> Strict:
    """The body. Raises `InvalidRequest`, `Unprocessable`."""
    if operation.body is Nothing:
        return Nothing()
    return _converted(parse_object(content), operation.body, strict=True)


def segment(text: str) -> str:
    """A part of a path, decoded. Raises `InvalidRequest`."""
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise InvalidRequest("The path is not UTF-8.") from None


def listed_fields(params: type[Strict]) -> tuple[str, ...]:
    """Parameters with several values, which commas stand between."""
    kind = inspect.type_info(params)
    fields = kind.fields if isinstance(kind, inspect.StructType) else ()
    return tuple(each.encode_name for each in fields if isinstance(_bare(each.type), inspect.ListType))


def _bare(kind: inspect.Type) -> inspect.Type:
    return _bare(kind.type) if isinstance(kind, inspect.Metadata) else kind


def _pairs(query: str) -> list[tuple[str, str]]:
    try:
        return parse_qsl(query, keep_blank_values=True, errors="strict", max_num_fields=_MAX_PARAMETERS)
    except UnicodeDecodeError:
        raise InvalidRequest("The query is not UTF-8.") from None
    except ValueError:
        raise InvalidRequest(f"The query has more than {_MAX_PARAMETERS} parameters.") from None


def _converted(value: dict[str, Any], kind: type[Strict], *, strict: bool) -> Strict:
    try:
        return msgspec.convert(value, kind, strict=strict)
    except msgspec.ValidationError as error:
        text = str(error)
        place = _PLACE.search(text)
        member = _MEMBER.search(text)
        steps = [found[1] for found in (place, member) if found and found[1]]
        raise Unprocessable(_PLACE.sub("", text)[:_SHOWN_CHARACTERS], ".".join(steps)[:64] or None) from None
