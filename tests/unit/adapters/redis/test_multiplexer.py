"""How often a server that is away is tried, on virtual time."""

import asyncio

import async_solipsism
import pytest

from proxy.adapters.redis.multiplexer import Multiplexer, MultiplexerOptions
from proxy.adapters.redis.outcomes import NeverSent, Why
from tests.support.tasks import Tasks

OPTIONS = MultiplexerOptions(first_backoff_seconds=0.1, max_backoff_seconds=1.0)


def tries_within(seconds, jitter):
    """When nobody knows where the server is, the times at which that is asked."""
    tried_at = []

    async def nobody_knows():
        tried_at.append(asyncio.get_running_loop().time())
        raise NeverSent(Why.AWAY, "nowhere")

    async def run():
        tasks = Tasks()
        multiplexer = Multiplexer(nobody_knows, tasks, OPTIONS, jitter=lambda: jitter)
        with pytest.raises(NeverSent, match="nowhere"):
            await multiplexer.open()
        await asyncio.sleep(seconds)
        with pytest.raises(NeverSent) as caught:
            multiplexer.call("PING")
        assert caught.value.why is Why.AWAY
        assert not multiplexer.post("PING")
        assert multiplexer.counts.posts_refused == 1
        assert tasks.running() == 1
        await multiplexer.close()
        await multiplexer.close()
        await tasks.finished()
        with pytest.raises(NeverSent) as caught:
            multiplexer.call("PING")
        assert caught.value.why is Why.CLOSED

    loop = async_solipsism.EventLoop()
    try:
        loop.run_until_complete(run())
    finally:
        loop.close()
    return tried_at


def test_a_server_that_is_away_is_tried_ever_less_often_up_to_a_bound():
    assert tries_within(5.0, 1.0) == pytest.approx([0, 0.1, 0.3, 0.7, 1.5, 2.5, 3.5, 4.5])


def test_at_the_other_end_of_the_jitter_it_is_tried_twice_as_often_and_never_at_once():
    assert tries_within(1.0, 0.0) == pytest.approx([0, 0.05, 0.15, 0.35, 0.75])
