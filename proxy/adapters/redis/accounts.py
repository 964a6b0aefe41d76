"""What goes between the limiter and its scripts of accounts of budgets: their names, and terms packed as doubles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from struct import Struct

from proxy.adapters.redis.bucket_state import team_tag
from proxy.core.budget import LARGEST_BUDGET_NANO_USD, Cap, Spend, minute_of

__all__ = ["account_key", "account_keys", "pack_reserved", "pack_spent", "told_key", "whole_nano_usd"]

_PREFIX = "tollgate:budget:1:"
"""1: the form of an account, as for buckets."""
_TOLD_PREFIX = "tollgate:told:1:"
_RESERVED = Struct("<4d")
_CAP = Struct("<3d")
_SPENT = Struct("<3d")
_TAKEN = Struct("<2d")
_LONG_MS = 400 * 86_400_000
"""How long it is known that somebody was told of a budget that does not end."""


@lru_cache(maxsize=8_192)
def account_key(team: str, name: str) -> str:
    """Where an account is kept, in the slot of the team's buckets."""
    return f"{_PREFIX}{team_tag(team)}{name}"


@lru_cache(maxsize=8_192)
def told_key(team: str, name: str, warn_nano_usd: int | None) -> str:
    """What stands for somebody having been told of a budget's warning."""
    return f"{_TOLD_PREFIX}{team_tag(team)}{name}:{warn_nano_usd}"


def account_keys(team: str, caps: Sequence[Cap]) -> list[str]:
    """Both keys of each account."""
    keys: list[str] = []
    for cap in caps:
        keys += (account_key(team, cap.name), told_key(team, cap.name, cap.warn_nano_usd))
    return keys


def pack_reserved(spend: Spend, kept_ms: int) -> bytes:
    """What is to be reserved, and of which budgets; `kept_ms` is how long an account outlives its last reservation."""
    head = _RESERVED.pack(2 * len(spend.caps), whole_nano_usd(spend.nano_usd), minute_of(spend.at_ms), kept_ms)
    return head + b"".join(
        _CAP.pack(
            math.inf if cap.limit_nano_usd is None else cap.limit_nano_usd,
            math.inf if cap.warn_nano_usd is None else cap.warn_nano_usd,
            (spend.at_ms + _LONG_MS if cap.span.end_ms is None else cap.span.end_ms) + kept_ms,
        )
        for cap in spend.caps
    )


def pack_spent(spend: Spend, spent_nano_usd: int, minutes: Sequence[int], epochs: Sequence[int]) -> bytes:
    """What was spent in the place of what was reserved."""
    head = _SPENT.pack(len(spend.caps), whole_nano_usd(spend.nano_usd), whole_nano_usd(spent_nano_usd))
    return head + b"".join(map(_TAKEN.pack, minutes, epochs))


def whole_nano_usd(amount: int) -> int:
    """An amount that a double holds exactly; what is above the largest of budgets stays above it."""
    return min(max(0, amount), LARGEST_BUDGET_NANO_USD + 1)
