"""Managing teams and keys, and reading what they used: what the command line asks for.

Every method is synchronous and talks to the database; a caller on an event loop uses a thread. Each one raises
`StoreAway` when the database does not answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol, TypedDict, Unpack

from proxy.core.audit import AuditEntry
from proxy.core.budget import Period
from proxy.core.caps import BudgetChange
from proxy.core.principal import CacheMode, KeyRecord, Team
from proxy.core.usage import Usage

__all__ = [
    "Axis",
    "BadLine",
    "BadName",
    "BadValue",
    "DataUnusable",
    "IssuedKey",
    "KeyChanges",
    "KeyLimits",
    "KeyUnknown",
    "Mismatch",
    "PepperRecord",
    "Registry",
    "RegistryError",
    "TeamChanges",
    "TeamExists",
    "TeamFields",
    "TeamUnknown",
    "UsageReports",
    "UsageRow",
]


class RegistryError(Exception):
    """Root of the errors teams, keys and ledger are refused with; never raised itself."""


class DataUnusable(RegistryError):
    """What is kept cannot be used by this process; the message says why, and quotes nothing of it."""


@dataclass(eq=False)
class TeamExists(RegistryError):
    """There is a team of this name."""

    team: str

    def __str__(self) -> str:
        return f"team {self.team} exists already"


@dataclass(eq=False)
class TeamUnknown(RegistryError):
    """There is no team of this name."""

    team: str

    def __str__(self) -> str:
        return f"no team is named {self.team[:80]}"


@dataclass(eq=False)
class KeyUnknown(RegistryError):
    """There is no key with this id; carries no more of what was given than the id."""

    kid: str

    def __str__(self) -> str:
        return f"no key has the id {self.kid}" if self.kid else "that is not the id of a key"


@dataclass(eq=False)
class BadName(RegistryError):
    """A team's name is lower-case letters, digits, `.`, `_` and `-`, begins with one of the first two, at most 63."""

    name: str

    def __str__(self) -> str:
        return f"{self.name[:80]!r} is no name: use a-z, 0-9, '.', '_', '-', first a letter or digit, at most 63"


@dataclass(eq=False)
class BadValue(RegistryError):
    """A field cannot hold this value."""

    field: str
    reason: str

    def __str__(self) -> str:
        return f"{self.field}: {self.reason}"


@dataclass(eq=False)
class BadLine(RegistryError):
    """A line of a list of keys cannot be taken; carries nothing of what stands on it."""

    line: int
    """From 1 on."""
    reason: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.reason}"


@dataclass(frozen=True, slots=True)
class IssuedKey:
    """A key at the one moment it can be seen."""

    key: str = field(repr=False)
    record: KeyRecord


@dataclass(frozen=True, slots=True)
class PepperRecord:
    """One version of the pepper, as the database knows it: never the pepper."""

    version: int
    created_at_ms: int
    retired_at_ms: int | None
    keys: int
    """Live keys that have a secret hashed under this version alone."""
    current: bool
    """Whether new keys get it."""
    here: bool
    """Whether this machine has it."""


class TeamFields(TypedDict, total=False):
    """Fields of a team beside its tier; None takes one away."""

    requests_per_minute: int | None
    tokens_per_minute: int | None
    request_capacity: int | None
    token_capacity: int | None
    max_parallel: int | None
    shadow_tier: str | None
    cache_mode: CacheMode
    models: frozenset[str] | None
    allow_stateful: bool
    weight: int
    budgets: Mapping[Period, BudgetChange]
    """Of each period that is named: what of it changes."""


class TeamChanges(TeamFields, total=False):
    """Fields of a team that can be changed; one that is left out stays as it is."""

    tier: str


class KeyLimits(TypedDict, total=False):
    """Limits of a key's own, beside its team's, and how long it waits for them; None is none."""

    requests_per_minute: int | None
    tokens_per_minute: int | None
    max_parallel: int | None
    max_wait_ms: int | None
    budgets: Mapping[Period, BudgetChange]
    """As a team's, of what is spent with the key."""


class KeyChanges(KeyLimits, total=False):
    """Fields of a key that can be changed; one that is left out stays as it is."""

    label: str
    models: frozenset[str] | None


class Registry(Protocol):
    """Teams and keys. A change is one transaction that also moves the revision on and is kept in the audit log."""

    def add_team(self, name: str, tier: str, **fields: Unpack[TeamFields]) -> Team:
        """Make a team; it is on the tier from now. Raises `TeamExists`, `BadName`, `BadValue`."""
        ...

    def set_team(self, name: str, **changes: Unpack[TeamChanges]) -> Team:
        """Change the fields given; another tier, and another shadow tier, counts from now.

        Raises `TeamUnknown`, `BadValue`.
        """
        ...

    def set_model_limit(
        self, team: str, model: str, requests_per_minute: int | None = None, tokens_per_minute: int | None = None
    ) -> Team:
        """Limit the team's use of one model, in place of a limit it had; without numbers, limit it no more.

        Raises `TeamUnknown`, `BadValue`.
        """
        ...

    def purge_cache(self, team: str, model: str | None = None) -> Team:
        """Forget every answer kept for the team, or those of one model, by the name clients ask for.

        A worker goes by it as soon as it has heard of the change, as with a key that is revoked. Raises `TeamUnknown`,
        `BadValue`.
        """
        ...

    def get_team(self, name: str) -> Team:
        """The team. Raises `TeamUnknown`."""
        ...

    def list_teams(self) -> Sequence[Team]:
        """Every team, by name."""
        ...

    def issue_key(
        self,
        team: str,
        label: str = "",
        expires_at_ms: int | None = None,
        models: frozenset[str] | None = None,
        **limits: Unpack[KeyLimits],
    ) -> IssuedKey:
        """Make a key; it works at once and cannot be shown again. Raises `TeamUnknown`, `BadValue`."""
        ...

    def set_key(self, kid: str, **changes: Unpack[KeyChanges]) -> KeyRecord:
        """Change the fields given, of the key with this id. Raises `KeyUnknown`, `BadValue`."""
        ...

    def get_key(self, kid: str) -> KeyRecord:
        """The key with this id. Raises `KeyUnknown`."""
        ...

    def list_keys(
        self, team: str | None = None, *, after: tuple[int, str] | None = None, limit: int | None = None
    ) -> Sequence[KeyRecord]:
        """Every key, or a team's, oldest first; at most `limit`, of those that come after `after`.

        `after`: when the last key of the page before was made (unix milliseconds), and its id. Raises `TeamUnknown`.
        """
        ...

    def import_keys(
        self,
        team: str,
        lines: Sequence[str],
        label: str = "",
        expires_at_ms: int | None = None,
        models: frozenset[str] | None = None,
        *,
        allow_weak: bool = False,
        **limits: Unpack[KeyLimits],
    ) -> Sequence[KeyRecord]:
        """Take over keys that were made elsewhere, one a line, all or none of them; empty lines are none.

        `allow_weak`: also those that could be guessed. Raises `TeamUnknown`, `BadValue`, `BadLine`.
        """
        ...

    def rotate_key(self, kid: str, overlap_ms: int = 0) -> IssuedKey:
        """Give a key another secret; those it had stop after the overlap. Raises `KeyUnknown`, `BadValue`."""
        ...

    def revoke_key(self, kid: str) -> KeyRecord:
        """End a key, named by its id or by the beginning `sk-tg_<kid>`; again changes nothing. Raises `KeyUnknown`."""
        ...

    def budgets_spent(self, at_ms: int, team: str | None = None) -> Mapping[tuple[str, str, Period], int]:
        """What was spent of every budget in its span that holds `at_ms`, in nano-dollars, as far as the ledger has it.

        By team, id of the key (empty for the team's own) and period; of one team or at all.
        """
        ...

    def list_peppers(self) -> Sequence[PepperRecord]:
        """Every version of the pepper that keys were ever hashed under, oldest first."""
        ...

    def rotate_pepper(self, *, lost: bool = False) -> PepperRecord:
        """Make a new pepper, for every key issued from now on; keys issued before go on.

        `lost`: forget the peppers there are, which are not the ones that keys are hashed under. Raises `BadValue`,
        `DataUnusable`, `OSError`.
        """
        ...

    def retire_pepper(self, version: int) -> PepperRecord:
        """Forget a pepper that no live key needs; again changes nothing.

        Raises `BadValue`, `DataUnusable`, `OSError`.
        """
        ...

    def list_audit(
        self,
        since_ms: int | None = None,
        until_ms: int | None = None,
        team: str | None = None,
        *,
        after: int | None = None,
        limit: int | None = None,
    ) -> Sequence[AuditEntry]:
        """What was changed in [since_ms, until_ms), of one team or at all, oldest first.

        At most `limit`, of those whose serial is above `after`.
        """
        ...


class Axis(StrEnum):
    """What a usage report can be broken down by."""

    DAY = "day"
    TEAM = "team"
    KEY = "key"
    MODEL = "model"
    UPSTREAM = "upstream"
    ENDPOINT = "endpoint"


@dataclass(frozen=True, slots=True)
class UsageRow:
    """A line of a usage report."""

    group: tuple[str, ...]
    """One value for each axis asked for; a day as `YYYY-MM-DD`."""
    requests: int
    cached: int
    """Answered from the cache."""
    estimated: int
    """Whose token counts are ours, not upstream's."""
    usage: Usage
    """What was used; tokens of answers from the cache are no part of it."""
    cost_pico_usd: int
    saved_pico_usd: int
    saved_input_tokens: int
    """Of answers from the cache: what upstream would have read for them."""
    saved_output_tokens: int


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A day's total that is not the sum of its events."""

    group: tuple[str, ...]
    """Day, team, key id, model, upstream, endpoint."""
    measure: str
    daily: int
    events: int


class UsageReports(Protocol):
    """Reads the ledger."""

    def usage(
        self, by: Sequence[Axis], since_ms: int | None = None, until_ms: int | None = None, team: str | None = None
    ) -> Sequence[UsageRow]:
        """Totals of the whole UTC days that [since_ms, until_ms) touches, sorted by group; no axes: one row."""
        ...

    def each_usage(
        self, by: Sequence[Axis], since_ms: int | None = None, until_ms: int | None = None, team: str | None = None
    ) -> Iterator[UsageRow]:
        """Yield the same, row by row, for more of them than should be in memory at once."""
        ...

    def count_usage(
        self, by: Sequence[Axis], since_ms: int | None = None, until_ms: int | None = None, team: str | None = None
    ) -> int:
        """How many rows that would be at this moment."""
        ...

    def verify(self) -> Sequence[Mismatch]:
        """Compare the daily totals with the events they are made of; empty when the books agree."""
        ...
