"""What is asked for: bodies of any size are read the same, and large ones do not hold up the loop."""

from __future__ import annotations

import asyncio
import json
import threading
from dataclasses import replace

import pytest

from proxy.core.errors import InvalidRequest
from proxy.core.kinds import KINDS
from proxy.core.routing import Candidate
from proxy.core.splice import with_model
from proxy.pipeline import exchange as exchange_module
from proxy.pipeline import forward as forward_module
from proxy.pipeline import interpret as module
from proxy.pipeline.admit import admit
from proxy.pipeline.forward import dispatch, forward
from proxy.pipeline.interpret import AT_ONCE_BYTES, interpret, takes_long
from proxy.pipeline.upstreams import Site, SiteKey, Upstreams
from tests.support.stage import Play, Upstream

MODEL = "gpt-4o-mini"


def chat(size: int) -> bytes:
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{'A' * size}"}}
    return json.dumps({"model": MODEL, "messages": [{"role": "user", "content": [image]}]}).encode()


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Where bodies are parsed."""
    seen: list[int] = []
    parse = module.parse_object

    def noted(body: bytes, max_depth: int):
        seen.append(threading.get_ident())
        return parse(body, max_depth)

    monkeypatch.setattr(module, "parse_object", noted)
    return seen


async def test_what_is_large_is_parsed_beside_the_loop_and_read_the_same(bench, threads):
    small, large = chat(100), chat(AT_ONCE_BYTES)
    exchanges = [await bench.exchange(small) for _ in range(2)]
    for exchange, body in zip(exchanges, (small, large), strict=True):
        await interpret(exchange, body, bench.services)
        assert (exchange.asked.raw, exchange.asked.model) == (body, MODEL)
        assert KINDS["chat"].estimate(exchange.asked) == KINDS["chat"].estimate(exchanges[0].asked)
        assert exchange.price is not None
    assert threads[0] == threading.get_ident()
    assert threads[1] != threading.get_ident()


def turns(count: int) -> bytes:
    return json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "Hi"}] * count}).encode()


def token_ids(count: int) -> bytes:
    return json.dumps({"model": "text-embedding-3-small", "input": list(range(count))}).encode()


@pytest.mark.parametrize(
    ("body", "at_once"),
    [
        (chat(AT_ONCE_BYTES - 200), True),
        (chat(AT_ONCE_BYTES), False),
        (chat(0).replace(b"A", b"a, " * 1_000), True),
        (turns(50), True),
        (turns(600), False),
        (token_ids(3_000), True),
        (token_ids(6_000), False),
        (b'{"x": [%s]}' % b", ".join([b"[]"] * 6_000), False),
        # Never mind what is in it: so few bytes are soon read.
        (b"[" * 16_384, True),
    ],
    ids=["an image", "a large image", "prose", "a chat", "a long chat", "ids", "many ids", "lists", "garbage"],
)
def test_what_has_many_values_takes_long_too(body, at_once):
    assert takes_long(body) is not at_once


async def test_what_takes_long_is_estimated_beside_the_loop_and_once(bench, monkeypatch):
    """Admission looks at it again and again, should the request wait."""
    seen = []
    kind = KINDS["chat"]

    def noted(asked):
        seen.append(threading.get_ident() == threading.main_thread().ident)
        return kind.estimate(asked)

    for body, expected in ((turns(600), [False]), (turns(2), [True])):
        exchange = await bench.exchange(chat(1))
        monkeypatch.setattr(exchange_module, "KINDS", {**KINDS, "chat": replace(kind, estimate=noted)})
        await interpret(exchange, body, bench.services)
        await admit(exchange, bench.services)
        assert exchange.reserved_input_tokens == kind.estimate(exchange.asked)
        assert seen == expected
        seen.clear()


@pytest.mark.parametrize("query", ["model=gpt-4o", "x=1&mod%65l=gpt-4o", "model", "Model=gpt-4o", "model=gpt-4o-mini"])
async def test_no_model_is_named_in_the_query(bench, query):
    exchange = await bench.exchange(chat(1))
    exchange.query = query
    with pytest.raises(InvalidRequest) as refused:
        await interpret(exchange, chat(1), bench.services)
    assert refused.value.param == "model"


async def test_any_other_query_is_upstreams_to_read(bench):
    exchange = await bench.exchange(chat(1))
    exchange.query = "beta=true&models=x&amodel=y&model[]=z"
    await interpret(exchange, chat(1), bench.services)
    assert exchange.asked.model == MODEL


async def test_others_have_their_turn_meanwhile(bench, monkeypatch):
    loop, parse, had_a_turn = asyncio.get_running_loop(), module.parse_object, threading.Event()

    def parse_after_the_turn(body: bytes, max_depth: int):
        loop.call_soon_threadsafe(had_a_turn.set)
        assert had_a_turn.wait(20), "the loop stood still"
        return parse(body, max_depth)

    monkeypatch.setattr(module, "parse_object", parse_after_the_turn)
    exchange, body = await bench.exchange(chat(1)), chat(20 * AT_ONCE_BYTES)
    await interpret(exchange, body, bench.services)
    assert exchange.asked.raw == body


@pytest.mark.parametrize("size", [10, AT_ONCE_BYTES])
async def test_what_is_refused_is_refused_at_any_size(bench, size):
    exchange = await bench.exchange(chat(1))
    for broken in (chat(size)[:-1], chat(size).replace(b'"model"', b'"messages"'), b"[" * size):
        with pytest.raises(InvalidRequest):
            await interpret(exchange, broken, bench.services)


async def test_what_is_large_gets_another_name_beside_the_loop_too(bench, monkeypatch):
    seen = []

    def noted(raw: bytes, model: str):
        seen.append(threading.get_ident() == threading.main_thread().ident)
        return with_model(raw, model)

    for each in (module, forward_module):
        monkeypatch.setattr(each, "with_model", noted)
    house = Upstream([Play([b"{}"])])
    mapped = Site(Candidate("mapped", "m", models={MODEL: "there"}), (SiteKey(1, house),))
    services = replace(bench.with_policy(aliases={"fast": MODEL}), upstreams=Upstreams([mapped]))
    for body in (chat(100), chat(AT_ONCE_BYTES)):
        exchange = await bench.exchange(body)
        await interpret(exchange, body.replace(MODEL.encode(), b"fast"), services)
        assert (exchange.named, exchange.asked.model, exchange.asked.raw) == ("fast", MODEL, body)
        dispatch(exchange, services)
        await forward(exchange, services)
        assert house.requests[-1].body == body.replace(MODEL.encode(), b"there")
    assert seen == [True, True, False, False]
