"""Warnings to a server of somebody's: signed, once, again until taken, and without a word of what is secret."""

import asyncio
import hashlib
import hmac
import logging

import pytest
from aiohttp import web

from proxy.adapters import webhook as webhooks
from proxy.adapters.webhook import SIGNATURE_HEADER, TRIES, Webhook, open_webhook_session, signature

SECRET = "a-shared-secret-0123456789"
TOKEN = "token-in-the-path-9f3"
NOW_MS = 1_800_000_000_123


class SetClock:
    def now_ms(self):
        return NOW_MS

    def monotonic_ns(self):
        return 0


class Receiver:
    """A server that answers as it is told, one after the other, then 204."""

    def __init__(self):
        self.answers = []
        self.got = []
        self.elsewhere = 0

    async def take(self, request):
        self.got.append((dict(request.headers), await request.read()))
        answer = self.answers.pop(0) if self.answers else 204
        if answer == "hang":
            await asyncio.Event().wait()
        if answer == "break":
            request.transport.abort()
            return web.Response()
        headers = {"Location": "/elsewhere"} if 300 <= answer < 400 else None
        return web.Response(status=answer, headers=headers)

    async def other(self, _request):
        self.elsewhere += 1
        return web.Response()


@pytest.fixture
async def receiver():
    receiver = Receiver()
    app = web.Application()
    app.router.add_post(f"/hook/{TOKEN}", receiver.take)
    app.router.add_route("*", "/elsewhere", receiver.other)
    runner = web.AppRunner(app, shutdown_timeout=0.1, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook/{TOKEN}"
    yield receiver
    await runner.cleanup()


@pytest.fixture
def answer_seconds():
    """How long a receiver has: longer than a machine stands still."""
    return 60


@pytest.fixture
async def made(receiver, monkeypatch, answer_seconds):
    monkeypatch.setattr(webhooks, "_ANSWER_SECONDS", answer_seconds)
    counts, waits = [], []

    async def sleep(seconds):
        waits.append(seconds)

    async with open_webhook_session() as session:

        def make(url=None, sleep=sleep):
            hook = Webhook(url or receiver.url, SECRET, session, SetClock(), counts.append, sleep=sleep, draw=lambda: 1)
            hook.counts, hook.waits = counts, waits
            return hook

        yield make


async def test_a_notice_is_signed_so_that_the_receiver_can_check_it(receiver, made):
    hook = made()
    hook.send(b'{"team":"growth"}')
    await hook.close(60)
    ((headers, body),) = receiver.got
    assert (body, headers["Content-Type"]) == (b'{"team":"growth"}', "application/json")
    parts = dict(part.split("=") for part in headers[SIGNATURE_HEADER].split(","))
    assert parts["t"] == str(NOW_MS // 1_000)
    mine = hmac.new(SECRET.encode(), f"{parts['t']}.".encode() + body, hashlib.sha256).hexdigest()
    assert hmac.compare_digest(mine, parts["v1"])
    assert hook.counts == ["delivered"]


async def test_it_is_tried_again_until_it_is_taken_and_then_no_more(receiver, made, caplog):
    hook = made()
    receiver.answers = [500, 503, "break", 302, 404]
    with caplog.at_level(logging.DEBUG):
        hook.send(b"{}")
        await hook.close(60)
    assert len(receiver.got) == 6
    assert receiver.elsewhere == 0, "a redirect leads nowhere"
    assert hook.counts == ["failed"] * 5 + ["delivered"]
    assert hook.waits == [10, 20, 40, 80, 160]
    assert {headers[SIGNATURE_HEADER] for headers, _ in receiver.got} == {
        signature(SECRET.encode(), NOW_MS // 1_000, b"{}")
    }
    assert len([line for line in caplog.messages if "not taken" in line]) == 5
    assert SECRET not in caplog.text
    assert TOKEN not in caplog.text


@pytest.mark.parametrize("answer_seconds", [0.05])
async def test_a_receiver_that_says_nothing_has_not_taken_it(receiver, made, caplog):
    hook = made()
    receiver.answers = ["hang"] * TRIES
    hook.send(b"{}")
    await hook.close(60)
    assert hook.counts == ["failed"] * TRIES + ["lost"]
    assert len([line for line in caplog.messages if "no answer in time" in line]) == TRIES


async def test_nobody_there_is_a_failure_like_any_other(made):
    hook = made(url=f"http://127.0.0.1:1/{TOKEN}")
    hook.send(b"{}")
    await hook.close(60)
    assert hook.counts == ["failed"] * TRIES + ["lost"]
    assert sum(hook.waits) <= 3_700, "an hour at most"
    assert TOKEN not in repr(hook)


async def test_what_waits_is_bounded_and_what_is_left_at_the_end_is_counted(receiver, made, monkeypatch):
    monkeypatch.setattr(webhooks, "MOST_WAITING", 3)
    never, all_wait, waiting = asyncio.Event(), asyncio.Event(), []

    async def wait(seconds):
        waiting.append(seconds)
        if len(waiting) == 3:
            all_wait.set()
        await never.wait()

    hook = made(sleep=wait)
    receiver.answers = [503] * 3
    for _ in range(5):
        hook.send(b"{}")
    assert hook.counts == ["lost"] * 2
    await all_wait.wait()
    await hook.close(0.01)
    assert (hook.counts.count("lost"), hook.counts.count("delivered")) == (5, 0)
    hook.send(b"{}")
    assert hook.counts[-1] == "lost", "nothing is taken up any more"
