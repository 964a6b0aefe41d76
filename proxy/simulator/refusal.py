"""Error answers in OpenAI's shape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

__all__ = ["Refusal", "error_body", "error_fields", "of_status"]


@dataclass(eq=False)
class Refusal(Exception):
    """An error answer: status, the four fields of its body, headers of its own."""

    status: int
    message: str
    type: str = "invalid_request_error"
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def body(self) -> bytes:
        """The JSON body."""
        return error_body(self.message, self.type, self.param, self.code)


# Types and codes as OpenAI documents them for each status.
_KINDS: dict[int, tuple[str, str | None]] = {
    401: ("invalid_request_error", "invalid_api_key"),
    403: ("invalid_request_error", "unsupported_country_region_territory"),
    404: ("invalid_request_error", "model_not_found"),
    429: ("requests", "rate_limit_exceeded"),
    503: ("service_unavailable_error", "server_is_overloaded"),
}


# Codes that come with a type of their own.
_TYPES = {"insufficient_quota": "insufficient_quota"}


def of_status(status: int, headers: Mapping[str, str] | None = None, code: str | None = None) -> Refusal:
    """The refusal that is typical of a status; `code` takes the place of the code that is."""
    kind, usual = _KINDS.get(status, ("server_error" if status >= 500 else "invalid_request_error", None))
    kind, code = _TYPES.get(code or "", kind), code or usual
    return Refusal(status, f"Simulated error with status {status}.", kind, None, code, headers or {})


def error_fields(message: str, kind: str, param: str | None = None, code: str | None = None) -> dict[str, str | None]:
    """`message`, `type`, `param` and `code`, all four always there."""
    return {"message": message, "type": kind, "param": param, "code": code}


def error_body(message: str, kind: str, param: str | None = None, code: str | None = None) -> bytes:
    """`{"error": {message, type, param, code}}`."""
    return msgspec.json.encode({"error": error_fields(message, kind, param, code)})
