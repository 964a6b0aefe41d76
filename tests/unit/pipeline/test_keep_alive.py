"""Comments in streams that are silent: on a stage, in virtual time."""

import asyncio
import itertools

import pytest

from proxy.core.errors import UpstreamFailure, UpstreamFault
from proxy.pipeline.keep_alive import COMMENT, KeepAlive
from tests.support.stage import Client, Play, Stage, chat, on_stage, plain, stream
from tests.support.tasks import Tasks

SSE = "text/event-stream; charset=utf-8"
SHARED = chat(stream=True)
ALONE = chat(stream=True, temperature=1)
BODIES = pytest.mark.parametrize(
    "body", [SHARED, ALONE, {**ALONE, "stream_options": {"include_usage": True}}], ids=["shared", "alone", "as it is"]
)


def streamed(*steps, **play):
    return Play(steps, kind=SSE, **play)


def alive(*plays, seconds=2.0, **policy):
    return Stage(*plays, keep_alive_seconds=seconds, **policy)


def shape(pieces):
    """Comments as dots, pieces of upstream as letters."""
    return "".join("." if piece == COMMENT else "x" for piece in pieces)


@BODIES
@pytest.mark.parametrize("most", [0, 5], ids=["cancel", "drain"])
def test_a_comment_for_every_silence_of_so_long(body, most):
    async def play():
        first, *rest = stream("a", "b")
        stage = alive(streamed(5.0, first, 1.9, rest[0], 1.9, rest[1], 4.5, *rest[2:]), max_draining=most)
        asked = stage.ask(body)
        await stage.all()
        said = shape(asked.client.pieces)
        assert said.startswith("..xxx..x")
        assert said.count(".") == 4
        assert asked.client.closed
        assert asked.client.text.replace(COMMENT, b"").endswith(b"data: [DONE]\n\n")
        stage.ties_out()

    on_stage(play)


@BODIES
def test_none_where_it_is_off(body):
    async def play():
        stage = alive(streamed(1_000.0, *stream("a")), seconds=0)
        asked = stage.ask(body)
        await stage.all()
        assert COMMENT not in asked.client.text
        stage.ties_out()

    on_stage(play)


@pytest.mark.parametrize("body", [chat(), chat(temperature=1)])
def test_none_before_the_head_and_none_in_a_plain_answer(body):
    async def play():
        stage = alive(Play([100.0, plain()], before=[100.0]))
        asked = stage.ask(body)
        await stage.all()
        assert asked.body == plain()
        late = Stage(streamed(*stream("a"), before=[100.0]), keep_alive_seconds=2.0)
        other = late.ask({**body, "stream": True})
        await asyncio.sleep(99)
        assert other.client.head is None
        await late.all()
        assert COMMENT not in other.client.text

    on_stage(play)


@BODIES
def test_none_within_an_event(body):
    whole = b"".join(stream("a", "b"))

    async def play():
        bare = Stage(streamed(whole))
        reference = bare.ask(body)
        await bare.all()
        for cut in range(1, len(whole)):
            stage = alive(streamed(whole[:cut], 0.9, whole[cut:]), seconds=0.2)
            asked = stage.ask(body)
            await stage.all()
            for before, piece in itertools.pairwise([b"", *asked.client.pieces]):
                if piece == COMMENT:
                    assert not before or before.endswith(b"\n\n"), cut
            assert asked.client.text.replace(COMMENT, b"") == reference.client.text
            said_while_silent = asked.client.text.count(COMMENT)
            if body.get("stream_options"):
                assert said_while_silent == (4 if whole[:cut].endswith(b"\n\n") else 0), cut
            else:
                # Where we wait for the event to be whole the client has seen nothing of it.
                assert said_while_silent == 4, cut

    on_stage(play)


@BODIES
def test_none_after_the_last_byte(body):
    async def play():
        stage = alive(streamed(*stream("a"), 60.0))
        asked = stage.ask(body)
        await asyncio.sleep(30)
        assert asked.client.text.endswith(b"data: [DONE]\n\n")
        assert not asked.client.closed, "upstream has not hung up yet"
        await stage.all()
        assert COMMENT not in asked.client.text
        await asyncio.sleep(100)
        assert COMMENT not in asked.client.text
        stage.ties_out()

    on_stage(play)


@BODIES
def test_none_after_a_stream_has_broken(body):
    async def play():
        broken = UpstreamFailure("stage", UpstreamFault.BROKEN)
        stage = alive(streamed(*stream("a")[:2], 3.0, broken))
        asked = stage.ask(body)
        await stage.all()
        await asyncio.sleep(100)
        assert shape(asked.client.pieces).replace("xx", "x") == "x.x"
        assert asked.client.aborted

    on_stage(play)


@BODIES
def test_none_behind_an_error_of_upstream(body):
    async def play():
        error = b'data: {"error": {"message": "no", "type": "server_error", "param": null, "code": null}}\n\n'
        stage = alive(streamed(*stream("a")[:2], error, 30.0))
        asked = stage.ask(body)
        await stage.all()
        assert asked.client.text.endswith(error)

    on_stage(play)


@BODIES
def test_a_comment_is_no_first_byte(body):
    async def play():
        stage = alive(streamed(7.0, *stream("a")))
        asked = stage.ask(body)
        await stage.all()
        assert COMMENT in asked.client.text
        (record,) = stage.books.records
        assert record.ttft_ms == 7_000

    on_stage(play)


def test_who_joins_is_kept_alive_too_and_nothing_of_it_is_kept():
    async def play():
        stage = alive(streamed(*[step for event in stream("a", "b") for step in (5.0, event)]))
        first = stage.ask(SHARED)
        await asyncio.sleep(11)
        late = stage.ask(SHARED)
        await stage.all()
        assert first.client.text.count(COMMENT) > late.client.text.count(COMMENT) > 0
        assert {each.client.text.replace(COMMENT, b"") for each in (first, late)} == {late.body.replace(COMMENT, b"")}
        again = stage.ask(SHARED)
        await stage.all()
        assert again.headers["Cache-Status"].startswith("tollgate; hit")
        assert b"keep-alive" not in again.body
        stage.ties_out()

    on_stage(play)


@BODIES
def test_who_does_not_read_is_sent_none(body):
    async def play():
        gate = asyncio.Event()
        events = stream("a", "b")
        stage = alive(streamed(events[0], 60.0, *events[1:]))
        asked = stage.ask(body, gate=gate)
        await asyncio.sleep(59.5)
        assert asked.client.pieces == []
        gate.set()
        await asyncio.sleep(0.1)
        assert shape(asked.client.pieces).strip("x") == ""
        await stage.all()
        stage.ties_out()

    on_stage(play)


@BODIES
def test_nobody_is_spoken_to_who_has_left(body):
    async def play():
        stage = alive(streamed(*stream("a")[:1], 60.0), max_draining=5)
        asked = stage.ask(body)
        await asyncio.sleep(5)
        await asked.leave()
        before = list(asked.client.pieces)
        await stage.all()
        assert asked.client.pieces == before

    on_stage(play)


@pytest.mark.parametrize("error", [ConnectionResetError(), RuntimeError()])
def test_one_that_cannot_be_spoken_to_harms_nobody(error):
    async def play():
        tasks, client = Tasks(), Client(chat())
        tried = 0

        async def write(_):
            nonlocal tried
            tried += 1
            raise error

        client.write = write
        kept = KeepAlive(client, 1, lambda: True, tasks)
        await kept.open(200, ())
        await asyncio.sleep(10)
        assert tried == 1
        await tasks.finished()
        kept.end()

    on_stage(play)


def test_what_is_written_in_the_last_moment_takes_the_place_of_a_comment():
    async def play():
        spawned, client = [], Client(chat())
        kept = KeepAlive(client, 1, lambda: True, spawned.append)
        await kept.open(200, ())
        await asyncio.sleep(1.5)
        (speaking,) = spawned
        kept.end()
        await speaking
        assert client.pieces == []

    on_stage(play)
