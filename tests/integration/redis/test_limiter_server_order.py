"""Many processes, one limit: the scripts write down what they decide, and the model decides it again in that order."""

import struct
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import pytest
import redis

from proxy.core import bucket
from proxy.core.bucket import ADMITTED, REFUSED, UNITS, Cost, Handle, Scope
from proxy.core.tiers import Limits, Schedule
from tests.support.limiter_build import FAR_AHEAD_MS, clock_command, full_at
from tests.support.redis_server import RedisServer, all_servers
from tests.support.tollgate_process import ROOT


class Workers:
    """Processes that share a server."""

    def __init__(self, stack, server, number, *flags):
        command = [sys.executable, "-m", "tests.support.limiter_worker", f"unix://{server.socket}"]
        self.processes = []
        for seed in range(number):
            process = subprocess.Popen(
                [*command, str(seed), *flags], cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            self.processes.append(stack.enter_context(ended(process)))
        for process in self.processes:
            assert process.stdout.readline() == "ready\n"

    def round(self, kind, count):
        """Each does so much at the same time; how many reservations were admitted and how many not, of each."""
        for process in self.processes:
            process.stdin.write(f"{kind} {count}\n")
            process.stdin.flush()
        return [tuple(map(int, process.stdout.readline().split())) for process in self.processes]


@contextmanager
def ended(process):
    with process:
        try:
            yield process
        finally:
            process.kill()


@dataclass
class Entry:
    """One run of a script, as it wrote it down."""

    verb: str
    epoch: int
    answer: tuple[int, ...]
    keys: list[bytes]
    args: list[bytes]

    @property
    def now_ms(self):
        return self.epoch // 1_000

    @property
    def scoped(self):
        """The arguments of the scopes, one each."""
        return self.args if self.verb == "peek" else self.args[1:]

    @property
    def buckets(self):
        return self.keys[: len(self.scoped)]

    @property
    def places(self):
        return self.keys[len(self.scoped) :]

    def schedule(self, index):
        switch_ms, *figures = struct.unpack("<9d", self.scoped[index][:72])
        before, after = (
            Limits(*(int(rate) or None for rate in four[::2]), *(int(room) // UNITS or None for room in four[1::2]))
            for four in (figures[:4], figures[4:])
        )
        return Schedule(before, after, None if switch_ms == float("inf") else int(switch_ms))

    def scopes(self):
        most = dict(self.most() if self.verb == "reserve" else ())
        return [Scope(key.decode(), self.schedule(index), most.get(index)) for index, key in enumerate(self.buckets)]

    def most(self):
        """Of each set of places the index of its scope, and how many there are."""
        for index in range(len(self.places)):
            yield tuple(map(int, struct.unpack_from("<2d", self.args[0], 16 + 16 * index)))

    @property
    def lease(self):
        return self.args[0][16 + 16 * len(self.places) if self.verb == "reserve" else 32 :]

    def handle(self, index):
        return Handle(*map(int, struct.unpack("<5d", self.scoped[index][72:])))

    def costs(self):
        count = {"reserve": 2, "settle": 4, "charge": 2}[self.verb]
        numbers = [*map(int, struct.unpack_from(f"<{count}d", self.args[0]))]
        return [Cost(*numbers[at : at + 2]) for at in range(0, len(numbers), 2)]


def read_log(server):
    with redis.Redis(unix_socket_path=server.socket) as client:
        pieces = iter(client.lrange("log", 0, -1))
    for verb in pieces:
        epoch, keys, args = int(next(pieces)), int(next(pieces)), int(next(pieces))
        answer = tuple(map(int, next(pieces).split()))
        yield Entry(
            verb.decode(), epoch, answer, [next(pieces) for _ in range(keys)], [next(pieces) for _ in range(args)]
        )


@dataclass
class Replay:
    """The model, fed with what the scripts were asked."""

    expires: bool = True
    """Whether the server's own clock is the one that buckets expire by."""
    states: dict = field(default_factory=dict)
    expiries: dict = field(default_factory=dict)
    counts: dict = field(default_factory=dict)
    leases: dict = field(default_factory=dict)
    """By their set of places; none lives long enough to expire."""
    most_at_once: int = 0

    def forget(self, entry):
        """Drop what had expired. In the millisecond of the expiry itself the epoch tells whether it had."""
        for index, key in enumerate(entry.buckets if self.expires else ()):
            expires_ms = self.expiries.get(key)
            if expires_ms is None or entry.now_ms < expires_ms:
                continue
            in_doubt = entry.now_ms <= expires_ms + 1
            admitted = entry.verb == "reserve" and entry.answer[1] == ADMITTED
            if not in_doubt or (admitted and entry.answer[8 + 5 * index] == entry.epoch):
                del self.states[key], self.expiries[key]

    def put(self, key, schedule, state):
        expires_ms = full_at(state, schedule)
        if expires_ms > state[1]:
            self.states[key], self.expiries[key] = state, expires_ms
        else:
            self.states.pop(key, None)
            self.expiries.pop(key, None)

    def take_places(self, entry, answer):
        for key in entry.places if answer[0] == ADMITTED else ():
            leases = self.leases.setdefault(key, set())
            assert entry.lease not in leases
            leases.add(entry.lease)
            self.most_at_once = max(self.most_at_once, len(leases))

    def again(self, entry):
        """What the model answers."""
        self.forget(entry)
        now_ms, scopes = entry.now_ms, entry.scopes()
        states = [self.states.get(key) for key in entry.buckets]
        answer = ()
        if entry.verb == "reserve":
            in_flight = [0] * len(scopes)
            for (index, _), key in zip(entry.most(), entry.places, strict=True):
                in_flight[index] = len(self.leases.get(key, ()))
            answer, after = bucket.reserve(
                states, scopes, entry.costs()[0], now_ms, entry.epoch, in_flight if entry.places else ()
            )
            self.take_places(entry, answer)
        elif entry.verb == "settle":
            for key in entry.places:
                self.leases[key].remove(entry.lease)
            reserved, actual = entry.costs()
            after = [
                bucket.settle(state, scope.schedule, entry.handle(index), reserved, actual, now_ms, entry.epoch)
                for index, (state, scope) in enumerate(zip(states, scopes, strict=True))
            ]
        elif entry.verb == "charge":
            after = [
                bucket.charge(state, scope.schedule, entry.costs()[0], now_ms, entry.epoch)
                for state, scope in zip(states, scopes, strict=True)
            ]
        else:
            stands = [bucket.peek(state, scope.schedule, now_ms) for state, scope in zip(states, scopes, strict=True)]
            answer, after = tuple(number for numbers in stands for number in numbers), []
        for key, scope, state in zip(entry.buckets, scopes, after, strict=bool(after)):
            if state is not None:
                self.put(key, scope.schedule, state)
        what = (entry.verb, answer[0]) if entry.verb == "reserve" else entry.verb
        self.counts[what] = self.counts.get(what, 0) + 1
        return (now_ms, *answer)


@pytest.fixture(params=all_servers(), ids=[f"server {number}" for number in range(len(all_servers()))])
def server(request):
    with RedisServer(binary=request.param) as running:
        yield running


def test_every_decision_of_four_processes_is_the_models_in_the_servers_order(server):
    with ExitStack() as stack:
        answers = Workers(stack, server, 4).round("wander", 1_000)
    replay = Replay()
    for number, entry in enumerate(read_log(server)):
        assert entry.answer == replay.again(entry), (number, entry)
    assert replay.counts["reserve", ADMITTED] == sum(admitted for admitted, _ in answers)
    assert sum(count for what, count in replay.counts.items() if what[0] == "reserve") == 4_000
    assert sum(refused for _, refused in answers) > 1_000
    assert min(replay.counts[verb] for verb in ("settle", "charge", "peek")) > 0


def test_eight_processes_share_twenty_requests_a_minute_as_one_would(server):
    server.ask(*clock_command(FAR_AHEAD_MS))
    with ExitStack() as stack:
        workers = Workers(stack, server, 8, "hand")
        admitted = []
        # Full at first; a request comes back in 3 s; the minute brings all of them back, and no more than those.
        for now_ms in (0, 2_999, 3_000, 62_999, 63_000, 600_000):
            server.ask(*clock_command(FAR_AHEAD_MS + now_ms))
            admitted.append(sum(number for number, _ in workers.round("same", 40)))
    assert admitted == [20, 0, 1, 19, 1, 20]
    replay = Replay(expires=False)
    for entry in read_log(server):
        assert entry.answer == replay.again(entry), entry


def test_eight_processes_share_three_places_and_never_hold_more(server):
    with ExitStack() as stack:
        answers = Workers(stack, server, 8).round("places", 40)
    replay = Replay()
    for number, entry in enumerate(read_log(server)):
        assert entry.answer == replay.again(entry), (number, entry)
    assert replay.most_at_once == 3
    assert answers == [(40, 0)] * 8
    assert replay.counts["reserve", ADMITTED] == 320
    assert replay.counts["reserve", REFUSED] > 0
    assert not any(replay.leases.values())
