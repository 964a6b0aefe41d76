"""What the cache in Redis could not do, and why: the labels of one metric."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

from proxy.adapters.redis.outcomes import Definite, ErrorReply, NeverSent, RedisFailure, TimedOut, Why

__all__ = ["OddReply", "OnTrouble", "Operation", "Trouble", "trouble_of"]

OnTrouble = Callable[[str, str], None]
"""Told the operation and the reason: a `Trouble`, or a `Flaw` of an envelope."""


class Operation(StrEnum):
    """What was asked of the cache."""

    GET = "get"
    CLAIM = "claim"
    RENEW = "renew"
    STORE = "store"
    RELEASE = "release"
    FILLED = "filled"


class Trouble(StrEnum):
    """What kept an operation from being carried out."""

    AWAY = "away"
    """No connection, or the server serves nothing."""
    TIMEOUT = "timeout"
    FULL = "full"
    """Too much is on its way to the server."""
    OUT_OF_MEMORY = "out_of_memory"
    """The server has no room, or so little that it is left to the limits."""
    REFUSED = "refused"
    """The server answered with another error."""
    GARBAGE = "garbage"
    """Its answer, or what it keeps there, is none that we know."""
    LOST = "lost"
    """The right to fill had gone to another, or was lost with the server's memory."""
    TOO_LARGE = "too_large"


class OddReply(Definite):
    """An answer that our scripts do not give."""


_OF_CODE = {
    "BUSY": Trouble.AWAY,
    "CLUSTERDOWN": Trouble.AWAY,
    "LOADING": Trouble.AWAY,
    "MASTERDOWN": Trouble.AWAY,
    "OOM": Trouble.OUT_OF_MEMORY,
    "WRONGTYPE": Trouble.GARBAGE,
}


def trouble_of(failure: RedisFailure) -> Trouble:
    """Name a failed command's reason."""
    match failure:
        case ErrorReply():
            # Redis before 7 wraps what went wrong inside a script.
            code = "WRONGTYPE" if "WRONGTYPE" in failure.message else failure.code
            return _OF_CODE.get(code, Trouble.REFUSED)
        case OddReply():
            return Trouble.GARBAGE
        case NeverSent(why=Why.FULL):
            return Trouble.FULL
        case TimedOut():
            return Trouble.TIMEOUT
        case _:
            return Trouble.AWAY
