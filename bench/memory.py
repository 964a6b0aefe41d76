"""What Tollgate holds: resident memory when it is ready, and how it goes on over a million requests.

Requests of three kinds, one kind after the other, again and again: such as the cache answers, such as a limit refuses,
and such as go upstream, each of them another, whose answers are kept: the cache, of 4 MB here, is full of them after a
turn or two. Memory is looked at after each turn; it is flat where the last three quarters of all requests add next to
nothing.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from figures import Figure, arguments, deliver
from load import NUMBER, QUESTION, Load, closed_loop, default_client
from processes import workbench
from servers import REFUSED, UNLIMITED, ask, gateway, upstream

REQUESTS = 1_000_000
LIMIT_SECONDS = 185.0
"""When it ends at the latest among other sections; by itself (`--seconds`) it may take as long as a million takes."""
RESIDENT_MB = 90.0
FLAT_PERCENT = 5.0
CACHE = "[cache]\nmax_bytes = 4194304\n"
TEAMS = {"bench": UNLIMITED, "refused": REFUSED}


@dataclass(frozen=True, slots=True)
class Sample:
    """What was held after so many requests."""

    requests: int
    resident_mb: float


def main() -> None:
    """Measure, print, and write the same as JSON where asked to."""
    parser = arguments(__doc__)
    parser.add_argument("--requests", type=int, help="in all; a million, or 50,000 where it is to be quick")
    parser.add_argument("--seconds", type=float, default=LIMIT_SECONDS, help="when it ends at the latest")
    chosen = parser.parse_args()
    deliver(measure(chosen.requests or (50_000 if chosen.quick else REQUESTS), chosen.seconds), chosen.json)


def measure(requests: int, limit_seconds: float = LIMIT_SECONDS) -> list[Figure]:
    """Start one, drive it, and look at its memory on the way."""
    known = Load(QUESTION.replace(NUMBER, "000000000000"), fresh=False)
    samples = []
    client = default_client()
    with (
        workbench() as place,
        upstream(place) as above,
        gateway(place / "gateway", "gateway", above.base_url, settings=CACHE, teams=TEAMS) as server,
    ):
        ask(server, known.body.encode())
        turns = (
            (server, known, 10.0),
            (server.as_team("refused"), Load(known.body, fresh=False, refused=True), 2.0),
            (server, Load(), 1.0),
        )
        samples.append(Sample(0, server.resident_bytes() / 1e6))
        until = time.monotonic() + limit_seconds
        asked = 0
        while asked < requests and time.monotonic() < until:
            for asked_of, load, seconds in turns:
                seen = closed_loop(asked_of, load, seconds, client)
                asked += round(seen.per_second * seconds)
            samples.append(Sample(asked, server.resident_bytes() / 1e6))
    return figures(samples, requests)


def figures(samples: Sequence[Sample], wanted: int) -> list[Figure]:
    """What was held at the start, after a quarter and at the end, and what the last three quarters have added."""
    first, last = samples[0], samples[-1]
    quarter = next(each for each in samples if each.requests * 4 >= last.requests)
    added = (last.resident_mb / quarter.resident_mb - 1) * 100
    most = max(each.resident_mb for each in samples)
    return [
        Figure("resident memory when ready, one request on", first.resident_mb, "MB", target=RESIDENT_MB),
        Figure("requests while memory is looked at", last.requests, "", target=wanted, better="more"),
        Figure("resident memory after a quarter of them", quarter.resident_mb, "MB"),
        Figure("resident memory after all of them", last.resident_mb, "MB"),
        Figure("most that was seen", most, "MB"),
        Figure("added by the last three quarters", added, "%", target=FLAT_PERCENT),
    ]


if __name__ == "__main__":
    main()
