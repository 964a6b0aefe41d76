"""What upstream did not count, from the settlement to the ledger, the log and the limits."""

import asyncio
import json
import threading
from dataclasses import replace

import pytest

from proxy.adapters.tokenizer import BpeTokenizer
from proxy.core.answer import ChatStream
from proxy.core.event import Outcome
from proxy.core.pricing import cost_pico_usd
from proxy.core.usage import Usage
from proxy.pipeline.admit import admit
from proxy.pipeline.forward import dispatch
from proxy.pipeline.report import Ending, report
from proxy.pipeline.settle import settle, settle_broken

PROMPT, ANSWER = "How deep is the bucket?", "As deep as a minute is long."
BODY = json.dumps({"model": "gpt-4o-mini", "messages": [{"role": "user", "content": PROMPT}], "stream": True}).encode()
PROMPT_TOKENS = 3 + 1 + 6 + 3
ANSWER_TOKENS = 8


class Told:
    """Who is told of finished requests, beside whoever was."""

    def __init__(self, inner):
        self.inner = inner
        self.records = []

    def finished(self, record):
        self.records.append(record)
        self.inner.finished(record)

    def __getattr__(self, name):
        return getattr(self.inner, name)


@pytest.fixture
async def services(bench):
    telemetry = Told(bench.services.telemetry)
    tokenizer = BpeTokenizer(telemetry)
    yield replace(bench.services, tokenizer=tokenizer, telemetry=telemetry)
    await tokenizer.close()


@pytest.fixture
def streamed(bench, services):
    async def go(body=BODY, text=ANSWER, usage=None):
        """One that has been admitted, dispatched, and has said something."""
        bench.clock.ms += 1
        exchange = await bench.exchange(body)
        await admit(exchange, services)
        dispatch(exchange, services)
        exchange.stream, exchange.status, exchange.running = ChatStream(choices=1, hide_usage=True), 200, True
        for at in range(0, len(text), 2):
            piece = {"choices": [{"index": 0, "delta": {"content": text[at : at + 2]}}]}
            exchange.stream.feed(b"data: " + json.dumps(piece).encode() + b"\n\n")
        if usage:
            exchange.stream.feed(b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\n")
        return exchange

    return go


def tokens_of(event):
    return event["input_tokens"], event["output_tokens"]


async def test_the_first_is_counted_in_a_thread_and_its_event_waits(bench, services, streamed):
    release = threading.Event()
    services.tokenizer._thread.submit(release.wait)
    exchange = await streamed()
    settle_broken(exchange, services, ConnectionResetError())
    assert exchange.settled
    assert await bench.events() == []
    report(exchange, Ending(499, Outcome.CLIENT_GONE), services)
    assert services.telemetry.records == []
    release.set()
    await exchange.counting
    (event,) = await bench.events()
    assert (event["outcome"], event["estimated"], tokens_of(event)) == (
        "client_gone", True, (PROMPT_TOKENS, ANSWER_TOKENS))  # fmt: skip
    cost = cost_pico_usd(exchange.price, Usage(PROMPT_TOKENS, ANSWER_TOKENS))
    assert event["cost_pico_usd"] == exchange.cost_pico_usd == cost
    await asyncio.sleep(0)
    (record,) = services.telemetry.records
    assert (record.cost_pico_usd, record.usage) == (cost, Usage(PROMPT_TOKENS, ANSWER_TOKENS))


async def test_once_loaded_all_of_it_is_known_at_once(bench, services, streamed):
    first = await streamed()
    settle_broken(first, services, ConnectionResetError())
    await first.counting
    exchange = await streamed()
    settle_broken(exchange, services, asyncio.CancelledError())
    report(exchange, Ending(499), services)
    assert exchange.counting is None
    assert [tokens_of(event) for event in await bench.events()] == [(PROMPT_TOKENS, ANSWER_TOKENS)] * 2
    assert [record.usage.output_tokens for record in services.telemetry.records] == [ANSWER_TOKENS]


async def test_what_upstream_counted_is_not_counted_again(bench, services, streamed):
    exchange = await streamed(usage={"prompt_tokens": 90, "completion_tokens": 4})
    settle_broken(exchange, services, ConnectionResetError())
    assert exchange.counting is None
    (event,) = await bench.events()
    assert (tokens_of(event), event["estimated"]) == ((90, 4), False)


@pytest.mark.parametrize("loaded", [False, True])
async def test_limits_are_charged_what_was_counted(bench, services, streamed, loaded):
    if loaded:
        told = asyncio.get_running_loop().create_future()
        services.tokenizer.count_later("o200k_base", [], told.set_result)
        await told
    exchange = await streamed()
    stream = exchange.stream
    settle(exchange, services, status=200, outcome=Outcome.OK, usage=None, said=stream.transcript.said(),
           counted_output_tokens=1)  # fmt: skip
    by_characters = exchange.reserved_input_tokens + 1
    assert by_characters < PROMPT_TOKENS + ANSWER_TOKENS
    if not loaded:
        await exchange.counting
    assert await bench.charged() == (1, PROMPT_TOKENS + ANSWER_TOKENS)


async def test_what_was_charged_for_a_client_that_left_stays(bench, services, streamed):
    exchange = await streamed()
    reserved = exchange.reserved_input_tokens + exchange.reserved_output_tokens
    settle_broken(exchange, services, ConnectionResetError())
    await exchange.counting
    assert await bench.charged() == (1, reserved)


async def test_a_long_answer_is_counted_in_the_thread(bench, services, streamed):
    first = await streamed()
    settle_broken(first, services, ConnectionResetError())
    await first.counting
    long = await streamed(text="all work and no play " * 5_000)
    settle_broken(long, services, ConnectionResetError())
    await long.counting
    assert [tokens_of(event) for event in await bench.events()][1:] == [(PROMPT_TOKENS, 5 * 5_000 + 1)]


async def test_a_worker_that_dies_before_the_count_leaves_one_event(bench, services, streamed):
    release = threading.Event()
    services.tokenizer._thread.submit(release.wait)
    exchange = await streamed()
    settle_broken(exchange, services, ConnectionResetError())
    await bench.ledger.close()
    release.set()
    await exchange.counting
    with bench.database.engine.connect() as connection:
        events = connection.exec_driver_sql("SELECT outcome, estimated, output_tokens FROM usage_events").all()
    assert events == [("interrupted", 1, exchange.reserved_output_tokens)]


async def test_what_comes_too_late_to_be_counted_goes_by_characters(bench, services, streamed):
    await services.tokenizer.close()
    exchange = await streamed()
    settle_broken(exchange, services, ConnectionResetError())
    assert exchange.counting.done()
    (event,) = await bench.events()
    assert tokens_of(event) == (exchange.reserved_input_tokens, exchange.stream.counted_output_tokens)


async def test_the_tier_is_that_of_the_answer(bench, services, streamed):
    exchange = await streamed(BODY[:-1] + b', "service_tier": "priority"}')
    settle_broken(exchange, services, ConnectionResetError())
    await exchange.counting
    (event,) = await bench.events()
    assert event["cost_pico_usd"] == cost_pico_usd(exchange.price, Usage(PROMPT_TOKENS, ANSWER_TOKENS), "priority")
