"""What servers are asked: one question, the same every time or with a number of its own."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass

from servers import PATH, Server

CONNECTIONS = 32
NUMBER = "############"
"""Stands in a body where each request has a number of its own."""
_BLOCKS = itertools.count(1)

QUESTION = json.dumps(
    {
        "model": "gpt-4o-mini",
        "temperature": 0,
        "messages": [
            {"role": "system", "content": "You classify tickets. Answer with one word: billing, outage or other."},
            {
                "role": "user",
                "content": f"Ticket {NUMBER}. " + ("The page says it is overdue, but it was paid. " * 9)[:236],
            },
        ],
    }
)
"""450 bytes of a request that is the same every time but for its number: an answer may be kept, and is not found."""


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked: `body`, as it is or (`fresh`) with another number in it each time."""

    body: str = QUESTION
    fresh: bool = True
    in_turn: int = 0
    """How many numbers come in turn, the same in every drive, where it is not fresh."""
    refused: bool = False
    """Whether every answer should be a 4xx, but for the few that a limit lets through."""
    connections: int = CONNECTIONS

    def block(self) -> int:
        """The first of a hundred million numbers that nobody else has."""
        return next(_BLOCKS) * 100_000_000

    def first(self) -> int:
        """The number with which a drive begins; of those in turn, far from where the drives before it began."""
        return self.block() if self.fresh else next(_BLOCKS) * self.in_turn * 618 // 1_000 % max(1, self.in_turn)

    def head(self, server: Server) -> str:
        """All that stands before the body."""
        told = {"Host": f"127.0.0.1:{server.port}", **server.headers, "Content-Type": "application/json"}
        told["Content-Length"] = str(len(self.body.encode()))
        return f"POST {PATH} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in told.items()) + "\r\n"

    def requests(self, server: Server) -> Iterator[bytes]:
        """One request after the other, as bytes."""
        whole = (self.head(server) + self.body).encode()
        if not (self.fresh or self.in_turn):
            return itertools.repeat(whole)
        before, _, after = whole.partition(NUMBER.encode())
        kinds = self.in_turn or 10**12
        return (b"%s%012d%s" % (before, number % kinds, after) for number in itertools.count(self.first()))
