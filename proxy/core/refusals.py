"""What was refused lately, and why: for people to look at, in a bounded place."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

import msgspec
from msgspec.structs import replace

from proxy.core.event import Outcome
from proxy.core.record import RequestRecord

__all__ = ["KEPT_REFUSALS", "RecentRefusals", "Refusal", "merged"]

KEPT_REFUSALS = 50
"""Kinds of refusals that are kept; the one seen longest ago makes room."""
_MODEL_CHARACTERS = 64
_REFUSED = frozenset({Outcome.LIMITED, Outcome.REJECTED, Outcome.UNAVAILABLE, Outcome.FAILED})


class Refusal(msgspec.Struct, frozen=True, gc=False):
    """Refusals that are alike: how many, and the latest of them. Holds nothing of a request but the model it named."""

    team: str
    """Empty where nobody was recognised."""
    model: str
    endpoint: str
    status: int
    scope: str
    """What the limit was of that refused it: `team`, `key` or `model`; empty where none did."""
    dimension: str
    """`requests`, `tokens`, `parallel` or `budget`; empty where no limit refused it."""
    error_code: str
    at_ms: int
    request_id: str
    count: int = 1

    @property
    def kind(self) -> tuple[str | int, ...]:
        """What those that are alike have in common."""
        return self.team, self.model, self.endpoint, self.status, self.scope, self.dimension, self.error_code


class RecentRefusals:
    """The latest refusals of one process. What repeats takes one place, so a flood of one kind hides no other."""

    def __init__(self) -> None:
        self._by_kind: OrderedDict[tuple[str | int, ...], Refusal] = OrderedDict()
        self.noted = 0
        """Refusals so far: another number says that there is something new."""

    def note(self, record: RequestRecord) -> None:
        """Keep a finished request if it was refused."""
        if record.outcome not in _REFUSED:
            return
        refusal = _refusal(record)
        before = self._by_kind.pop(refusal.kind, None)
        self._by_kind[refusal.kind] = refusal if before is None else replace(refusal, count=before.count + 1)
        if len(self._by_kind) > KEPT_REFUSALS:
            self._by_kind.popitem(last=False)
        self.noted += 1

    def latest(self) -> tuple[Refusal, ...]:
        """What is kept, newest first."""
        return tuple(reversed(self._by_kind.values()))


def merged(of_processes: Iterable[Iterable[Refusal]]) -> tuple[Refusal, ...]:
    """What several processes keep, as one, newest first."""
    found: dict[tuple[str | int, ...], Refusal] = {}
    for refusals in of_processes:
        for refusal in refusals:
            other = found.get(refusal.kind)
            if other is not None:
                newer = max(refusal, other, key=lambda each: each.at_ms)
                refusal = replace(newer, count=refusal.count + other.count)  # noqa: PLW2901 - one of both
            found[refusal.kind] = refusal
    return tuple(sorted(found.values(), key=lambda each: each.at_ms, reverse=True)[:KEPT_REFUSALS])


def _refusal(record: RequestRecord) -> Refusal:
    return Refusal(
        team=record.team,
        model=record.model[:_MODEL_CHARACTERS],
        endpoint=record.endpoint,
        status=record.status,
        scope=record.limited_scope.partition(":")[0],
        dimension=record.limited_dimension,
        error_code=record.error_code,
        at_ms=record.at_ms,
        request_id=record.request_id,
    )
