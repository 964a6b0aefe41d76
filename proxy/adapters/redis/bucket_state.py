"""What goes between the limiter and its scripts: names of buckets, and numbers packed as doubles.

A scope's schedule goes as one string instead of nine arguments, which is less to frame, to parse and to convert. Every
number is an integer below 2^53, so that a double holds it exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cache, lru_cache
from importlib.resources import files
from struct import Struct
from typing import cast

from proxy.core.bucket import Cost, Handle, State
from proxy.core.tiers import LARGEST_LIMIT, Schedule

__all__ = [
    "bucket_key",
    "charge_key",
    "pack_charge",
    "pack_cost",
    "pack_places",
    "pack_schedule",
    "pack_settlement",
    "pack_state",
    "pack_terms",
    "places_key",
    "script_text",
    "team_tag",
    "unpack_state",
]

_PREFIX = "tollgate:limit:1:"
"""1: the form of a state. Another form takes another number, so that two releases can share a server for a while."""
_PLACES_PREFIX = "tollgate:places:1:"
_CHARGE_PREFIX = "tollgate:charge:1:"
_STATE = Struct("<6d")
_SCHEDULE = Struct("<9d")
_HANDLE = Struct("<5d")
_COST = Struct("<2d")
_PLACES = Struct("<2d")
_SETTLEMENT = Struct("<4d")
_ESCAPES = str.maketrans({"%": "%25", "{": "%7B", "}": "%7D"})


_DECIDE = ("local function decide()", "end")
_VERBS: dict[str, tuple[str, ...]] = {
    "reserve_capped": ("bucket", "accounts", _DECIDE[0], "reserve", _DECIDE[1], "reserve_capped"),
    "settle_capped": ("bucket", "accounts", "settle_accounts", "settle"),
}


@cache
def script_text(verb: str) -> str:
    """The script of a verb: the shared arithmetic, then the verb; a capped one has accounts to ask as well."""
    folder = files(__package__) / "lua"
    return "\n".join(
        part if part in _DECIDE else (folder / f"{part}.lua").read_text("utf-8")
        for part in _VERBS.get(verb, ("bucket", verb))
    )


def team_tag(team: str) -> str:
    """The hash tag that keeps all of a team's keys in one slot of a cluster, braces included.

    No two names have the same, and none is empty: an empty tag does not count as one.
    """
    # % alone stands for no escaped name.
    return f"{{{team.translate(_ESCAPES) or '%'}}}"


@lru_cache(maxsize=8_192)
def bucket_key(team: str, scope: str) -> str:
    """Where the bucket of a team's scope is kept. Scopes need no escape: the first braces are the tag's."""
    return f"{_PREFIX}{team_tag(team)}{scope}"


@lru_cache(maxsize=8_192)
def places_key(team: str, scope: str) -> str:
    """Where the leases of a team's scope are kept, in the slot of its bucket."""
    return f"{_PLACES_PREFIX}{team_tag(team)}{scope}"


def charge_key(team: str, charge: str) -> str:
    """What stands for a charge that was carried out, in the slot of the team's buckets."""
    return f"{_CHARGE_PREFIX}{team_tag(team)}{charge}"


def pack_schedule(schedule: Schedule) -> bytes:
    """`switch_at_ms` (infinite for none) and the figures on both sides of it."""
    switch_ms = schedule.switch_at_ms
    if switch_ms is None:
        figures = schedule.before.figures
        return _SCHEDULE.pack(math.inf, *figures, *figures)
    return _SCHEDULE.pack(switch_ms, *schedule.before.figures, *schedule.after.figures)


def pack_cost(cost: Cost) -> bytes:
    """A cost to reserve; what is above the largest of capacities stays above it."""
    return _COST.pack(_count(cost.requests, LARGEST_LIMIT + 1), _count(cost.tokens, LARGEST_LIMIT + 1))


def pack_places(places: Iterable[tuple[int, int]]) -> bytes:
    """Of each set of places the index of its scope, and how many there are."""
    return b"".join(_PLACES.pack(index, _count(most, LARGEST_LIMIT)) for index, most in places)


def pack_charge(cost: Cost) -> bytes:
    """A cost to charge, which is no more at a time than the largest of capacities."""
    return _COST.pack(_count(cost.requests, LARGEST_LIMIT), _count(cost.tokens, LARGEST_LIMIT))


def pack_settlement(reserved: Cost, actual: Cost) -> bytes:
    """What was reserved and what was used. A dimension of which more than any capacity was reserved has no limit."""
    return _SETTLEMENT.pack(
        _count(reserved.requests, LARGEST_LIMIT),
        _count(reserved.tokens, LARGEST_LIMIT),
        _count(actual.requests, LARGEST_LIMIT),
        _count(actual.tokens, LARGEST_LIMIT),
    )


def pack_terms(schedule: Schedule, handle: Handle) -> bytes:
    """A schedule, and the handle to settle under it."""
    return pack_schedule(schedule) + _HANDLE.pack(
        handle.epoch,
        handle.removed_requests,
        handle.level_requests,
        handle.removed_tokens,
        handle.level_tokens,
    )


def pack_state(state: State) -> bytes:
    """A bucket as the scripts keep it."""
    return _STATE.pack(*state)


def unpack_state(packed: bytes) -> State:
    """The bucket that a script has kept."""
    return cast("State", tuple(map(int, _STATE.unpack(packed))))


def _count(number: int, most: int) -> int:
    if 0 <= number <= most:
        return number
    return most if number > most else 0
