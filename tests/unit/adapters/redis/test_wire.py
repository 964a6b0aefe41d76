"""The protocol alone, on virtual time, with a transport in memory and a server that is a function."""

import asyncio
from contextlib import contextmanager

import async_solipsism
import pytest
from hiredis import Reader
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.adapters.redis.outcomes import ConnectionLost, ErrorReply, NeverSent, TimedOut, Why
from proxy.adapters.redis.wire import Bounds, Wire

BOUNDS = Bounds(deadline_seconds=0.1, silence_seconds=1.0, max_in_flight=100, max_queued_bytes=1_000)


class Pipe(asyncio.Transport):
    """Keeps what is written; closes as a socket does, in a later turn."""

    def __init__(self, loop, protocol):
        super().__init__()
        self._loop = loop
        self._protocol = protocol
        self.writes = []
        self.closed = False
        self.high = None

    def set_write_buffer_limits(self, high=None, low=None):
        self.high = high

    def write(self, data):
        self.writes.append(bytes(data))

    def close(self):
        if not self.closed:
            self.closed = True
            self._loop.call_soon(self._protocol.connection_lost, None)

    abort = close


class Diary:
    """An owner that writes down what it is told."""

    def __init__(self):
        self.told = []

    def answered(self, wire):
        self.told.append("answered")

    def refused(self, wire, reply):
        self.told.append(reply.code)

    def overdue(self, wire, commands):
        self.told.append(f"overdue {commands}")

    def lost(self, wire):
        self.told.append("lost")


class Bench:
    """A wire, its transport, and both ends of the conversation."""

    def __init__(self, bounds):
        self.loop = asyncio.get_running_loop()
        self.diary = Diary()
        self.wire = Wire(self.diary, bounds, self.loop)
        self.pipe = Pipe(self.loop, self.wire)
        self.wire.connection_made(self.pipe)

    def call(self, *args):
        future = self.loop.create_future()
        self.wire.send(future, args)
        return future

    def requests(self):
        """Every command that was written, as the server would read it."""
        reader = Reader()
        reader.feed(b"".join(self.pipe.writes))
        return list(iter(reader.gets, False))


@contextmanager
def bench_loop():
    loop = async_solipsism.EventLoop()
    try:
        yield loop
    finally:
        loop.close()


@pytest.fixture
def converse():
    """Run a conversation with a wire on a loop of virtual time."""

    def run(conversation, bounds=BOUNDS):
        async def talk():
            await conversation(Bench(bounds))

        with bench_loop() as loop:
            loop.run_until_complete(talk())

    return run


async def turn():
    """Let the loop do what is due now."""
    for _ in range(3):
        await asyncio.sleep(0)


# Order

steps = st.lists(
    st.one_of(
        st.tuples(st.just("call"), st.sampled_from(["number", "text", "list", "error"])),
        st.tuples(st.just("cancel"), st.integers(0, 30)),
        st.tuples(st.just("turn"), st.none()),
        st.tuples(st.just("deliver"), st.integers(1, 60)),
        st.tuples(st.just("wait"), st.sampled_from([0.04, 0.11, 0.3])),
    ),
    max_size=60,
)


def reply_to(number, kind):
    return {
        "number": b":%d\r\n" % number,
        "text": b"$%d\r\n%d\r\n" % (len(str(number)), number),
        "list": b"*2\r\n:%d\r\n*1\r\n$-1\r\n" % number,
        "error": b"-NOSCRIPT %d\r\n" % number,
    }[kind]


def number_in(result):
    match result:
        case [number, [None]]:
            return number
        case ErrorReply(code="NOSCRIPT", message=message):
            return int(message)
        case _:
            return int(result)


class Conversation:
    """A server's answers, cut at any byte, to calls that may be cancelled at any time."""

    def __init__(self, bench):
        self.bench = bench
        self.calls = []
        self.answers = b""
        self.answered = 0
        self.delivered = 0

    async def step(self, what, argument):
        if what == "call" and not self.bench.pipe.closed:
            self.calls.append((argument, self.bench.call("ECHO", len(self.calls), argument)))
        elif what == "cancel" and self.calls:
            self.calls[argument % len(self.calls)][1].cancel()
        elif what == "turn":
            await turn()
        elif what == "wait":
            await asyncio.sleep(argument)
        elif what == "deliver":
            self.deliver(argument)

    def deliver(self, size):
        for _, number, kind in self.bench.requests()[self.answered :]:
            self.answers += reply_to(int(number), kind.decode())
            self.answered += 1
        piece = self.answers[self.delivered : self.delivered + size]
        if piece and not self.bench.pipe.closed:
            self.delivered += len(piece)
            self.bench.wire.data_received(piece)

    def check(self):
        for number, (kind, future) in enumerate(self.calls):
            if not future.done() or future.cancelled():
                continue
            error = future.exception()
            if isinstance(error, TimedOut | ConnectionLost | NeverSent):
                continue
            assert number_in(error or future.result()) == number
            assert isinstance(error, ErrorReply) == (kind == "error")


@settings(max_examples=300, deadline=None)
@given(steps)
def test_reply_i_goes_to_request_i_whoever_is_cancelled_and_wherever_replies_are_cut(moves):
    async def talk():
        conversation = Conversation(Bench(BOUNDS))
        for what, argument in moves:
            await conversation.step(what, argument)
        conversation.check()
        if not conversation.bench.pipe.closed:
            await turn()
            conversation.deliver(100_000)
            conversation.check()
            assert all(future.done() for _, future in conversation.calls)
            assert len(conversation.bench.wire) == 0

    with bench_loop() as loop:
        loop.run_until_complete(talk())


@settings(max_examples=200, deadline=None)
@given(steps, st.booleans())
def test_nothing_is_left_pending_after_a_disconnect_and_every_fate_is_told(moves, last_turn):
    async def talk():
        conversation = Conversation(Bench(BOUNDS))
        for what, argument in moves:
            await conversation.step(what, argument)
        if last_turn:
            await turn()
        bench = conversation.bench
        if not bench.wire.is_lost:
            written = len(bench.requests())
            pending = [not future.done() for _, future in conversation.calls]
            bench.wire.connection_lost(None)
            for number, (_, future) in enumerate(conversation.calls):
                if pending[number]:
                    assert isinstance(future.exception(), ConnectionLost if number < written else NeverSent)
        conversation.check()
        assert all(future.done() for _, future in conversation.calls)
        assert len(bench.wire) == 0
        assert bench.wire.gone.is_set()
        assert bench.diary.told[-1] == "lost"
        await turn()

    with bench_loop() as loop:
        loop.run_until_complete(talk())


def test_what_comes_in_one_turn_is_written_at_once_and_not_before(converse):
    async def talk(bench):
        for number in range(5):
            bench.call("GET", number)
        assert bench.pipe.writes == []
        await turn()
        assert len(bench.pipe.writes) == 1
        assert bench.requests() == [[b"GET", str(number).encode()] for number in range(5)]

    converse(talk)


def test_arguments_are_packed_as_the_server_reads_them(converse):
    async def talk(bench):
        bench.call("SET", "ü", b"\r\n\x00", -7, "")
        await turn()
        assert bench.requests() == [[b"SET", "ü".encode(), b"\r\n\x00", b"-7", b""]]

    converse(talk)


def test_an_argument_that_cannot_be_packed_takes_no_slot(converse):
    async def talk(bench):
        for argument in (object(), "\ud800"):
            with pytest.raises((TypeError, UnicodeError)):
                bench.call("GET", argument)
        assert len(bench.wire) == 0

    converse(talk)


# Deadlines


def test_a_late_reply_goes_to_its_own_slot_and_the_connection_goes_on(converse):
    async def talk(bench):
        late = bench.call("GET", "a")
        await asyncio.sleep(0.09)
        assert not late.done()
        soon = bench.call("GET", "b")
        await asyncio.sleep(0.02)
        assert isinstance(late.exception(), TimedOut)
        assert not soon.done()
        bench.wire.data_received(b":1\r\n:2\r\n")
        assert soon.result() == 2
        assert not bench.pipe.closed
        assert bench.diary.told == ["overdue 1", "answered"]

    converse(talk)


def test_late_replies_alone_are_no_sign_of_life(converse):
    async def talk(bench):
        late = bench.call("GET", "a")
        await asyncio.sleep(0.2)
        bench.wire.data_received(b":1\r\n")
        assert isinstance(late.exception(), TimedOut)
        assert bench.diary.told == ["overdue 1"]

    converse(talk)


def test_a_connection_on_which_nothing_comes_is_dropped(converse):
    async def talk(bench):
        first = bench.call("GET", "a")
        await asyncio.sleep(0.95)
        second = bench.call("GET", "b")
        await asyncio.sleep(0.04)
        assert not bench.pipe.closed
        await asyncio.sleep(0.02)
        assert bench.pipe.closed
        assert isinstance(first.exception(), TimedOut)
        assert isinstance(second.exception(), ConnectionLost)

    converse(talk)


def test_a_server_that_is_behind_and_still_answers_is_not_dropped(converse):
    async def talk(bench):
        calls = [bench.call("GET", number) for number in range(5)]
        for _ in range(4):
            await asyncio.sleep(0.9)
            bench.wire.data_received(b":1\r\n")
        assert not bench.pipe.closed
        assert [type(call.exception()) for call in calls] == [TimedOut] * 5
        await asyncio.sleep(1.1)
        assert bench.pipe.closed

    converse(talk)


def test_an_idle_connection_is_left_alone(converse):
    async def talk(bench):
        answered = bench.call("GET", "a")
        await turn()
        bench.wire.data_received(b":1\r\n")
        await asyncio.sleep(3_600)
        assert answered.result() == 1
        assert not bench.pipe.closed

    converse(talk)


def test_one_timer_serves_however_many_are_in_flight(converse):
    async def talk(bench):
        for number in range(20):
            bench.call("GET", number)
            await asyncio.sleep(0.001)
        timers = [handle for handle in bench.loop._scheduled if not handle.cancelled()]
        assert len(timers) == 1

    converse(talk)


def test_another_deadline_holds_at_once_for_what_is_in_flight(converse):
    async def talk(bench):
        bench.wire.hold_to(5.0)
        call = bench.call("AUTH", "x")
        await asyncio.sleep(3.0)
        assert not call.done()
        bench.wire.hold_to(0.1)
        assert isinstance(call.exception(), TimedOut)
        bench.wire.data_received(b"+OK\r\n")
        other = bench.call("GET", "a")
        await asyncio.sleep(0.11)
        assert isinstance(other.exception(), TimedOut)

    converse(talk, Bounds(deadline_seconds=0.1, silence_seconds=10.0))


# Bounds


def test_too_many_in_flight_are_refused_and_none_of_the_others_is_harmed(converse):
    async def talk(bench):
        calls = [bench.call("GET", number) for number in range(3)]
        with pytest.raises(NeverSent) as caught:
            bench.call("GET", 3)
        assert caught.value.why is Why.FULL
        calls[0].cancel()
        # The slot of a cancelled call is in use until its reply has come.
        with pytest.raises(NeverSent):
            bench.call("GET", 3)
        await turn()
        bench.wire.data_received(b":0\r\n")
        bench.call("GET", 3)
        bench.wire.data_received(b":1\r\n:2\r\n")
        assert [call.result() for call in calls[1:]] == [1, 2]

    converse(talk, Bounds(max_in_flight=3))


def test_more_bytes_than_may_be_queued_are_refused(converse):
    async def talk(bench):
        bench.call("SET", "a", b"x" * 900)
        with pytest.raises(NeverSent) as caught:
            bench.call("SET", "a", b"x" * 100)
        assert caught.value.why is Why.FULL
        await turn()
        bench.call("SET", "a", b"x" * 900)
        assert bench.pipe.high == BOUNDS.max_queued_bytes

    converse(talk)


def test_nothing_is_queued_while_the_kernel_takes_no_more(converse):
    async def talk(bench):
        bench.wire.pause_writing()
        with pytest.raises(NeverSent):
            bench.call("GET", "a")
        bench.wire.resume_writing()
        bench.call("GET", "a")
        await turn()
        assert len(bench.requests()) == 1

    converse(talk)


# Ends


@pytest.mark.parametrize("garbage", [b"HTTP/1.1 400 Bad Request\r\n", b":1\r\n:2\r\n", b"*-7\r\n"])
def test_what_cannot_be_a_reply_ends_the_connection(converse, garbage):
    async def talk(bench):
        call = bench.call("GET", "a")
        await turn()
        bench.wire.data_received(garbage)
        await turn()
        assert bench.wire.is_lost
        assert call.done()
        call.exception()

    converse(talk)


def test_a_retired_wire_takes_nothing_new_and_closes_after_the_last_answer(converse):
    async def talk(bench):
        first, second = bench.call("GET", "a"), bench.call("GET", "b")
        bench.wire.retire()
        with pytest.raises(NeverSent):
            bench.call("GET", "c")
        await turn()
        bench.wire.data_received(b":1\r\n")
        assert not bench.pipe.closed
        bench.wire.data_received(b":2\r\n")
        assert bench.pipe.closed
        assert [first.result(), second.result()] == [1, 2]

    converse(talk)


def test_a_wire_with_nothing_in_flight_retires_at_once(converse):
    async def talk(bench):
        bench.wire.retire()
        await turn()
        assert bench.wire.is_lost

    converse(talk)


def test_an_error_is_the_failure_of_its_own_command_only(converse):
    async def talk(bench):
        first, second = bench.call("EVALSHA", "x"), bench.call("GET", "b")
        await turn()
        bench.wire.data_received(b"-NOSCRIPT No matching script.\r\n:2\r\n")
        assert first.exception().code == "NOSCRIPT"
        assert second.result() == 2
        assert bench.diary.told == ["NOSCRIPT", "answered"]

    converse(talk)


def test_published_messages_take_no_slot():
    heard = []

    async def talk():
        loop = asyncio.get_running_loop()
        wire = Wire(Diary(), BOUNDS, loop, heard.append)
        wire.connection_made(Pipe(loop, wire))
        subscribed, ping = loop.create_future(), loop.create_future()
        wire.send(subscribed, ("SUBSCRIBE", "c"))
        wire.send(ping, ("PING",))
        wire.data_received(b"*3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$2\r\nhi\r\n")
        wire.data_received(b"*2\r\n$4\r\npong\r\n$0\r\n\r\n")
        assert subscribed.result() == [b"subscribe", b"c", 1]
        assert ping.result() == [b"pong", b""]

    with bench_loop() as loop:
        loop.run_until_complete(talk())
    assert heard == [b"hi"]
