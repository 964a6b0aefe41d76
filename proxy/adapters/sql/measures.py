"""What a daily total counts of an event, said once: for a row that is being added, and for the database to sum.

Tokens of an answer from the cache were used by nobody: they count as saved, and are never added to those a team used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType

from sqlalchemy import case, func
from sqlalchemy.sql.elements import ColumnElement

from proxy.adapters.sql.tables import usage_daily, usage_events
from proxy.core.event import Outcome
from proxy.core.usage import Usage

__all__ = ["MEASURES", "Measure"]


class _Of(Enum):
    """Which events a measure counts."""

    ALL = "all"
    USED = "used"
    CACHED = "cached"
    ESTIMATED = "estimated"


@dataclass(frozen=True, slots=True)
class Measure:
    """A column of the daily totals: the sum of a column of some events, or, without one, their number."""

    of: _Of
    column: str | None = None

    def added(self, *, cached: bool) -> str | int:
        """What one event adds that was, or was not, answered from the cache: a column of its own, or a constant."""
        if self.of is _Of.ESTIMATED:
            return usage_events.c.estimated.name
        if self.of is not _Of.ALL and cached is not (self.of is _Of.CACHED):
            return 0
        return 1 if self.column is None else self.column

    def sum(self) -> ColumnElement[int]:
        """The same over a group of `usage_events`, in SQL."""
        counted = 1 if self.column is None else usage_events.c[self.column]
        condition = _CONDITIONS[self.of]
        return func.sum(counted if condition is None else case((condition, counted), else_=0))


_IS_CACHED = usage_events.c.outcome == Outcome.CACHED.value
_CONDITIONS: Mapping[_Of, ColumnElement[bool] | None] = MappingProxyType(
    {_Of.ALL: None, _Of.USED: ~_IS_CACHED, _Of.CACHED: _IS_CACHED, _Of.ESTIMATED: usage_events.c.estimated}
)

_COUNTED = {
    "requests": Measure(_Of.ALL),
    "cached": Measure(_Of.CACHED),
    "estimated": Measure(_Of.ESTIMATED),
    **{kind: Measure(_Of.USED, kind) for kind in Usage.__struct_fields__},
    "saved_input_tokens": Measure(_Of.CACHED, "input_tokens"),
    "saved_output_tokens": Measure(_Of.CACHED, "output_tokens"),
    "cost_pico_usd": Measure(_Of.ALL, "cost_pico_usd"),
    "saved_pico_usd": Measure(_Of.ALL, "saved_pico_usd"),
}

MEASURES: Mapping[str, Measure] = MappingProxyType(
    {column.name: _COUNTED[column.name] for column in usage_daily.c if not column.primary_key}
)
"""Every column of `usage_daily` that is no part of its key, and what it counts."""
