"""The operations listener beside the admin API."""

from __future__ import annotations

import asyncio
import threading

import aiohttp
import pytest
from aiohttp import web

from proxy.app.listen import listen, runner_of
from proxy.web.operations import Operations


@pytest.fixture
async def rendered():
    """What was rendered for whom, and where to ask."""
    asked = []

    def render(accept):
        asked.append((accept, threading.current_thread()))
        return b"some_metric 1\n", "text/plain; version=0.0.4; charset=utf-8"

    runner = runner_of(Operations(render_metrics=render, checks={}, admin=None).server(), shutdown_seconds=1.0)
    yield asked, await listen(runner, "127.0.0.1", 0)
    await runner.cleanup()


@pytest.mark.parametrize(
    ("headers", "told"),
    [
        ([("Accept", "application/openmetrics-text")], "application/openmetrics-text"),
        (
            [("Accept", "text/plain"), ("Accept", "application/openmetrics-text")],
            "text/plain,application/openmetrics-text",
        ),
    ],
)
async def test_metrics_are_rendered_off_the_loop_in_the_form_that_is_accepted(rendered, headers, told):
    asked, url = rendered
    async with aiohttp.ClientSession() as session, session.get(f"{url}/metrics", headers=headers) as answer:
        assert answer.status == 200
        assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert await answer.read() == b"some_metric 1\n"
    ((accept, thread),) = asked
    assert accept == told
    assert thread is not threading.main_thread()


async def test_a_head_is_answered_without_a_body(rendered):
    _, url = rendered
    async with aiohttp.ClientSession() as session, session.head(f"{url}/metrics") as answer:
        assert answer.status == 200
        assert await answer.read() == b""


async def test_nothing_is_written_there(rendered):
    asked, url = rendered
    async with aiohttp.ClientSession() as session, session.post(f"{url}/metrics") as answer:
        assert answer.status == web.HTTPMethodNotAllowed.status_code
    assert not asked


async def test_scrapers_that_come_together_are_served_one_after_another():
    both = threading.Barrier(2)
    met = []

    def render(_):
        try:
            both.wait(0.2)
        except threading.BrokenBarrierError:
            met.append(False)
        else:
            met.append(True)
        return b"some_metric 1\n", "text/plain"

    runner = runner_of(Operations(render_metrics=render, checks={}, admin=None).server(), shutdown_seconds=1.0)
    url = await listen(runner, "127.0.0.1", 0)
    async with aiohttp.ClientSession() as session:
        answers = await asyncio.gather(*(session.get(f"{url}/metrics") for _ in range(4)))
        assert [await answer.text() for answer in answers] == ["some_metric 1\n"] * 4
    await runner.cleanup()
    assert met == [False] * 4
