"""What a second worker brings: the governed pass-through with limits and cache in Redis, by one worker and by two.

Both run on all cores, as do upstream, Redis and load: on two cores, two workers share them with what drives them, which
the rate then shows. The CPU of a request does not depend on that: were the cores theirs alone, the rate would grow by
twice the ratio of the two, and that is told, too.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from figures import Figure, arguments, deliver
from load import Load, Seen, closed_loop, default_client
from passing import SMALL
from processes import all_cores, pinned, workbench
from rounds import interleaved, rates
from servers import Server, gateway, on_redis, redis_server, upstream

ONE, TWO = "governed pass-through, 1 worker", "governed pass-through, 2 workers"
TARGET = 1.7
WARM_SECONDS = 1.0


def main() -> None:
    """Measure, print, and write the same as JSON where asked to."""
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, help="3, or 2 where it is to be quick")
    parser.add_argument("--seconds", type=float, help="of one drive; 2, or 1 where it is to be quick")
    parser.add_argument("--client", choices=["wrk", "own"], default=default_client())
    chosen = parser.parse_args()
    rounds = chosen.rounds or (2 if chosen.quick else 3)
    seconds = chosen.seconds or (1.0 if chosen.quick else 2.0)
    deliver(measure(rounds, seconds, chosen.client), chosen.json)


def measure(rounds: int, seconds: float, client: str) -> list[Figure]:
    """Drive both in turn."""
    with workbench() as place, pinned(all_cores()), ExitStack() as stack:
        servers = {server.name: server for server in start(stack, place)}

        def drive(name: str, drive_seconds: float = seconds) -> Seen:
            return closed_loop(servers[name], Load(), drive_seconds, client)

        for name in servers:
            drive(name, min(seconds, WARM_SECONDS))
        seen = interleaved(list(servers), drive, rounds)
    return [*rates(seen), *gains(seen)]


def start(stack: ExitStack, place: Path) -> list[Server]:
    """Gateways with one worker and with two, which differ in nothing else."""
    everywhere = all_cores()
    above = stack.enter_context(upstream(place, cores=everywhere)).base_url
    servers = []
    for workers, name in ((1, ONE), (2, TWO)):
        limits = stack.enter_context(redis_server(cores=everywhere))
        answers = stack.enter_context(redis_server(*SMALL, cores=everywhere))
        made = gateway(
            place / str(workers), name, above, settings=on_redis(limits, answers), workers=workers, cores=everywhere
        )
        servers.append(stack.enter_context(made))
    return servers


def gains(seen: dict[str, list[Seen]]) -> list[Figure]:
    """By how much the rate grows, and by how much it would on cores without anybody else."""
    pairs = list(zip(seen[ONE], seen[TWO], strict=True))
    by_rate = [two.per_second / one.per_second for one, two in pairs]
    by_cpu = [2 * one.cpu_microseconds / two.cpu_microseconds for one, two in pairs]
    return [
        Figure.of("workers 1 to 2, rate", by_rate, "x", target=TARGET, better="more"),
        Figure.of("workers 1 to 2, by CPU", by_cpu, "x", target=TARGET, better="more"),
    ]


if __name__ == "__main__":
    main()
