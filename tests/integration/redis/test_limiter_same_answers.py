"""The model, the embedded limiter and the scripts on every server there is, side by side over random histories.

Compared after each operation: the answer down to the handles, the state of every bucket bit by bit, and when it
expires, and who holds which place for how long. The model forgets a bucket when it is full, as a server does at the
expiry it was given.
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
    pack_places,
    pack_schedule,
    pack_settlement,
    pack_state,
    pack_terms,
    places_key,
    unpack_state,
)
from proxy.adapters.redis.leases import LEASE_MS
from proxy.core import bucket
from proxy.core.bucket import ADMITTED, EPOCH_SPAN, REFUSED, Admitted, Cost, Dimension, Refused, Scope
from proxy.core.tiers import LARGEST_LIMIT, Limits, Schedule
from tests.support.limiter_build import FAR_AHEAD_MS, VERBS, full_at, on_hand_clock, scripts_with
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
OPERATIONS = 12_000
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

    def __init__(self, server, clock, schedules, places, *, steady):
        self.server, self.clock = server, clock
        self.name = next(teams)
        self.scopes = tuple(
            Scope(f"scope-{index}", schedule, most)
            for index, (schedule, most) in enumerate(zip(schedules, places, strict=True))
        )
        self.keys = [bucket_key(self.name, scope.name) for scope in self.scopes]
        self.places = [places_key(self.name, scope.name) for scope in self.scopes]
        self.leases = [{} for _ in self.scopes]
        self.drawn = 0
        self.renewed_ms = clock.wall_ms
        self.states = [None] * len(self.scopes)
        self.expiries = [None] * len(self.scopes)
        self.memory = MemoryLimiter(clock) if steady else None
        self.open = []
        self.epoch = 0

    def tick(self):
        """Begin an operation: bring the server's clock and let it forget what is full."""
        self.clock.looks += 1
        self.epoch = self.clock.wall_ms * 1_000 + 1 + self.clock.looks % 998
        # The script that follows runs in the microsecond that this operation is in.
        time = {"seconds": self.clock.wall_ms // 1_000, "micros": self.epoch % 1_000_000 - 1}
        self.server.client.hset("hand", mapping=time)
        for index, expires_ms in enumerate(self.expiries):
            if expires_ms is not None and self.clock.wall_ms >= expires_ms:
                self.server.client.delete(self.keys[index])
                self.put(index, None)

    def put(self, index, state):
        self.states[index] = self.expiries[index] = None
        if state is not None:
            expires_ms = full_at(state, self.scopes[index].schedule)
            if expires_ms > state[1]:
                self.states[index], self.expiries[index] = state, expires_ms

    def schedules(self):
        return [pack_schedule(scope.schedule) for scope in self.scopes]

    async def reserve(self, cost):
        self.tick()
        now_ms, taking = self.clock.wall_ms, self.taking(cost)
        in_flight = [sum(expires_ms > now_ms for expires_ms in held.values()) for held in self.leases]
        answer, after = bucket.reserve(self.states, self.scopes, cost, now_ms, self.epoch, in_flight if taking else ())
        for index, state in enumerate(after):
            if state is not None:
                self.put(index, state)
        first, places = pack_cost(cost), [self.places[index] for index in taking]
        self.drawn += 1
        lease = b"lease %d" % self.drawn
        if taking:
            first += pack_places((index, self.scopes[index].max_parallel) for index in taking) + lease
        scripted = self.server.run("reserve", self.keys + places, [first, *self.schedules()])
        assert scripted == [now_ms, *answer]
        lacking = answer[8] if answer[0] == REFUSED and answer[9] == 2 else None
        if answer[0] == ADMITTED or lacking is not None:
            for index in taking:
                if lacking is None or index <= lacking:
                    self.leases[index] = alive(self.leases[index], now_ms)
                if lacking is None:
                    self.leases[index][lease] = now_ms + LEASE_MS
        if lacking is not None:
            # Leases of before the clock was set back are cut to what they would be now.
            held = self.leases[lacking]
            self.leases[lacking] = {each: min(expires_ms, now_ms + LEASE_MS) for each, expires_ms in held.items()}
        decision = bucket.decision(self.name, self.scopes, cost, answer)
        embedded = None
        if self.memory is not None:
            embedded = await self.memory.reserve(self.name, self.scopes, cost)
        if isinstance(decision, Admitted):
            assert embedded is None or embedded.standing == decision.standing
            self.open.append((decision.reservation, embedded and embedded.reservation, lease if taking else None))
        else:
            assert embedded is None or embedded == decision
        return decision

    def settle(self, which, actual):
        self.tick()
        reservation, embedded, lease = self.open.pop(which % len(self.open))
        for index, (scope, handle) in enumerate(zip(self.scopes, reservation.handles, strict=True)):
            state = self.states[index]
            after = bucket.settle(
                state, scope.schedule, handle, reservation.cost, actual, self.clock.wall_ms, self.epoch
            )
            self.put(index, after)
        terms = [
            pack_terms(scope.schedule, handle) for scope, handle in zip(self.scopes, reservation.handles, strict=True)
        ]
        first, places = pack_settlement(reservation.cost, actual), []
        if lease:
            first, places = first + lease, [self.places[index] for index in taken_by(reservation)]
        assert self.server.run("settle", self.keys + places, [first, *terms]) == self.clock.wall_ms
        for held in self.leases:
            held.pop(lease, None)
        if self.memory is not None:
            self.memory.settle(embedded, actual)

    def taking(self, cost):
        return [index for index, scope in enumerate(self.scopes) if scope.places_for(cost)]

    def renew_in_time(self):
        """Renew what could expire before the next time: the embedded engine's places do not."""
        if self.clock.wall_ms - self.renewed_ms >= LEASE_MS // 2:
            self.renewed_ms = self.clock.wall_ms
            self.renew()

    def renew(self):
        """Renew the leases of everything under way, those included that have expired."""
        self.tick()
        for index, key in enumerate(self.places):
            held = [lease for reservation, _, lease in self.open if lease and index in taken_by(reservation)]
            if held:
                assert self.server.run("renew", [key], held) == self.clock.wall_ms
                self.leases[index].update(dict.fromkeys(held, self.clock.wall_ms + LEASE_MS))

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
            was = self.scopes[index]
            now = Scope(was.name, schedule, was.max_parallel)
            self.scopes = (*self.scopes[:index], now, *self.scopes[index + 1 :])

    def assert_same_states(self):
        pipe = self.server.client.pipeline(transaction=False)
        pipe.mget(self.keys)
        for key in self.places:
            pipe.zrange(key, 0, -1, withscores=True)
        for key in self.keys if self.server.knows_expiry else ():
            pipe.execute_command("PEXPIRETIME", key)
        held, *rest = pipe.execute()
        assert [packed and unpack_state(packed) for packed in held] == self.states
        stored, expiries = rest[: len(self.places)], rest[len(self.places) :]
        assert [{lease: int(score) for lease, score in leases} for leases in stored] == self.leases
        if self.server.knows_expiry:
            assert expiries == [-2 if expires is None else expires for expires in self.expiries]


def taken_by(reservation):
    return [index for index, scope in enumerate(reservation.scopes) if scope.places_for(reservation.cost)]


def alive(leases, now_ms):
    return {lease: expires_ms for lease, expires_ms in leases.items() if expires_ms > now_ms}


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
        places = [chance.choice((None, None, 0, 1, 2, 5)) if chance.random() < 0.6 else None for _ in schedules]
        team = Team(server, clock, schedules, places, steady=steady)
        await wander(team, chance, seen)
        server.client.delete(*team.keys, *team.places)
    upset = set() if steady else {"renewed", "expired"}
    assert seen == {"Admitted", "Refused", "NeverFits", "full again", "in debt", "no place"} | upset


def is_without_place(decision):
    return isinstance(decision, Refused) and decision.dimension is Dimension.PARALLEL


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
        if steady:
            team.renew_in_time()
        elif chance.random() < 0.2:
            team.renew()
        if any(alive(held, team.clock.wall_ms) != held for held in team.leases):
            seen.add("expired")
        before = list(team.states)
        verb = chance.choice("rrrrssscp")
        if verb == "r":
            decision = await team.reserve(random_cost(chance))
            seen.add("no place" if is_without_place(decision) else type(decision).__name__)
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
        st.tuples(st.just("renew"), st.none()),
        st.tuples(st.just("peek"), st.none()),
    ),
    max_size=30,
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(schedules=schedules, places=st.tuples(*3 * [st.none() | st.integers(0, 3)]), history=operations)
async def test_any_history_is_answered_alike(server, schedules, places, history):
    steady = all(verb != "wait" or detail >= 0 for verb, detail in history)
    team = Team(server, Clock(), schedules, places[: len(schedules)], steady=steady)
    for verb, detail in history:
        if steady:
            team.renew_in_time()
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
        elif verb == "renew":
            team.renew()
        elif verb == "age":
            team.age(detail[0] % len(team.scopes), EPOCH_SPAN + detail[1])
        else:
            await team.peek()
        team.assert_same_states()
