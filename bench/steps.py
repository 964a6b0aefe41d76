"""What each step of the line costs: microseconds of CPU on the loop's thread, least and median of many short rounds.

`python bench/steps.py` puts the product's own parts together in this process (`inside.py` says what stands where the
network does) and runs each step alone, on requests that have come as far as that; then the whole line (`travel`), and
the whole of HTTP on top of it, beside a bare aiohttp server. Steps take turns, so that whatever else the machine does
hits all of them; the least is the round that was disturbed the least. Collecting garbage is put off while a round is
timed. `travel` runs them one after another, so that a call in a task of its own has a turn of the loop to itself; over
HTTP `CONNECTIONS` share it. `--only WORDS` runs the steps whose name has one of the words, `--profile FILE` has
cProfile watch them.
"""

from __future__ import annotations

import asyncio
import cProfile
import gc
import logging
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from aiohttp import web
from conversation import ANSWER
from figures import Figure, arguments, write
from halfway import AGAIN, AT_A_TIME, HIT, NARROW, NEW, Line, body_of, refusal
from inside import Callers, Client, Gateway, bare_server, gateway, wire

from proxy.adapters.logs import json_line
from proxy.core.errors import TollgateError
from proxy.core.headers import returnable
from proxy.pipeline.admit import admit
from proxy.pipeline.authenticate import authenticate
from proxy.pipeline.exchange import Exchange
from proxy.pipeline.forward import dispatch, forward
from proxy.pipeline.interpret import interpret
from proxy.pipeline.keep import keep
from proxy.pipeline.line import travel
from proxy.pipeline.lookup import look_up
from proxy.pipeline.own_headers import own_headers, own_headers_of_error
from proxy.pipeline.relay import replay
from proxy.pipeline.report import Ending, record_of
from proxy.pipeline.settle import settle_hit
from proxy.web.downstream import AiohttpDownstream
from proxy.web.errors import answer_of, reply_of
from proxy.web.server import OpenAIServer

CONNECTIONS = 32
AT_ONCE = 512
"""Requests of a round over HTTP."""
WHOLE = "HTTP: pass-through"
REST = "the rest: aiohttp, flight, task"
PARTS = frozenset(
    {
        "arrive: ids, exchange",
        "authenticate, cached",
        "interpret: parse, checks, price",
        "look up, miss",
        "admit: RPM and TPM",
        "dispatch: route, begin record",
        "forward: turn, call, no network",
        "settle: usage, limits, cost, end record",
        "headers of upstream's that pass",
        "keep the answer",
        "own headers",
        "report: the record",
        "report: metrics",
        "report: log line",
    }
)
"""What a request that is passed through goes through, each once."""

Run = Callable[[Any], Awaitable[object] | object]


@dataclass
class Step:
    """One thing that is measured: `run` on each of what `prepare` made, which is not timed."""

    name: str
    prepare: Callable[[], Awaitable[Sequence[Any]]]
    run: Run
    waits: bool = True
    """`run` is a coroutine function."""
    requests: int = 1
    """In one run."""
    took_us: list[float] = field(default_factory=list)


async def timed(step: Step, profile: cProfile.Profile | None = None) -> float:
    """Microseconds of CPU of each run of one round."""
    run, prepared = step.run, await step.prepare()
    await asyncio.sleep(0)
    if profile is not None:
        profile.enable()
    began = time.thread_time_ns()
    if step.waits:
        for each in prepared:
            await run(each)  # type: ignore[misc]  # as the step says
    else:
        for each in prepared:
            run(each)
    took = time.thread_time_ns() - began
    if profile is not None:
        profile.disable()
    return took / len(prepared) / step.requests / 1_000


async def caught(request: bytes) -> web.BaseRequest:
    """The request that aiohttp makes of these bytes."""
    seen: list[web.BaseRequest] = []

    async def catch(request: web.BaseRequest) -> web.StreamResponse:
        seen.append(request)
        return web.Response(body=b"{}")

    callers = Callers(OpenAIServer(catch, max_body_bytes=1 << 20), 1)
    await callers.ask([request])
    callers.hang_up()
    return seen[0]


def steps_of(line: Line) -> Iterator[Step]:
    """The steps of a request that is passed through, in the order in which it takes them."""
    services, equipment = line.services, line.made.equipment
    theirs = (("Content-Type", "application/json"), ("openai-version", "2020-10-01"), ("Date", "now"))

    async def requests() -> list[web.BaseRequest]:
        return [line.request] * AT_A_TIME

    async def called(exchange: Exchange) -> None:
        await (await forward(exchange, services)).read()

    yield Step("arrive: ids, exchange", requests, line.arrive, waits=False)
    yield Step("authenticate, cached", line.arrived, lambda each: authenticate(each, services))
    yield Step("interpret: parse, checks, price", line.known, lambda pair: interpret(*pair, services))
    yield Step("look up, miss", line.understood, lambda each: look_up(each, services))
    yield Step("admit: RPM and TPM", line.looked_up, lambda each: admit(each, services))
    yield Step("dispatch: route, begin record", line.admitted, lambda each: dispatch(each, services), waits=False)
    yield Step("forward: turn, call, no network", line.dispatched, called)
    yield Step("settle: usage, limits, cost, end record", line.answered, line.settle, waits=False)
    yield Step("  of which reading the usage", line.answered, lambda each: each.kind.read(ANSWER), waits=False)
    yield Step("headers of upstream's that pass", line.arrived, lambda _: returnable(theirs, error=False), waits=False)
    yield Step("keep the answer", line.kept_for, lambda each: keep(each, services, 200, theirs, ANSWER))
    yield Step("own headers", line.settled, own_headers, waits=False)
    yield Step("report: the record", line.settled, lambda each: record_of(each, Ending(200), services), waits=False)
    yield Step("report: metrics", line.records, equipment.metrics.finished, waits=False)
    yield Step("report: log line", line.records, equipment.log.write, waits=False)
    yield Step("  of which rendering", line.records, json_line, waits=False)


def others_of(line: Line) -> Iterator[Step]:
    """The steps of hits and refusals, where they are others."""
    services = line.services

    def error_of(pair: tuple[Exchange, TollgateError]) -> None:
        reply_of(answer_of(pair[1]))
        own_headers_of_error(pair[0])

    again, anew, narrow = partial(line.known, HIT), partial(line.understood, AGAIN), partial(line.looked_up, NARROW)
    yield Step("interpret what was just asked", again, lambda pair: interpret(*pair, services))
    yield Step("look up, hit in other bytes", anew, lambda each: look_up(each, services))
    yield Step("look up, hit", partial(line.understood, HIT), lambda each: look_up(each, services))
    yield Step("admit a hit", partial(line.looked_up, HIT), lambda each: admit(each, services))
    yield Step("settle a hit", partial(line.admitted, HIT), lambda each: settle_hit(each, services), waits=False)
    yield Step("replay a hit, own headers", line.hits, replay, waits=False)
    yield Step("refuse: admit, and raise", narrow, lambda each: refusal(line, each))
    yield Step("refuse: the answer of a 429", line.refused, error_of, waits=False)


def wholes_of(line: Line) -> Iterator[Step]:
    """The whole line, without HTTP and report."""
    services = line.services

    async def asked(number: int) -> list[Any]:
        request = line.narrow if number == NARROW else line.request
        return [(line.arrive(request), Client(body_of(number))) for _ in range(AT_A_TIME)]

    async def travelled(pair: tuple[Exchange, Client]) -> None:
        await travel(*pair, services)

    async def refused(pair: tuple[Exchange, Client]) -> None:
        try:
            await travel(*pair, services)
        except TollgateError:
            return
        line.let_pass()

    yield Step("travel: pass-through", partial(asked, NEW), travelled)
    yield Step("travel: hit in other bytes", partial(asked, AGAIN), travelled)
    yield Step("travel: hit", partial(asked, HIT), travelled)
    yield Step("travel: 429", partial(asked, NARROW), refused)


def served(made: Gateway, bare: Callers, ours: Callers, stack: AsyncExitStack) -> Iterator[Step]:
    """Everything that a process does for a request but for the network's system calls, over `CONNECTIONS`."""

    async def asked(number: int) -> list[Any]:
        key = made.narrow_key if number == NARROW else made.key
        return [[wire(key, body_of(number)) for _ in range(AT_ONCE)]]

    async def at_once(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response(body=ANSWER, content_type="application/json")

    async def received(request: web.BaseRequest) -> web.StreamResponse:
        client = AiohttpDownstream(request, (), max_bytes)
        await client.receive()
        return await at_once(request)

    max_bytes = made.settings.server.max_body_bytes
    empty, reading = (
        Callers(OpenAIServer(handler, max_body_bytes=max_bytes), CONNECTIONS) for handler in (at_once, received)
    )
    stack.callback(empty.hang_up)
    stack.callback(reading.hang_up)
    driven = {
        "bare aiohttp, static": (HIT, bare),
        "our server, static": (HIT, empty),
        "the same, body received": (HIT, reading),
        "pass-through": (NEW, ours),
        "hit in other bytes": (AGAIN, ours),
        "hit": (HIT, ours),
        "429": (NARROW, ours),
    }
    for name, (number, callers) in driven.items():
        yield Step(f"HTTP: {name}", partial(asked, number), callers.ask, requests=AT_ONCE)


@asynccontextmanager
async def everything() -> AsyncIterator[list[Step]]:
    """All steps, and a look at the first answers."""
    async with AsyncExitStack() as stack:
        place = stack.enter_context(tempfile.TemporaryDirectory(prefix="tollgate-bench-"))
        made = await stack.enter_async_context(gateway(Path(place)))
        bare, ours = Callers(await bare_server(stack), CONNECTIONS), Callers(made.server, CONNECTIONS)
        stack.callback(bare.hang_up)
        stack.callback(ours.hang_up)
        for key, status in ((made.key, b" 200 "), (made.narrow_key, b" 200 "), (made.narrow_key, b" 429 ")):
            await ours.ask([wire(key, body_of(HIT if key == made.key else NEW))])
            if status not in ours.last:
                raise SystemExit(f"expected{status.decode()}and not {ours.last!r}")
        request, narrow = [await caught(wire(key, body_of(HIT))) for key in (made.key, made.narrow_key)]
        line = Line(made, request, narrow)
        yield [*steps_of(line), *others_of(line), *wholes_of(line), *served(made, bare, ours, stack)]


async def measure(rounds: int, words: Sequence[str], profile: cProfile.Profile | None) -> list[Step]:
    """Every step in every round."""
    async with everything() as steps:
        chosen = [step for step in steps if not words or any(word in step.name for word in words)]
        for step in chosen:
            await timed(step)
        gc.collect()
        gc.freeze()
        for _ in range(rounds):
            for step in chosen:
                gc.disable()
                took = await timed(step, profile)
                gc.enable()
                step.took_us.append(took)
        return chosen


def figures_of(steps: Sequence[Step]) -> list[Figure]:
    """What `bench/run.py` gathers: the medians."""
    return [Figure.of(f"step, {step.name}", step.took_us, "us") for step in steps]


def show(steps: Sequence[Step]) -> None:
    """The table: step, least, median, share of the whole of a request that is passed through."""
    least = {step.name: min(step.took_us) for step in steps}
    print(f"{'microseconds of CPU':38} {'least':>8} {'median':>8} {'of a pass-through':>18}")
    for step in steps:
        share = least[step.name] / least[WHOLE] if WHOLE in least else None
        told = "" if share is None else f"{share:.1%}"
        print(f"{step.name:38} {least[step.name]:8.2f} {statistics.median(step.took_us):8.2f} {told:>18}")
    parts = [step for step in steps if step.name in PARTS]
    if WHOLE in least and len(parts) == len(PARTS):
        rest = least[WHOLE] - sum(least[step.name] for step in parts)
        print(f"{REST:38} {rest:8.2f} {'':8} {rest / least[WHOLE]:>18.1%}")


def main() -> None:
    """Measure, print, and write the same as JSON where asked to."""
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", nargs="+", default=(), metavar="WORDS", help="steps whose name has one of them")
    parser.add_argument(
        "--profile", type=Path, metavar="FILE", help="what cProfile sees of the chosen steps goes there"
    )
    chosen = parser.parse_args()
    # Of requests that end at a step, the ledger says in the end that they were broken off.
    logging.disable(logging.WARNING)
    rounds = 3 if chosen.quick else chosen.rounds
    profile = cProfile.Profile() if chosen.profile else None
    try:
        import uvloop as loops  # noqa: PLC0415 - it does not install everywhere
    except ImportError:
        loops = asyncio
    steps = loops.run(measure(rounds, chosen.only, profile))
    show(steps)
    if profile is not None:
        profile.dump_stats(chosen.profile)
    if chosen.json is not None:
        write(chosen.json, figures_of(steps))


if __name__ == "__main__":
    main()
