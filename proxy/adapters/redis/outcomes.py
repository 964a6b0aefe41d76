"""How a command can fail: a closed family in two halves.

`Definite`: the server did not carry the command out, or answered with an error that says what it did. `Indefinite`: it
may have, and nobody can tell. Only the first may be sent again. Carries facts, never a command's arguments.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum

__all__ = [
    "ConnectionLost",
    "Definite",
    "ErrorReply",
    "Indefinite",
    "NeverSent",
    "RedisFailure",
    "Reply",
    "TimedOut",
    "Why",
]

Reply = bytes | int | list["Reply"] | None | Exception
"""What RESP2 can say; an error stands inside a list only (EXEC and the like), otherwise it is raised."""


class RedisFailure(Exception):
    """Root of the family; never raised itself."""


class Definite(RedisFailure):
    """It is known what became of the command; never raised itself."""


class Indefinite(RedisFailure):
    """Written, and no answer: it may have been carried out or not; never raised itself."""


class Why(StrEnum):
    """What kept a command from being written; also a label of metrics."""

    AWAY = "away"
    """No connection."""
    RESTING = "resting"
    """The breaker is open."""
    FULL = "full"
    """Too many commands in flight, or too many bytes queued."""
    CLOSED = "closed"
    """We are shutting down."""


@dataclass(eq=False)
class NeverSent(Definite):
    """Not a byte of the command was written."""

    why: Why
    where: str = ""
    """Address of the server, and what the system said; no credentials."""

    def __str__(self) -> str:
        return f"{self.why.value} {self.where}".rstrip()


_NOTHING_DONE = frozenset(
    {
        "ASK",
        "BUSY",
        "CLUSTERDOWN",
        "LOADING",
        "MASTERDOWN",
        "MISCONF",
        "MOVED",
        "NOAUTH",
        "NOPERM",
        "NOREPLICAS",
        "NOSCRIPT",
        "OOM",
        "READONLY",
        "TRYAGAIN",
        "UNKILLABLE",
        "WRONGPASS",
    }
)
# Redis before 7 wraps what went wrong inside a script, code included, in an ERR of its own.
_WRAPPED = re.compile(rf"^ERR Error running script .*?-({'|'.join(sorted(_NOTHING_DONE))}) ", re.DOTALL)


@dataclass(eq=False)
class ErrorReply(Definite):
    """The server answered with an error."""

    code: str
    """First word of the answer: `NOSCRIPT`, `MOVED`, `ERR`."""
    message: str = field(default="", repr=False)
    """The rest. Servers repeat the arguments of a command they do not know; those are cut off."""

    def __str__(self) -> str:
        return f"{self.code} {self.message}".rstrip()

    @property
    def nothing_done(self) -> bool:
        """Whether the code is one that a server gives before it changes anything.

        The server checks for memory, role and disk at a script's first write, so this holds for scripts as well. Other
        codes in answer to a script that had written before are that script's own mistake.
        """
        return self.code in _NOTHING_DONE

    @classmethod
    def of(cls, text: str) -> ErrorReply:
        """Read the line behind the `-` of an error answer."""
        if wrapped := _WRAPPED.match(text):
            return cls(wrapped[1], text[wrapped.end() :])
        code, _, message = text.partition(" ")
        return cls(code, message.partition(", with args beginning with")[0])


class TimedOut(Indefinite):
    """The deadline passed first; the answer is thrown away when it comes."""


class ConnectionLost(Indefinite):
    """The connection ended first."""
