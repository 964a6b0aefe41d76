"""What an operation of the admin API is: one line of the table that the routes and their description are made from."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from proxy.core.names import MAX_LABEL_CHARACTERS, MAX_MODEL_CHARACTERS, MAX_MODELS
from proxy.core.registry import RegistryError
from proxy.core.tiers import LARGEST_LIMIT
from proxy.web.admin.desk import Desk

__all__ = [
    "MAX_BODY_BYTES",
    "PREFIX",
    "KeyId",
    "Label",
    "Limit",
    "ModelName",
    "ModelNames",
    "Moment",
    "Nothing",
    "Operation",
    "PageSize",
    "Strict",
    "TeamName",
    "TierName",
    "given",
    "model_set",
    "moment_ms",
    "or_none",
]

PREFIX = "/admin/v1"
MAX_BODY_BYTES = 1024 * 1024

TeamName = Annotated[
    str, Meta(pattern="^[a-z0-9][a-z0-9._-]{0,62}$", description="Name of a team.", examples=["growth"])
]
TierName = Annotated[str, Meta(pattern="^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$", examples=["payg"])]
KeyId = Annotated[
    str,
    Meta(
        pattern="^(sk-tg_)?[0-9A-Za-z]{12}$",
        description="Id of a key, or its beginning `sk-tg_<id>`; never the whole key.",
        examples=["0a1B2c3D4e5F"],
    ),
]
Label = Annotated[str, Meta(max_length=MAX_LABEL_CHARACTERS, description="What it is for, for people.")]
ModelName = Annotated[str, Meta(min_length=1, max_length=MAX_MODEL_CHARACTERS, examples=["gpt-5-mini"])]
ModelNames = Annotated[list[ModelName], Meta(max_length=MAX_MODELS)]
Limit = Annotated[int, Meta(ge=1, le=LARGEST_LIMIT)]
Moment = Annotated[datetime, Meta(tz=True, description="RFC 3339, with an offset.", examples=["2027-01-01T00:00:00Z"])]
PageSize = Annotated[int, Meta(ge=1, le=1_000, description="At most so many.")]


class Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a client sends; a member that is not known is refused."""


class Nothing(Strict, frozen=True, kw_only=True):
    """No parameters, or no body."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path."""

    name: str
    """The `operationId`."""
    method: str
    path: str
    """Below `PREFIX`, with its parameters in braces."""
    summary: str
    command: str
    """The command that does the same, without `tollgate`; empty where there is none."""
    handle: Callable[[Desk, Any, Any], Any]
    """Takes the desk, the parameters and the body, on a thread of its own; returns a `result`."""
    result: Any
    """Type of what is returned."""
    example: object
    """A result."""
    params: type[Strict] = Nothing
    """Parameters of the path and of the query, by name."""
    body: type[Strict] = Nothing
    example_body: object = None
    status: int = 200
    raises: tuple[type[RegistryError], ...] = ()
    """Beside those of decoding, and a store that is away."""
    media_type: str = "application/json"
    max_body_bytes: int = MAX_BODY_BYTES
    is_long: bool = False
    """Whether it may take minutes."""
    path_params: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "path_params", tuple(re.findall(r"\{(\w+)\}", self.path)))


def given(record: msgspec.Struct, *names: str) -> dict[str, Any]:
    """The members of a body that were given, of those named."""
    return {name: value for name in names if (value := getattr(record, name)) is not UNSET}


def or_none(value: Any) -> Any:
    """The value, None when it was not given."""
    return None if value is UNSET else value


def model_set(models: list[str] | UnsetType | None) -> frozenset[str] | None:
    """Names of models as the registry takes them; None is every model."""
    return None if models is None or isinstance(models, UnsetType) else frozenset(models)


def moment_ms(moment: datetime | UnsetType) -> int | None:
    """Unix milliseconds of a moment, None when it was not given."""
    if isinstance(moment, UnsetType):
        return None
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * 1_000 + since.microseconds // 1_000
