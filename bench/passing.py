"""What passing a request on costs with everything on, beside aiohttp that passes it on and does nothing else.

Everything on: a key, limits of requests and tokens, a look-up in the cache that finds nothing (each request may be
kept, and is another), the answer kept, a ledger, metrics, a line of log for each request. Closed loop: 32 connections,
bodies of 450 bytes, answers of 650. Open loop: requests due at a fixed rate; what is told is by how much the quantile
of the gateway's latencies is above that of the bare server in the same round.
"""

from __future__ import annotations

import statistics
from contextlib import ExitStack
from pathlib import Path

from figures import Figure, arguments, deliver
from load import QUESTION, Load, Seen, Waits, closed_loop, default_client, open_loop
from processes import workbench
from rounds import interleaved, rates, ratios
from servers import Server, bare, gateway, keeps, on_redis, redis_server, upstream

BARE = "bare pass-through"
EMBEDDED = "governed pass-through, embedded"
ON_REDIS = "governed pass-through, Redis"
TARGETS = {EMBEDDED: 0.6, ON_REDIS: 0.5}
ADDED_MS = {0.5: 0.5, 0.99: 3.0}
"""Targets of the latency that is added, at quantiles."""
QUIET_MS = {0.5: 2.0, 0.99: 10.0}
"""What the bare server's may be: where it takes longer, it waits for others, and nothing is held to its target."""
WARM_SECONDS = 1.0
SMALL = ("--maxmemory", "256mb", "--maxmemory-policy", "allkeys-lru")


def main() -> None:
    """Measure, print, and write the same as JSON where asked to."""
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, help="of either loop; 3, or 2 where it is to be quick")
    parser.add_argument("--seconds", type=float, help="of one drive; 2, or 1 where it is to be quick")
    parser.add_argument("--per-second", type=float, default=500.0, help="arrivals of the open loop")
    parser.add_argument("--client", choices=["wrk", "own"], default=default_client())
    chosen = parser.parse_args()
    rounds = chosen.rounds or (2 if chosen.quick else 3)
    seconds = chosen.seconds or (1.0 if chosen.quick else 2.0)
    figures = measure(rounds, seconds, chosen.per_second, chosen.client)
    deliver(figures, chosen.json)


def measure(rounds: int, seconds: float, per_second: float, client: str) -> list[Figure]:
    """Both loops over all servers."""
    with workbench() as place, ExitStack() as stack:
        servers = {server.name: server for server in start(stack, place)}

        def fill(name: str, drive_seconds: float = seconds) -> Seen:
            return closed_loop(servers[name], Load(), drive_seconds, client)

        def arrive(name: str) -> Waits:
            return open_loop(servers[name], Load(), per_second, seconds)

        for name in servers:
            fill(name, min(seconds, WARM_SECONDS))
        seen = interleaved(list(servers), fill, rounds)
        waits = interleaved(list(servers), arrive, rounds)
    return [*rates(seen), *ratios(seen, BARE, TARGETS), *latencies(waits, per_second)]


def start(stack: ExitStack, place: Path) -> list[Server]:
    """The bare server and the gateways, before one upstream."""
    above = stack.enter_context(upstream(place))
    limits, answers = stack.enter_context(redis_server()), stack.enter_context(redis_server(*SMALL))
    servers = [
        stack.enter_context(bare(above, BARE)),
        stack.enter_context(gateway(place / "embedded", EMBEDDED, above.base_url)),
        stack.enter_context(gateway(place / "redis", ON_REDIS, above.base_url, settings=on_redis(limits, answers))),
    ]
    for server in servers[1:]:
        if not keeps(server, QUESTION.encode()):
            raise SystemExit(f"{server.name}: its cache is not looked into, or keeps nothing")
    return servers


def latencies(waits: dict[str, list[Waits]], per_second: float) -> list[Figure]:
    """Latency of the bare server, what the others add to it, and how late the generator itself was."""
    late = [each.late_p99_microseconds / 1e3 for rounds in waits.values() for each in rounds]
    figures = [Figure.of(f"generator: late, p99 at {per_second:.0f}/s, open loop", late, "ms")]
    for part, target in ADDED_MS.items():
        told = f"p{part * 100:.0f} at {per_second:.0f}/s, open loop"
        bare_ms = [each.quantile(part) / 1e3 for each in waits[BARE]]
        figures.append(Figure.of(f"{BARE}: {told}", bare_ms, "ms"))
        quiet = statistics.median(bare_ms) <= QUIET_MS[part]
        for name, wanted in ((EMBEDDED, target), (ON_REDIS, None)):
            added = [each.quantile(part) / 1e3 - other for each, other in zip(waits[name], bare_ms, strict=True)]
            figures.append(Figure.of(f"{name}: added {told}", added, "ms", target=wanted, quiet=quiet))
    return figures


if __name__ == "__main__":
    main()
