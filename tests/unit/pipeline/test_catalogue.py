"""Upstream's list of models, from a real upstream over a real connection."""

import asyncio
import json

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from proxy.adapters.openai import OpenAIUpstream, open_session
from proxy.core.errors import UpstreamFailure, UpstreamFault
from proxy.core.routing import Candidate
from proxy.pipeline.catalogue import Catalogue
from proxy.pipeline.upstreams import Site, SiteKey, Upstreams
from tests.support.stage import LoopClock, Play, Upstream, on_stage

MODELS = [{"id": "m", "object": "model"}]
DEADLINE_MS = 60_000


def _unheard(*_: str) -> None:
    """Of what other tests are about."""


class Shelf:
    """An upstream with one list, given out when it is told to."""

    def __init__(self):
        self.asked = 0
        self.left = 0
        self.status = 200
        self.arrived = asyncio.Event()
        self.open = asyncio.Event()

    async def serve(self, _):
        self.asked += 1
        self.arrived.set()
        await self.open.wait()
        return web.Response(status=self.status, text=json.dumps({"data": MODELS}), content_type="application/json")


@pytest.fixture
async def shelf():
    return Shelf()


@pytest.fixture
async def upstreams(shelf):
    app = web.Application()
    app.router.add_get("/v1/models", shelf.serve)
    async with (
        TestServer(app, handler_cancellation=True) as server,
        open_session(max_connections=200, connect_seconds=5, idle_seconds=30) as session,
    ):
        yield Upstreams.single(OpenAIUpstream("openai", str(server.make_url("/v1")), "sk-own", session))
        shelf.open.set()


async def test_a_hundred_at_once_ask_once_and_again_after_a_minute(shelf, upstreams, clock):
    catalogue = Catalogue()
    callers = [asyncio.ensure_future(catalogue.models(upstreams, clock, DEADLINE_MS, _unheard)) for _ in range(100)]
    await shelf.arrived.wait()
    shelf.open.set()
    assert await asyncio.gather(*callers) == [MODELS] * 100
    clock.ms += 59_999
    assert await catalogue.models(upstreams, clock, DEADLINE_MS, _unheard) == MODELS
    assert shelf.asked == 1
    clock.ms += 1
    assert await catalogue.models(upstreams, clock, DEADLINE_MS, _unheard) == MODELS
    assert shelf.asked == 2


async def test_a_failure_is_everyones_who_waits_and_nobodys_after(shelf, upstreams, clock):
    catalogue = Catalogue()
    shelf.status = 500
    callers = [asyncio.ensure_future(catalogue.models(upstreams, clock, DEADLINE_MS, _unheard)) for _ in range(10)]
    await shelf.arrived.wait()
    shelf.open.set()
    failures = await asyncio.gather(*callers, return_exceptions=True)
    assert [type(failure) for failure in failures] == [UpstreamFailure] * 10
    assert shelf.asked == 1
    shelf.status = 200
    assert await catalogue.models(upstreams, clock, DEADLINE_MS, _unheard) == MODELS


async def test_a_caller_that_leaves_does_not_take_the_others_along(shelf, upstreams, clock):
    catalogue = Catalogue()
    first, second = (asyncio.ensure_future(catalogue.models(upstreams, clock, DEADLINE_MS, _unheard)) for _ in range(2))
    await shelf.arrived.wait()
    first.cancel()
    shelf.open.set()
    assert await second == MODELS
    assert first.cancelled()
    assert shelf.asked == 2


async def test_an_upstream_that_keeps_silent_is_left_at_the_deadline(shelf, upstreams, clock):
    failures = []
    with pytest.raises(UpstreamFailure) as failed:
        await Catalogue().models(upstreams, clock, 50, lambda *told: failures.append(told))
    assert failed.value.fault is UpstreamFault.TIMEOUT
    assert failures == [("openai", "timeout")]


def test_one_that_hangs_keeps_the_lists_of_others_waiting_for_seconds_and_not_at_all_while_it_rests():
    async def play():
        there, hangs = Upstream([Play([json.dumps({"data": MODELS}).encode()])]), Upstream([Play([], before=[9_999.0])])
        sites = [
            Site(Candidate(name, name), (SiteKey(1, house),)) for name, house in (("there", there), ("hangs", hangs))
        ]
        upstreams, catalogue, failures = Upstreams(sites), Catalogue(), []

        async def listed():
            begun = asyncio.get_running_loop().time()
            models = await catalogue.models(upstreams, LoopClock(), 600_000, lambda *told: failures.append(told))
            assert models == MODELS
            return asyncio.get_running_loop().time() - begun

        assert 9 < await listed() < 11
        assert failures == [("stage", "timeout")]
        for _ in range(20):
            sites[1].breaker.failed(int(asyncio.get_running_loop().time() * 1_000))
        assert await listed() == 0
        assert len(hangs.requests) == 1

    on_stage(play)
