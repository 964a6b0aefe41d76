"""Keys, and the peppers they are hashed under."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from proxy.core.keys import MAX_IMPORTED_CHARACTERS
from proxy.core.principal import LONGEST_MAX_WAIT_MS
from proxy.core.registry import BadLine, BadValue, DataUnusable, KeyUnknown, TeamUnknown
from proxy.core.views.keys import IssuedKeyView, KeyView, PepperView, pepper_view
from proxy.web.admin import examples
from proxy.web.admin.budgets import BudgetsBody, budget_changes
from proxy.web.admin.desk import Desk
from proxy.web.admin.operation import (
    KeyId,
    Label,
    Limit,
    ModelNames,
    Moment,
    Nothing,
    Operation,
    PageSize,
    Strict,
    TeamName,
    given,
    model_set,
    moment_ms,
    or_none,
)

__all__ = ["OPERATIONS"]

_MAX_IMPORT_BYTES = 8 * 1024 * 1024
_MOST_SECONDS = 10_000 * 366 * 86_400
_LIMITS = ("requests_per_minute", "tokens_per_minute", "max_parallel", "max_wait_ms")

Seconds = Annotated[int, Meta(ge=1, le=_MOST_SECONDS)]
Number = Annotated[Limit | None, Meta(description="Null: none of its own.")] | UnsetType
MaxWait = (
    Annotated[
        Annotated[int, Meta(ge=1, le=LONGEST_MAX_WAIT_MS)] | None,
        Meta(description="How long requests wait for their turn unless they say otherwise; null: not."),
    ]
    | UnsetType
)
Models = Annotated[ModelNames | None, Meta(description="Models it may use, of those of its team; null: all.")]


class KeyPath(Strict, frozen=True, kw_only=True):
    key_id: KeyId


class KeyQuery(Strict, frozen=True, kw_only=True):
    team: TeamName | UnsetType = UNSET
    limit: PageSize = 100
    cursor: Annotated[
        str, Meta(pattern="^([0-9]{1,15}[.][0-9A-Za-z]{12})?$", description="`next_cursor` of the page before.")
    ] = ""


class KeyPage(msgspec.Struct, frozen=True, kw_only=True):
    """Some keys, the oldest first; never a secret."""

    data: list[KeyView]
    next_cursor: str | None


class KeyList(msgspec.Struct, frozen=True, kw_only=True):
    """Keys that were taken over, in the order they were given."""

    data: list[KeyView]


class _Described(Strict, frozen=True, kw_only=True):
    team: TeamName
    label: Label = ""
    expires: Moment | UnsetType = UNSET
    expires_in_seconds: Annotated[Seconds, Meta(description="In place of `expires`.")] | UnsetType = UNSET
    models: Models = None
    requests_per_minute: Number = UNSET
    tokens_per_minute: Number = UNSET
    max_parallel: Number = UNSET
    budgets: BudgetsBody | UnsetType = UNSET
    max_wait_ms: MaxWait = UNSET


class NewKey(_Described, frozen=True, kw_only=True):
    """A key to make."""


class ImportedKeys(_Described, frozen=True, kw_only=True):
    """Keys that clients have already; all of them are taken or none."""

    keys: Annotated[
        list[Annotated[str, Meta(max_length=MAX_IMPORTED_CHARACTERS)]],
        Meta(min_length=1, description="Exactly as clients send them."),
    ]
    allow_weak: Annotated[bool, Meta(description="Also keys that could be guessed.")] = False

    def __repr__(self) -> str:
        return f"ImportedKeys(team={self.team!r}, keys=<{len(self.keys)}>)"


class KeyChange(Strict, frozen=True, kw_only=True):
    """Fields of a key; one that is left out stays as it is."""

    label: Label | UnsetType = UNSET
    models: Models | UnsetType = UNSET
    requests_per_minute: Number = UNSET
    tokens_per_minute: Number = UNSET
    max_parallel: Number = UNSET
    budgets: BudgetsBody | UnsetType = UNSET
    max_wait_ms: MaxWait = UNSET


class Rotation(Strict, frozen=True, kw_only=True):
    """How a key is rotated."""

    overlap_seconds: Annotated[
        int, Meta(ge=0, le=_MOST_SECONDS, description="How long the old secret goes on working.")
    ] = 0


class PepperPath(Strict, frozen=True, kw_only=True):
    version: Annotated[int, Meta(ge=0, le=2**31 - 1)]


class PepperRotation(Strict, frozen=True, kw_only=True):
    """How a pepper is rotated."""

    lost: Annotated[
        bool, Meta(description="The right peppers are lost: forget those there are; old keys are dead.")
    ] = False


class PepperList(msgspec.Struct, frozen=True, kw_only=True):
    """Every version keys were ever hashed under, the oldest first."""

    data: list[PepperView]


def list_keys(desk: Desk, params: KeyQuery, _: Nothing) -> KeyPage:
    made, _dot, kid = params.cursor.partition(".")
    after = (int(made), kid) if kid else None
    with desk.registry() as registry:
        found = registry.list_keys(or_none(params.team), after=after, limit=params.limit + 1)
    page = found[: params.limit]
    more = f"{page[-1].created_at_ms}.{page[-1].kid}" if len(found) > len(page) else None
    spent = desk.spent(or_none(params.team)) if any(record.budgets for record in page) else None
    return KeyPage(data=[desk.key(record, spent) for record in page], next_cursor=more)


def issue_key(desk: Desk, _: Nothing, body: NewKey) -> IssuedKeyView:
    expires_at_ms = _expires_at_ms(desk, body)
    with desk.registry() as registry:
        issued = registry.issue_key(body.team, body.label, expires_at_ms, model_set(body.models), **_limits(body))
        return desk.issued(issued)


def import_keys(desk: Desk, _: Nothing, body: ImportedKeys) -> KeyList:
    expires_at_ms = _expires_at_ms(desk, body)
    limits = _limits(body)
    with desk.registry() as registry:
        records = registry.import_keys(
            body.team,
            body.keys,
            body.label,
            expires_at_ms,
            model_set(body.models),
            allow_weak=body.allow_weak,
            **limits,
        )
    spent = desk.spent(body.team) if records[0].budgets else None
    return KeyList(data=[desk.key(record, spent) for record in records])


def _limits(body: _Described | KeyChange) -> dict[str, Any]:
    """What the registry is told of the limits of a key, its budgets among them."""
    limits = given(body, *_LIMITS)
    if budgets := budget_changes(body.budgets):
        limits["budgets"] = budgets
    return limits


def get_key(desk: Desk, params: KeyPath, _: Nothing) -> KeyView:
    with desk.registry() as registry:
        return desk.key(registry.get_key(params.key_id))


def set_key(desk: Desk, params: KeyPath, body: KeyChange) -> KeyView:
    fields = given(body, "label") | _limits(body)
    if body.models is not UNSET:
        fields["models"] = model_set(body.models)
    with desk.registry() as registry:
        return desk.key(registry.set_key(params.key_id, **fields))


def rotate_key(desk: Desk, params: KeyPath, body: Rotation) -> IssuedKeyView:
    with desk.registry() as registry:
        return desk.issued(registry.rotate_key(params.key_id, body.overlap_seconds * 1_000))


def revoke_key(desk: Desk, params: KeyPath, _: Nothing) -> KeyView:
    with desk.registry() as registry:
        return desk.key(registry.revoke_key(params.key_id))


def list_peppers(desk: Desk, _: Nothing, __: Nothing) -> PepperList:
    with desk.registry() as registry:
        return PepperList(data=[pepper_view(record) for record in registry.list_peppers()])


def rotate_pepper(desk: Desk, _: Nothing, body: PepperRotation) -> PepperView:
    with desk.registry() as registry:
        return pepper_view(registry.rotate_pepper(lost=body.lost))


def retire_pepper(desk: Desk, params: PepperPath, _: Nothing) -> PepperView:
    with desk.registry() as registry:
        return pepper_view(registry.retire_pepper(params.version))


def _expires_at_ms(desk: Desk, body: _Described) -> int | None:
    if not isinstance(body.expires_in_seconds, UnsetType):
        if body.expires is not UNSET:
            raise BadValue("expires_in_seconds", "give it or expires, not both")
        return desk.clock.now_ms() + body.expires_in_seconds * 1_000
    return moment_ms(body.expires)


OPERATIONS = (
    Operation(
        name="listKeys",
        method="GET",
        path="/keys",
        summary="List keys by their ids; a key itself is never shown again.",
        command="keys list",
        handle=list_keys,
        params=KeyQuery,
        result=KeyPage,
        example=KeyPage(data=[examples.KEY], next_cursor="1795000000000.0a1B2c3D4e5F"),
        raises=(TeamUnknown,),
    ),
    Operation(
        name="issueKey",
        method="POST",
        path="/keys",
        summary="Make a key and show it, once: it is kept as a hash.",
        command="keys issue",
        handle=issue_key,
        body=NewKey,
        example_body={"team": "growth", "label": "ci", "expires_in_seconds": 7_776_000},
        result=IssuedKeyView,
        example=examples.ISSUED_KEY,
        status=201,
        raises=(TeamUnknown, BadValue, DataUnusable),
    ),
    Operation(
        name="importKeys",
        method="POST",
        path="/keys/import",
        summary="Take over keys that clients have already; they are kept as hashes and get ids.",
        command="keys import",
        handle=import_keys,
        body=ImportedKeys,
        example_body={"team": "growth", "label": "legacy", "keys": ["a-key-that-clients-have-4711"]},
        result=KeyList,
        example=KeyList(data=[examples.KEY]),
        status=201,
        raises=(TeamUnknown, BadValue, BadLine, DataUnusable),
        max_body_bytes=_MAX_IMPORT_BYTES,
    ),
    Operation(
        name="getKey",
        method="GET",
        path="/keys/{key_id}",
        summary="Show a key; never its secret.",
        command="",
        handle=get_key,
        params=KeyPath,
        result=KeyView,
        example=examples.KEY,
        raises=(KeyUnknown,),
    ),
    Operation(
        name="setKey",
        method="PATCH",
        path="/keys/{key_id}",
        summary="Change what is given of a key, and nothing else.",
        command="keys set",
        handle=set_key,
        params=KeyPath,
        body=KeyChange,
        example_body={"label": "nightly", "tokens_per_minute": 20_000, "models": None},
        result=KeyView,
        example=examples.KEY,
        raises=(KeyUnknown, BadValue),
    ),
    Operation(
        name="rotateKey",
        method="POST",
        path="/keys/{key_id}/rotate",
        summary="Give a key another secret and show it, once; the old one ends after the overlap.",
        command="keys rotate",
        handle=rotate_key,
        params=KeyPath,
        body=Rotation,
        example_body={"overlap_seconds": 86_400},
        result=IssuedKeyView,
        example=examples.ISSUED_KEY,
        raises=(KeyUnknown, BadValue, DataUnusable),
    ),
    Operation(
        name="revokeKey",
        method="POST",
        path="/keys/{key_id}/revoke",
        summary="End a key, everywhere and at once; again changes nothing.",
        command="keys revoke",
        handle=revoke_key,
        params=KeyPath,
        result=KeyView,
        example=examples.KEY,
        raises=(KeyUnknown,),
    ),
    Operation(
        name="listPeppers",
        method="GET",
        path="/peppers",
        summary="List every version keys were ever hashed under, and how many live keys need it.",
        command="keys pepper list",
        handle=list_peppers,
        result=PepperList,
        example=PepperList(data=[examples.PEPPER]),
    ),
    Operation(
        name="rotatePepper",
        method="POST",
        path="/peppers/rotate",
        summary="Make a new pepper, for every key from now on; keys there are go on under theirs.",
        command="keys pepper rotate",
        handle=rotate_pepper,
        body=PepperRotation,
        example_body={"lost": False},
        result=PepperView,
        example=examples.PEPPER,
        raises=(BadValue, DataUnusable),
    ),
    Operation(
        name="retirePepper",
        method="POST",
        path="/peppers/{version}/retire",
        summary="Forget a pepper that no live key needs; again changes nothing.",
        command="keys pepper retire",
        handle=retire_pepper,
        params=PepperPath,
        result=PepperView,
        example=examples.PEPPER,
        raises=(BadValue, DataUnusable),
    ),
)
