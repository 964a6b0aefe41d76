"""Whatever the mixture: an event for each request sent, to the pico-dollar, and a bucket that lacks what was used."""

import asyncio
import contextlib
import random
from collections import Counter

import aiohttp
import pytest

from proxy.adapters.price_file import load_prices
from proxy.adapters.sql.usage import SqlUsageReports
from proxy.core.pricing import cost_pico_usd
from proxy.core.registry import Axis
from proxy.core.usage import Usage
from tests.faults.conftest import CHAT, TEAM, Gateway, Open, until

MODELS = ("gpt-4o-mini", "gpt-4o", "o3-mini")
KINDS = ("plain", "stream", "hit", "leaves", "leaves a stream", "cut", "cut stream", "error", "retried", "no usage",
         "error event", "bad", "unknown model", "wrong key", "reset")  # fmt: skip
WISHES = {
    "cut": {"cut_after": 1},
    "cut stream": {"cut_after": 3},
    "error": {"status": 500},
    "retried": {"times": 1, "status": 503},
    "no usage": {"no_usage": 1},
    "error event": {"error_event_after": 2},
    "reset": {"reset": 1},
}
STREAMED = {"stream", "leaves a stream", "cut stream", "error event"}
NOT_SENT = {"bad", "unknown model", "wrong key"}
OUTCOMES = {
    "plain": {"ok"},
    "stream": {"ok"},
    "hit": {"ok", "cached"},
    "leaves": {"client_gone"},
    "leaves a stream": {"client_gone"},
    "cut": {"upstream_error"},
    "cut stream": {"upstream_error"},
    "error": {"upstream_error"},
    "retried": {"ok"},
    "no usage": {"ok"},
    "error event": {"upstream_error"},
    "reset": {"upstream_error"},
}


def queries_upstream(gateway: Gateway) -> list[str]:
    """The queries of the requests that have come upstream, from now on, in the order in which they came."""
    begin, seen = gateway.stats.begin, []

    def noted(path: str, query: str, *more: object) -> object:
        seen.append(query)
        return begin(path, query, *more)

    gateway.stats.begin = noted
    return seen


async def send(gateway: Gateway, kind: str, number: int, chance: random.Random, upstream: list[str]) -> None:
    """One request of a kind, as its client lives it."""
    body = {
        "model": "gpt-99" if kind == "unknown model" else chance.choice(MODELS),
        "messages": [{"role": "user", "content": "x" * chance.randrange(400)}],
        "stream": kind in STREAMED,
        "max_completion_tokens": chance.randrange(1, 30),
    }
    if kind == "hit":
        body |= {
            "seed": 1,
            "messages": [{"role": "user", "content": f"again {chance.randrange(2)}"}],
            "model": MODELS[0],
        }
        body |= {"max_completion_tokens": 9}
    wishes = dict(WISHES.get(kind, {}))
    if kind == "retried":
        wishes["id"] = f"n{number}"
    if kind.startswith("leaves"):
        # Of a stream, some of it comes; of a plain answer, nothing.
        wish = "x-simulate-chunk-ms: 600000" if kind in STREAMED else "x-simulate-hang: 1"
        query = f"number={number}"
        data = gateway.request_bytes(body, wish, path=f"/v1/chat/completions?{query}")
        async with gateway.connection() as (reader, writer):
            writer.write(data)
            if kind in STREAMED:
                await reader.readuntil(b"\n\n")
            else:
                await until(lambda: query in upstream)
                await asyncio.sleep(chance.random() / 50)
        return
    headers = {"Authorization": "Bearer sk-tg_nobody"} if kind == "wrong key" else None
    with contextlib.suppress(aiohttp.ClientPayloadError):
        async with gateway.post(b"{" if kind == "bad" else body, headers=headers, **wishes) as response:
            await response.read()


def exact(event: dict) -> int:
    """What an event must cost by the price table."""
    if event["outcome"] == "cached":
        return 0
    price = load_prices(None).price(event["model"], event["at_ms"])
    assert price.price_id == event["price_id"]
    return cost_pico_usd(price, Usage(**{name: event[name] for name in Usage.__struct_fields__}))


@pytest.mark.parametrize("seed", range(5))
async def test_any_mixture_of_requests(open_gateway: Open, seed: int) -> None:
    # Whether so many fail in a row that upstream is left alone depends on who comes before whom.
    gateway = await open_gateway(**{"upstream.breaker_failures": 0})
    upstream = queries_upstream(gateway)
    chance = random.Random(seed)
    kinds = [*KINDS, *chance.choices(KINDS, k=25)]
    chance.shuffle(kinds)
    lanes = [kinds[lane::4] for lane in range(4)]

    async def walk(lane: int) -> None:
        for step, kind in enumerate(lanes[lane]):
            await send(gateway, kind, 100 * lane + step, random.Random(f"{seed} {lane} {step}"), upstream)

    await asyncio.gather(*(walk(lane) for lane in range(4)))
    events = await gateway.events()
    records = gateway.records()
    sent = [record for record in records if record["attempts"]]
    cached = [record for record in records if record["outcome"] == "cached"]

    assert len(records) == len(kinds)
    assert len(events) == len(sent) + len(cached) == sum(kind not in NOT_SENT for kind in kinds)
    assert len({event["event_id"] for event in events}) == len(events)
    assert sorted(event["request_id"] for event in events) == sorted(
        record["request_id"] for record in (*sent, *cached)
    )
    found = Counter(event["outcome"] for event in events)
    assert sum(event["attempts"] for event in events) == gateway.stats.requests
    least = Counter(next(iter(OUTCOMES[kind])) for kind in kinds if kind in OUTCOMES and len(OUTCOMES[kind]) == 1)
    assert least <= found
    assert found.keys() <= {"ok", "cached", "client_gone", "upstream_error"}

    assert [event["cost_pico_usd"] for event in events] == [exact(event) for event in events]
    (total,) = await asyncio.to_thread(SqlUsageReports(gateway.engine).usage, [])
    assert total.cost_pico_usd == sum(map(exact, events))
    by_model = await asyncio.to_thread(SqlUsageReports(gateway.engine).usage, [Axis.TEAM, Axis.MODEL])
    assert sum(row.cost_pico_usd for row in by_model) == total.cost_pico_usd
    assert sum(row.requests for row in by_model) == len(events)
    assert await gateway.mismatches() == []

    # What upstream says it used, of the answers that told so, is what the ledger has.
    complete = [event for event in events if event["outcome"] == "ok" and not event["estimated"]]
    used = [one for one in gateway.stats.records if one.completed and one.status == 200]
    assert Counter((e["input_tokens"], e["output_tokens"]) for e in complete) <= Counter(
        (one.input_tokens, one.output_tokens) for one in used
    )
    requests, tokens = await gateway.charged()
    paid = [event for event in events if event["outcome"] != "cached"]
    assert requests == len(events)
    assert tokens >= sum(event["input_tokens"] + event["output_tokens"] for event in paid)
    assert gateway.in_flight == 0
    assert gateway.total("tollgate_requests_total") == len(kinds)
    assert gateway.total("tollgate_requests_total", team=TEAM) == len(kinds) - kinds.count("wrong key")
    spent = gateway.total("tollgate_spend_usd_total", team=TEAM)
    assert spent == pytest.approx(total.cost_pico_usd / 1e12, rel=1e-9)


async def test_what_was_ordered_whole_is_charged_to_the_token(gateway: Gateway) -> None:
    for stream in (False, True):
        async with gateway.post({**CHAT, "stream": stream, "max_tokens": 5, "n": 3}) as response:
            await response.read()
    events = await gateway.events()
    used = [(one.input_tokens, one.output_tokens) for one in gateway.stats.records]
    assert [(event["input_tokens"], event["output_tokens"]) for event in events] == used == [(13, 15)] * 2
    assert await gateway.charged() == (2, 56)


async def test_a_hit_is_an_event_that_costs_nothing_and_saves_what_it_cost(gateway: Gateway) -> None:
    bodies = []
    for _ in range(3):
        async with gateway.post({**CHAT, "temperature": 0}) as response:
            bodies.append((response.headers["Cache-Status"].split(";")[1].strip(), await response.read()))
    assert [state for state, _ in bodies] == ["fwd=uri-miss", "hit", "hit"]
    assert len({body for _, body in bodies}) == 1
    first, *hits = await gateway.events()
    assert [(hit["outcome"], hit["cost_pico_usd"], hit["saved_pico_usd"]) for hit in hits] == [
        ("cached", 0, first["cost_pico_usd"])
    ] * 2
    assert gateway.stats.requests == 1
    assert await gateway.charged() == (3, first["input_tokens"] + first["output_tokens"])
    saved = gateway.total("tollgate_saved_usd_total", team=TEAM)
    assert saved == pytest.approx(2 * first["cost_pico_usd"] / 1e12)


async def test_the_share_of_a_bucket_that_is_used(gateway: Gateway) -> None:
    await gateway.works()
    for dimension in ("requests", "tokens"):
        share = gateway.metric("tollgate_limit_used_ratio", team=TEAM, dimension=dimension)
        assert 0 < share < 0.01, "of what the bucket holds, which here is far more than a minute's worth"
