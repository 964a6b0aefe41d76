"""The model, the embedded limiter and the scripts on every server there is, side by side over random histories.

Compared after each operation: the answer down to the handles, the state of every bucket bit by bit, and when it
expires. The model forgets a bucket when it is full, as a server does at the expiry it was given.
"""

import random
from dataclasses import dataclass
from itertools import count

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy.adapters.memory.limiter import MemoryLimiter
from proxy.adapters.redis.bucket_state import (
    bucket_key,
    pack_charge,
    pack_cost,
    pack_schedule,
    pack_settlement,
    pack_state,
    pack_terms,
    unpack_state,
)
from proxy.core import bucket
from proxy.core.bucket import EPOCH_SPAN, Admitted, Cost, Scope
from proxy.core.tiers import LARGEST_LIMIT, Limits, Schedule
from tests.support.limiter_build import FAR_AHEAD_MS, VERBS, clock_command, on_hand_clock, scripts_with
from tests.support.redis_server import RedisServer, all_servers

LIMITS = (
    Limits(6, 60),
    Limits(60, 6_000),
    Limits(None, 60, None, 90),
    Limits(6),
    Limits(7, 70, 3, 40),
    Limits(),
    Limits(LARGEST_LIMIT, LARGEST_LIMIT),
    Limits(1, 1, LARGEST_LIMIT, LARGEST_LIMIT),
)
OPERATIONS = 24_000
PER_TEAM = 60
teams = (f"team-{number}" for number in count())


@pytest.fixture(scope="module", params=all_servers(), ids=[f"server {n}" for n in range(len(all_servers()))])
def server(request):
    with RedisServer(binary=request.param) as running:
        client = redis.Redis(unix_socket_path=running.socket)
        scripts = scripts_with(on_hand_clock)
        digests = {verb: client.script_load(getattr(scripts, verb).text) for verb in VERBS}
        yield Server(client, digests, knows_expiry=not client.info("server")["redis_version"].startswith("6."))
        client.close()


@dataclass
class Server:
    client: redis.Redis
    digests: dict[str, str]
    knows_expiry: bool

    def run(self, verb, keys, args):
        return self.client.evalsha(self.digests[verb], len(keys), *keys, *args)


@dataclass
class Clock:
    """Set by the history; a microsecond passes with every operation."""

    wall_ms: int = FAR_AHEAD_MS
    looks: int = 0

    def now_ms(self):
        return self.wall_ms

    def monotonic_ns(self):
        return self.wall_ms * 1_000_000


class Team:
    """One team in all engines.

    The embedded one joins in while limits stay and the clock is not set back: it keeps its buckets a little longer, and
    housekeeping of its own may write the time of one.
    """

    def __init__(self, server, clock, schedules, *, steady):
        self.server, self.clock = server, clock
        self.name = next(teams)
        self.scopes = tuple(Scope(f"scope-{index}", schedule) for index, schedule in enumerate(schedules))
        self.keys = [bucket_key(self.name, scope.name) for scope in self.scopes]
        self.states = [None] * len(self.scopes)
        self.expiries = [None] * len(self.scopes)
        self.memory = MemoryLimiter(clock) if steady else None
        self.open = []
        self.epoch = 0

    def tick(self):
        """Begin an operation: bring the server's clock and let it forget what is full."""
        self.clock.looks += 1
        self.server.client.execute_command(*clock_command(self.clock.wall_ms))
        self.epoch = self.clock.wall_ms * 1_000 + 1 + self.clock.looks % 998
        self.server.client.hset("hand", "micros", self.epoch % 1_000_000 - 1)
        for index, expires_ms in enumerate(self.expiries):
            if expires_ms is not None and self.clock.wall_ms >= expires_ms:
                self.server.client.delete(self.keys[index])
                self.put(index, None)

    def put(self, index, state):
        self.states[index] = self.expiries[index] = None
        if state is not None:
            stands = bucket.peek(state, self.scopes[index].schedule, state[1])
            if reset_ms := max(stands[2], stands[5]):
                self.states[index], self.expiries[index] = state, state[1] + reset_ms

    def schedules(self):
        return [pack_schedule(scope.schedule) for scope in self.scopes]

    async def reserve(self, cost):
        self.tick()
        answer, after = bucket.reserve(self.states, self.scopes, cost, self.clock.wall_ms, self.epoch)
        for index, state in enumerate(after):
            if state is not None:
                self.put(index, state)
        scripted = self.server.run("reserve", self.keys, [pack_cost(cost), *self.schedules()])
        assert scripted == [self.clock.wall_ms, *answer]
        decision = bucket.decision(self.name, self.scopes, cost, answer)
        embedded = None
        if self.memory is not None:
            embedded = await self.memory.reserve(self.name, self.scopes, cost)
        if isinstance(decision, Admitted):
            assert embedded is None or embedded.standing == decision.standing
            self.open.append((decision.reservation, embedded and embedded.reservation))
        else:
            assert embedded is None or embedded == decision
        return decision

    def settle(self, which, actual):
        self.tick()
        reservation, embedded = self.open.pop(which % len(self.open))
        for index, (scope, handle) in enumerate(zip(self.scopes, reservation.handles, strict=True)):
            state = self.states[index]
            after = bucket.settle(
                state, scope.schedule, handle, reservation.cost, actual, self.clock.wall_ms, self.epoch
            )
            self.put(index, after)
        terms = [
            pack_terms(scope.schedule, handle) for scope, handle in zip(self.scopes, reservation.handles, strict=True)
        ]
        args = [pack_settlement(reservation.cost, actual), *terms]
        assert self.server.run("settle", self.keys, args) == self.clock.wall_ms
        if self.memory is not None:
            self.memory.settle(embedded, actual)

    def charge(self, cost):
        self.tick()
        for index, scope in enumerate(self.scopes):
            state = self.states[index]
            self.put(index, bucket.charge(state, scope.schedule, cost, self.clock.wall_ms, self.epoch))
        args = [pack_charge(cost), *self.schedules()]
        assert self.server.run("charge", self.keys, args) == self.clock.wall_ms
        if self.memory is not None:
            self.memory.charge(self.name, self.scopes, cost)

    async def peek(self):
        self.tick()
        stands = [
            bucket.peek(state, scope.schedule, self.clock.wall_ms)
            for state, scope in zip(self.states, self.scopes, strict=True)
        ]
        scripted = self.server.run("peek", self.keys, self.schedules())
        assert scripted == [self.clock.wall_ms, *(number for numbers in stands for number in numbers)]
        if self.memory is not None:
            assert await self.memory.peek(self.name, self.scopes) == tuple(map(bucket.standing, stands))

    def age(self, index, removed):
        """Bring a bucket near the end of its epoch."""
        if self.states[index] is not None and self.memory is None:
            epoch, at_ms, used_r, _, used_t, _ = self.states[index]
            self.states[index] = (epoch, at_ms, used_r, removed, used_t, removed)
            self.server.client.set(self.keys[index], pack_state(self.states[index]), keepttl=True)

    def approach_switch(self, which, off_by_ms):
        """Go on to where limits switch, or next to it."""
        ahead = [
            scope.schedule.switch_at_ms + off_by_ms
            for scope in self.scopes
            if scope.schedule.switch_at_ms is not None and scope.schedule.switch_at_ms + off_by_ms >= self.clock.wall_ms
        ]
        if ahead:
            self.clock.wall_ms = ahead[which % len(ahead)]

    def change(self, index, schedule):
        """Give a scope other limits."""
        if self.memory is None:
            self.scopes = (*self.scopes[:index], Scope(self.scopes[index].name, schedule), *self.scopes[index + 1 :])

    def assert_same_states(self):
        held = self.server.client.mget(self.keys)
        assert [packed and unpack_state(packed) for packed in held] == self.states
        if self.server.knows_expiry:
            pipe = self.server.client.pipeline(transaction=False)
            for key in self.keys:
                pipe.execute_command("PEXPIRETIME", key)
            assert pipe.execute() == [-2 if expires is None else expires for expires in self.expiries]


def random_schedule(chance, now_ms):
    limits = chance.choice(LIMITS)
    if chance.random() < 0.5:
        return Schedule(limits, limits)
    return Schedule(limits, chance.choice(LIMITS), now_ms + chance.randint(-5_000, 120_000))


def random_cost(chance):
    requests = chance.choice((0, 1, 2, 7, -1, 10**12)) if chance.random() < 0.2 else 1
    if chance.random() < 0.2:
        return Cost(requests, chance.choice((0, -4, 40, 90, LARGEST_LIMIT, 10**18)))
    return Cost(requests, chance.randint(0, 120))


def random_use(chance, reserved):
    if chance.random() < 0.3:
        return Cost(chance.choice((0, 1, 3)), chance.choice((0, reserved.tokens, chance.randint(0, 150), 10**12)))
    return Cost(1, chance.randint(0, min(max(0, reserved.tokens), 200)))


def random_wait(chance, *, steady):
    kind = chance.random()
    if kind < 0.6:
        return chance.choice((0, 1, chance.randint(0, 3_000), chance.randint(0, 30_000), chance.randint(0, 200_000)))
    if kind < 0.66 and not steady:
        return -chance.choice((1, 1_999, 2_000, chance.randint(0, 5_000), chance.randint(0, 1_000_000)))
    return 0


@pytest.mark.parametrize("steady", [True, False], ids=["steady", "upset"])
async def test_a_long_random_history_is_answered_alike_by_every_engine(server, steady):
    chance, clock, seen = random.Random(f"history {steady}"), Clock(), set()
    for _ in range(OPERATIONS // 2 // PER_TEAM):
        schedules = [random_schedule(chance, clock.wall_ms) for _ in range(chance.randint(1, 3))]
        team = Team(server, clock, schedules, steady=steady)
        await wander(team, chance, seen)
        server.client.delete(*team.keys)
    upset = set() if steady else {"renewed"}
    assert seen == {"Admitted", "Refused", "NeverFits", "full again", "in debt"} | upset


async def wander(team, chance, seen):
    steady = team.memory is not None
    for _ in range(PER_TEAM):
        team.clock.wall_ms += random_wait(chance, steady=steady)
        if chance.random() < 0.05:
            team.approach_switch(chance.randrange(3), chance.choice((-1, 0, 0, 1)))
        index = chance.randrange(len(team.scopes))
        if chance.random() < 0.03:
            team.change(index, random_schedule(chance, team.clock.wall_ms))
        if chance.random() < 0.02:
            team.age(index, EPOCH_SPAN + chance.randint(-3, 3))
        before = list(team.states)
        verb = chance.choice("rrrrssscp")
        if verb == "r":
            seen.add(type(await team.reserve(random_cost(chance))).__name__)
        elif verb == "s" and team.open:
            which = chance.randrange(len(team.open))
            team.settle(which, random_use(chance, team.open[which][0].cost))
        elif verb == "c":
            team.charge(random_cost(chance))
        else:
            await team.peek()
        team.assert_same_states()
        for old, new in zip(before, team.states, strict=True):
            if old and not new:
                seen.add("full again")
            if new and new[4] > LARGEST_LIMIT * 60_000:
                seen.add("in debt")
            if old and new and new[0] != old[0] and old[5] >= EPOCH_SPAN - 3:
                seen.add("renewed")


schedules = st.lists(
    st.one_of(
        st.sampled_from(LIMITS).map(lambda limits: Schedule(limits, limits)),
        st.builds(
            Schedule,
            st.sampled_from(LIMITS),
            st.sampled_from(LIMITS),
            st.integers(FAR_AHEAD_MS - 1_000, FAR_AHEAD_MS + 90_000),
        ),
    ),
    min_size=1,
    max_size=3,
)
tokens = st.integers(0, 100) | st.sampled_from([-1, LARGEST_LIMIT, 2**70])
costs = st.builds(Cost, st.integers(-1, 8), tokens)
operations = st.lists(
    st.one_of(
        st.tuples(st.just("wait"), st.integers(0, 3_000) | st.integers(0, 70_000)),
        st.tuples(st.just("wait"), st.sampled_from([-1, -1_999, -2_000, -2_001]) | st.integers(-100_000, 0)),
        st.tuples(st.just("reserve"), costs),
        st.tuples(st.just("reserve"), costs),
        st.tuples(st.just("settle"), st.tuples(st.integers(0, 9), costs)),
        st.tuples(st.just("charge"), costs),
        st.tuples(st.just("age"), st.tuples(st.integers(0, 2), st.integers(-2, 2))),
        st.tuples(st.just("switch"), st.tuples(st.integers(0, 2), st.integers(-1, 1))),
        st.tuples(st.just("peek"), st.none()),
    ),
    max_size=30,
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(schedules=schedules, history=operations)
async def test_any_history_is_answered_alike(server, schedules, history):
    team = Team(server, Clock(), schedules, steady=all(verb != "wait" or detail >= 0 for verb, detail in history))
    for verb, detail in history:
        if verb == "wait":
            team.clock.wall_ms += detail
        elif verb == "switch":
            team.approach_switch(*detail)
        elif verb == "reserve":
            await team.reserve(detail)
        elif verb == "settle" and team.open:
            team.settle(*detail)
        elif verb == "charge":
            team.charge(detail)
        elif verb == "age":
            team.age(detail[0] % len(team.scopes), EPOCH_SPAN + detail[1])
        else:
            await team.peek()
        team.assert_same_states()
