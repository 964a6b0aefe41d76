"""What an answer from the cache, and a refusal, cost beside a bare aiohttp server that gives the same bytes.

All features are on: a key, limits, a ledger, metrics, a line of log for each request. `--profile FILE` runs the
embedded gateway under cProfile.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path

from figures import Figure, arguments, deliver
from load import QUESTION, Load, Seen, closed_loop, default_client
from processes import workbench
from rounds import interleaved, rates, ratios
from servers import REFUSED, TOLLGATE, UNLIMITED, Server, ask, gateway, on_redis, redis_server, static, upstream

STATIC = "static answer"
EMBEDDED = "hit, embedded"
QUESTIONS = 10_000
IN_TURN = f"hit, embedded, {QUESTIONS:,} questions in turn"
ON_REDIS = "hit, Redis"
AT_HAND = "hit, Redis with answers at hand"
REFUSAL = "refusal (429), embedded"
TARGETS = {EMBEDDED: 0.5, IN_TURN: None, ON_REDIS: None, AT_HAND: None, REFUSAL: 0.6}
TEAMS = {"bench": UNLIMITED, "refused": REFUSED}
HIT = Load(fresh=False)
MANY = Load(fresh=False, in_turn=QUESTIONS)
"""More than are remembered as they were understood: each is read again."""
TURNED_AWAY = Load(fresh=False, refused=True)
ASKED = {IN_TURN: MANY, REFUSAL: TURNED_AWAY}


def main() -> None:
    """Measure, print, and write the same as JSON where asked to."""
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, help="3, or 2 where it is to be quick")
    parser.add_argument("--seconds", type=float, default=1.0, help="of one drive")
    parser.add_argument("--client", choices=["wrk", "own"], default=default_client())
    parser.add_argument("--profile", type=Path, help="where cProfile's record of the embedded gateway goes")
    chosen = parser.parse_args()
    rounds = chosen.rounds or (2 if chosen.quick else 3)
    deliver(measure(rounds, chosen.seconds, chosen.client, chosen.profile), chosen.json)


def measure(rounds: int, seconds: float, client: str, profile: Path | None = None) -> list[Figure]:
    """Drive all servers in turn."""
    with workbench() as place, ExitStack() as stack:
        servers = start(stack, place, profile)

        def drive(name: str, drive_seconds: float = seconds) -> Seen:
            return closed_loop(servers[name], ASKED.get(name, HIT), drive_seconds, client)

        for name in servers:
            drive(name)
        known_after = seconds
        while drive(IN_TURN, known_after).per_second * known_after < QUESTIONS:
            known_after *= 2
        seen = interleaved(list(servers), drive, rounds)
    return [*rates(seen), *ratios(seen, STATIC, TARGETS)]


def start(stack: ExitStack, place: Path, profile: Path | None) -> dict[str, Server]:
    """The gateways, each with the answer in its cache, and a bare server that gives what they give."""
    above = stack.enter_context(upstream(place)).base_url
    limits, answers = stack.enter_context(redis_server()), stack.enter_context(redis_server())
    redis = on_redis(limits, answers)
    command = TOLLGATE if profile is None else (sys.executable, "-m", "cProfile", "-o", str(profile), "-m", "proxy")
    gateways = (
        gateway(place / "embedded", EMBEDDED, above, teams=TEAMS, command=command),
        gateway(place / "redis", ON_REDIS, above, settings=redis),
        gateway(place / "at-hand", AT_HAND, above, settings=f"{redis}[cache]\nl1_seconds = 10\n"),
    )
    servers = {}
    for each in gateways:
        server = stack.enter_context(each)
        servers[server.name] = server
        said = [ask(server, QUESTION.encode()) for _ in range(2)]
        if said[0] != said[1]:
            raise SystemExit(f"{server.name}: the second answer is not the first")
    bare = stack.enter_context(static(name=STATIC))
    return {STATIC: bare, IN_TURN: servers[EMBEDDED], **servers, REFUSAL: servers[EMBEDDED].as_team("refused")}


if __name__ == "__main__":
    main()
