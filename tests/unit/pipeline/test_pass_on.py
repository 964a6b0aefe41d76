"""Answers that are passed unheld: however they are cut, the account is written before their last byte goes out."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from proxy.core.endpoints import IMAGES, SPEECH
from proxy.core.errors import UpstreamFailure, UpstreamFault
from proxy.core.event import Outcome
from proxy.core.ids import uuid7
from proxy.pipeline.exchange import Exchange
from tests.support.stage import PRICES, Asked, Client, Play, Stage, on_stage

USAGE = {"input_tokens": 50, "output_tokens": 7, "input_tokens_details": {"text_tokens": 50}}
IMAGE = json.dumps({"data": [{"b64_json": "A" * 300}], "usage": USAGE}).encode() + b"\n"
EVENTS = b"".join(
    b"event: image_generation.%b\ndata: %b\n\n" % (kind, json.dumps(event).encode())
    for kind, event in (
        (b"partial_image", {"type": "image_generation.partial_image", "b64_json": "A" * 90}),
        (b"completed", {"type": "image_generation.completed", "b64_json": "A" * 90, "usage": USAGE}),
    )
)
SOUND = bytes(range(256))
ANSWERS = {"application/json": (IMAGES, IMAGE), "text/event-stream": (IMAGES, EVENTS), "audio/mpeg": (SPEECH, SOUND)}
ASKED = {
    IMAGES: {"model": "gpt-image-1", "prompt": "A fox.", "stream": True},
    SPEECH: {"model": "tts-1", "input": "Hi", "voice": "alloy"},
}


class Witness(Client):
    """A client that notes with each piece whether the account was written."""

    exchange: Exchange

    def __init__(self, *arguments, **more) -> None:
        super().__init__(*arguments, **more)
        self.settled: list[bool] = []

    async def write(self, data: bytes) -> None:
        self.settled.append(self.exchange.settled)
        await super().write(data)

    async def close(self) -> None:
        assert self.exchange.settled
        await super().close()


def ask(stage: Stage, endpoint: str, **client) -> Asked:
    now_ms = stage.clock.now_ms()
    who = Witness(ASKED[endpoint], **client)
    who.exchange = Exchange(
        event_id=uuid7(now_ms, bytes(10)),
        request_id="req_0",
        client_request_id="",
        at_ms=now_ms,
        started_ns=stage.clock.monotonic_ns(),
        method="POST",
        path="/images/generations",
        query="",
        endpoint=endpoint,
        headers=CIMultiDict({"Authorization": "Bearer growth"}),
    )
    task = asyncio.get_running_loop().create_task(stage._serve(who.exchange, who))
    asked = Asked(who, who.exchange, task)
    stage.asked.append(asked)
    return asked


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted({place % len(data) for place in places} - {0}), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


@pytest.mark.parametrize("drains", [0, 5])
@pytest.mark.parametrize("kind", ANSWERS)
@given(places=st.lists(st.integers(0, 10_000), max_size=12))
def test_it_is_the_same_bytes_and_settled_before_the_last(kind, drains, places):
    endpoint, body = ANSWERS[kind]

    async def play() -> None:
        stage = Stage(Play(cut(body, places), kind=kind), max_draining=drains)
        asked = ask(stage, endpoint)
        await stage.all()
        client = asked.client
        assert client.text == body
        assert client.closed
        assert not client.aborted
        assert client.settled[-1] or kind == "text/event-stream"
        assert stage.books.ended[0].usage.total_tokens == (57 if endpoint == IMAGES else 0)
        # The model has no price in the table of the package, and a sound none that could be right.
        assert stage.books.ended[0].price_id is None
        assert await stage.charged() == (1, 57 if endpoint == IMAGES else 0)
        stage.ties_out()

    on_stage(play)


@pytest.mark.parametrize("kind", ANSWERS)
def test_pieces_go_out_as_they_come(kind):
    """All but the last byte of what has come, where nobody knows whether more is to come."""
    endpoint, body = ANSWERS[kind]

    async def play() -> None:
        stage = Stage(Play([body[:100], 60.0, body[100:]], kind=kind))
        asked = ask(stage, endpoint)
        await asyncio.sleep(30)
        held = 0 if kind == "text/event-stream" else 1
        assert asked.client.text == body[: 100 - held]
        assert asked.client.settled == [False]
        await stage.all()
        assert asked.client.text == body

    on_stage(play)


def test_the_head_of_a_stream_does_not_wait_for_its_first_event():
    async def play() -> None:
        stage = Stage(Play([60.0, EVENTS], kind="text/event-stream"))
        asked = ask(stage, IMAGES)
        await asyncio.sleep(1)
        assert asked.client.head is not None
        await stage.all()

    on_stage(play)


@pytest.mark.parametrize("place", [0, 1, 50, -40, -2])
@pytest.mark.parametrize("kind", ANSWERS)
@pytest.mark.parametrize("fault", [None, UpstreamFault.BROKEN])
def test_half_an_answer_never_looks_whole(kind, place, fault):
    endpoint, body = ANSWERS[kind]
    if kind == "audio/mpeg" and fault is None:
        return  # nobody can tell

    async def play() -> None:
        steps = [body[:place], *([UpstreamFailure("stage", fault)] if fault else [])]
        stage = Stage(Play(steps, kind=kind))
        asked = ask(stage, endpoint)
        await stage.all()
        assert not asked.client.closed
        assert asked.client.aborted or (asked.client.head is None and asked.status == 502)
        (event,) = stage.books.ended
        assert event.outcome is Outcome.UPSTREAM_ERROR
        assert await stage.charged() == (1, event.usage.total_tokens)
        stage.ties_out()

    on_stage(play)


def test_a_stream_that_has_said_all_is_whole_however_its_connection_ends():
    async def play() -> None:
        stage = Stage(Play([EVENTS, UpstreamFailure("stage", UpstreamFault.BROKEN)], kind="text/event-stream"))
        asked = ask(stage, IMAGES)
        await stage.all()
        assert asked.client.closed
        assert asked.client.text == EVENTS
        assert stage.books.ended[0].outcome is Outcome.OK

    on_stage(play)


def test_an_error_of_upstreams_own_ends_a_stream_once():
    error = b'event: error\ndata: {"type": "error", "error": {"message": "no"}}\n\n'

    async def play() -> None:
        stage = Stage(Play([EVENTS[:120], EVENTS[120:122] and b"\n\n" + error], kind="text/event-stream"))
        asked = ask(stage, IMAGES)
        await stage.all()
        assert asked.client.aborted
        assert asked.client.text.endswith(error)
        assert asked.client.text.count(b"event: error") == 1

    on_stage(play)


@pytest.mark.parametrize("kind", ANSWERS)
def test_a_client_that_leaves_is_accounted_for_and_upstream_let_go(kind):
    endpoint, body = ANSWERS[kind]

    async def play() -> None:
        stage = Stage(Play([body[:30], 600.0, body[30:]], kind=kind))
        asked = ask(stage, endpoint)
        await asyncio.sleep(1)
        await asked.leave()
        (event,) = stage.books.ended
        assert (event.outcome, event.estimated) == (Outcome.CLIENT_GONE, True)
        assert stage.upstream.cut == 1
        stage.ties_out()

    on_stage(play)


@pytest.mark.parametrize("seen", [0, 30])
def test_who_leaves_before_the_usage_pays_for_the_images_all_the_same(seen):
    async def play() -> None:
        # An iterator: who asks for chunks again is given those that have not come.
        steps = iter([IMAGE[:seen], 1.0, 3.0, IMAGE[seen:]] if seen else [1.0, 3.0, IMAGE])
        stage = Stage(Play(steps, kind="application/json"))
        asked = ask(stage, IMAGES)
        await asyncio.sleep(1)
        await asked.leave()
        (event,) = stage.books.ended
        assert (event.outcome, event.estimated, event.status) == (Outcome.CLIENT_GONE, False, 200 if seen else 499)
        assert (event.usage.input_tokens, event.usage.output_tokens) == (50, 7)
        assert stage.upstream.cut == 0
        stage.ties_out()

    on_stage(play)


def test_where_answers_are_drained_the_usage_is_known_though_the_client_left():
    async def play() -> None:
        stage = Stage(Play([IMAGE[:30], 5.0, IMAGE[30:]]), max_draining=5)
        asked = ask(stage, IMAGES)
        await asyncio.sleep(1)
        await asked.leave()
        await stage.all()
        (event,) = stage.books.ended
        assert (event.usage.total_tokens, event.estimated) == (57, False)
        assert stage.upstream.cut == 0

    on_stage(play)


@pytest.mark.parametrize("most", [0, 5], ids=["cancel", "drain"])
def test_a_silent_stream_is_kept_alive_between_its_events_alone(most):
    first = EVENTS.index(b"\n\n") + 2

    async def play() -> None:
        steps = [9.0, EVENTS[:first], 9.0, EVENTS[first : first + 20], 9.0, EVENTS[first + 20 :]]
        stage = Stage(Play(steps, kind="text/event-stream"), max_draining=most, keep_alive_seconds=2.0)
        asked = ask(stage, IMAGES)
        await stage.all()
        said = b"".join(asked.client.pieces).replace(b": keep-alive\n\n", b".")
        assert said == b"...." + EVENTS[:first] + b"...." + EVENTS[first:]
        stage.ties_out()

    on_stage(play)


def test_a_price_that_fits_is_charged_and_one_that_does_not_is_not():
    price = replace(PRICES.price("gpt-4o-mini", 0), model="gpt-image-1")

    class Book:
        def price(self, model, _):
            return price if model == "gpt-image-1" else None

    async def play() -> None:
        for details, priced in (({"text_tokens": 50}, True), ({"text_tokens": 10, "image_tokens": 40}, False)):
            body = json.dumps({"data": [], "usage": USAGE | {"input_tokens_details": details}}).encode()
            stage = Stage(Play([body]))
            stage.services = replace(stage.services, prices=Book())
            ask(stage, IMAGES)
            await stage.all()
            (event,) = stage.books.ended
            assert (event.price_id is not None, event.cost_pico_usd > 0) == (priced, priced)
            assert stage.books.records[0].unpriced is not priced

    on_stage(play)
