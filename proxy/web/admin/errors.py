"""What the admin API answers to what an operation is refused with, in OpenAI's shape; one table."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from proxy.core import registry
from proxy.core.errors import TollgateError
from proxy.web.errors import ErrorAnswer, answer_of, fault

__all__ = ["NOT_ADMITTED", "ErrorView", "Unprocessable", "refusal_of", "status_of"]

NOT_ADMITTED = ErrorAnswer(
    401,
    "The admin API takes its own token: 'Authorization: Bearer tga_...'. `tollgate admin token` shows it.",
    code="invalid_admin_token",
    headers=(("WWW-Authenticate", "Bearer"),),
)


class ErrorDetailView(msgspec.Struct, frozen=True, kw_only=True):
    """What is wrong."""

    message: str
    type: Annotated[str, Meta(examples=["invalid_request_error"])]
    param: Annotated[str | None, Meta(description="The parameter or member it is about.")]
    code: Annotated[str | None, Meta(examples=["team_not_found"])]


class ErrorView(msgspec.Struct, frozen=True, kw_only=True):
    """An error, in the shape of OpenAI's."""

    error: ErrorDetailView


class Unprocessable(registry.RegistryError):
    """Well-formed, and not what the operation takes."""

    def __init__(self, message: str, param: str | None) -> None:
        super().__init__(message)
        self.param = param


Where = Literal["", "team", "name", "field", "line", "param"]

_TABLE: dict[type[registry.RegistryError], tuple[int, str, Where]] = {
    registry.TeamExists: (409, "team_exists", "name"),
    registry.TeamUnknown: (404, "team_not_found", "team"),
    registry.KeyUnknown: (404, "key_not_found", ""),
    registry.BadName: (422, "invalid_value", "name"),
    registry.BadValue: (422, "invalid_value", "field"),
    registry.BadLine: (422, "invalid_value", "line"),
    registry.DataUnusable: (409, "data_unusable", ""),
    Unprocessable: (422, "invalid_value", "param"),
}
"""Status, code, and where to find what the error is about."""


_AS_THEY_ARE_SENT = {
    "allow_stateful": "stateful",
    "cache_mode": "cache",
    "expires_at_ms": "expires",
    "kid": "key_id",
    "overlap_ms": "overlap_seconds",
    "pepper": "version",
}
"""Fields of the registry that have another name and form here."""


def refusal_of(error: Exception) -> ErrorAnswer:
    """What is answered to an error; one that nobody foresaw is a fault of ours."""
    if isinstance(error, TollgateError):
        return answer_of(error)
    if isinstance(error, registry.BadValue):
        error = registry.BadValue(_AS_THEY_ARE_SENT.get(error.field, error.field), error.reason)
    for kind in type(error).__mro__:
        if kind in _TABLE:
            status, code, where = _TABLE[kind]
            return ErrorAnswer(status, str(error), param=_param(error, where), code=code)
    return fault(error)


def status_of(kind: type[registry.RegistryError]) -> int:
    """The status a kind of error is answered with."""
    return _TABLE[kind][0]


def _param(error: Exception, where: Where) -> str | None:
    match where:
        case "field":
            return str(getattr(error, "field", "")) or None
        case "line":
            return f"keys[{getattr(error, 'line', 1) - 1}]"
        case "param":
            return getattr(error, "param", None)
        case _:
            return where or None
