"""What is charged, and how often, when the server is slow, gone, full, or has forgotten the scripts."""

import asyncio
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import pytest
import redis

from proxy.adapters.clock import SystemClock
from proxy.adapters.memory.limiter import MemoryLimiter
from proxy.adapters.redis.bucket_state import bucket_key, unpack_state
from proxy.adapters.redis.fallback import Closed
from proxy.adapters.redis.limiter import RedisLimiter
from proxy.adapters.redis.outcomes import Definite, ErrorReply, Indefinite, NeverSent
from proxy.adapters.redis.scripts import Scripts
from proxy.adapters.redis.share import Share
from proxy.core.breaker import BreakerPolicy
from proxy.core.bucket import UNITS, Admitted, Cost, Gauge, Refused, Scope, Standing
from proxy.core.errors import StoreAway
from proxy.core.share import Part
from proxy.core.tiers import Limits, Schedule
from tests.support.limiter_build import FAR_AHEAD_MS, clock_command, on_hand_clock, scripts_with
from tests.support.redis_route import PATIENT, in_haste, open_route, until_true
from tests.support.redis_server import RedisServer, eventually

# So slow that nothing comes back while a test runs.
LIMITS = Limits(1, 1, 100, 10_000)
SCOPES = (Scope("team", Schedule(LIMITS, LIMITS)), Scope("key:k", Schedule(LIMITS, LIMITS)))
# Never rests, so that everything is sent.
TIRELESS = replace(PATIENT, breaker=BreakerPolicy(failures_to_open=1_000))


def raw(server, key):
    with redis.Redis(unix_socket_path=server.socket) as client:
        return client.get(key)


@dataclass
class Store:
    """A server, and a limiter that is connected to it."""

    server: RedisServer
    route: object
    limiter: RedisLimiter
    failures: Counter

    def decisions(self):
        """How many scripts the server has run."""
        return self.server.calls("evalsha") + self.server.calls("eval")

    def tokens_used(self, scope="team"):
        """Rounded up; what little has decayed does not matter."""
        packed = raw(self.server, bucket_key("a", scope))
        return -(-unpack_state(packed)[4] // UNITS) if packed else 0


@asynccontextmanager
async def store(options=PATIENT, fallback=None):
    failures = Counter()
    with RedisServer() as server:
        async with open_route(server.url, options) as route:
            limiter = RedisLimiter(
                Scripts(route),
                SystemClock(),
                fallback or Closed(),
                lambda name, verb: failures.update([f"{name} {verb}"]),
            )
            await limiter.load()
            yield Store(server, route, limiter, failures)


async def admit(limiter, cost, scopes=SCOPES):
    decision = await limiter.reserve("a", scopes, cost)
    assert isinstance(decision, Admitted)
    return decision.reservation


async def until_admitted(limiter, cost, scopes=SCOPES):
    """Ask until there is room: a store that is back is asked once it has answered."""
    async with asyncio.timeout(30):
        while True:
            if isinstance(await limiter.reserve("a", scopes, cost), Admitted):
                return
            await asyncio.sleep(0.005)


# Gone


async def test_a_server_that_is_gone_closes_the_limiter_and_nothing_else_raises():
    async with store() as held:
        reservation = await admit(held.limiter, Cost(1, 500))
        held.server.kill()
        await until_true(lambda: not held.route.primaries()[0].is_up, "the loss is noticed")
        with pytest.raises(StoreAway) as away:
            await held.limiter.reserve("a", SCOPES, Cost(1, 1))
        assert isinstance(away.value.__cause__, NeverSent)
        assert (away.value.store, away.value.operation) == ("limiter", "reserve")
        assert await held.limiter.peek("a", SCOPES) == (Standing(), Standing())
        held.limiter.settle(reservation, Cost(1, 100))
        held.limiter.charge("a", SCOPES, Cost(0, 10))
        assert held.failures == {f"limiter {verb}": 1 for verb in ("reserve", "peek", "settle", "charge")}


async def test_what_was_used_while_it_was_gone_is_charged_once_when_it_is_back():
    async with store() as held:
        over, under = await admit(held.limiter, Cost(1, 100)), await admit(held.limiter, Cost(1, 100))
        held.server.kill()
        await until_true(lambda: not held.route.primaries()[0].is_up, "the loss is noticed")
        held.limiter.settle(over, Cost(1, 400))
        held.limiter.settle(under, Cost(1, 30))
        held.limiter.charge("a", SCOPES, Cost(0, 50))
        held.server.start()
        await until_true(lambda: held.route.primaries()[0].is_up, "it is back")
        # Its buckets are full now; 300 beyond the reservation and 50 of the charge are not forgotten.
        assert (await held.limiter.peek("a", SCOPES))[0].tokens.remaining == 10_000 - 350
        await admit(held.limiter, Cost(1, 1))
        await admit(held.limiter, Cost(1, 1))
        assert [held.tokens_used(scope.name) for scope in SCOPES] == [352, 352]


class Local(Closed):
    """A policy that decides by itself."""

    def __init__(self):
        self.buckets = MemoryLimiter(SystemClock())
        self.admitted = set()
        self.untold_charges = []

    async def reserve(self, team, scopes, cost, failure):
        decision = await self.buckets.reserve(team, scopes, cost)
        if isinstance(decision, Admitted):
            self.admitted.add(decision.reservation.handles[0])
        return decision

    def settle(self, reservation, actual):
        if reservation.handles[0] not in self.admitted:
            return False
        self.buckets.settle(reservation, actual)
        return True

    def charge(self, team, scopes, cost):
        self.untold_charges.append(cost)

    async def peek(self, team, scopes, failure):
        return await self.buckets.peek(team, scopes)


async def test_what_a_policy_admits_is_settled_there_and_what_the_store_admitted_is_not():
    local = Local()
    async with store(fallback=local) as held:
        by_store = await admit(held.limiter, Cost(1, 100))
        held.server.kill()
        await until_true(lambda: not held.route.primaries()[0].is_up, "the loss is noticed")
        by_policy = await admit(held.limiter, Cost(1, 500))
        held.limiter.settle(by_store, Cost(1, 120))
        held.server.start()
        await until_true(lambda: held.route.primaries()[0].is_up, "it is back")
        held.limiter.settle(by_policy, Cost(1, 200))
        assert (await local.peek("a", SCOPES, NeverSent))[0].tokens.remaining == 10_000 - 200
        assert local.untold_charges == [Cost(0, 20)]
        assert (await held.limiter.peek("a", SCOPES))[0].tokens.remaining == 10_000 - 20


# Slow


async def test_who_asks_when_it_is_back_is_answered_with_what_was_used_meanwhile():
    share = Share(SystemClock(), lambda: Part(0, 1), lambda: None)
    team = SCOPES[:1]
    async with store(fallback=share) as held:
        await admit(held.limiter, Cost(0, 100), team)
        (primary,) = held.route.primaries()
        primary.leave()
        away = [await held.limiter.reserve("a", team, Cost(0, 100)) for _ in range(120)]
        await until_true(lambda: primary.is_up, "it is back")
        back = await asyncio.gather(*(held.limiter.reserve("a", team, Cost(0, 100)) for _ in range(120)))
        assert sum(isinstance(decision, Admitted) for decision in away) >= 98
        assert sum(isinstance(decision, Admitted) for decision in (*away, *back)) <= 99


async def test_what_a_part_cannot_count_is_not_forgotten_beside_what_it_can():
    share = Share(SystemClock(), lambda: Part(1, 2), lambda: None)
    many, few = Limits(2, 2, 100, 10_000), Limits(1, 2, 1, 10_000)
    team = (Scope("team", Schedule(many, many)),)
    both = (*team, Scope("key:few", Schedule(few, few)))
    async with store(fallback=share) as held:
        over = await admit(held.limiter, Cost(1, 100), both)
        (primary,) = held.route.primaries()
        primary.leave()
        # Of the key this worker has no part; of the team it has one, which starts empty.
        held.limiter.settle(over, Cost(1, 400))
        held.limiter.charge("a", team, Cost(0, 1))
        assert isinstance(await held.limiter.reserve("a", team, Cost(0, 1)), Refused)
        await until_true(lambda: primary.is_up, "it is back")
        await until_admitted(held.limiter, Cost(0, 1), team)
        assert held.tokens_used() == 402


async def test_a_reservation_without_an_answer_is_not_sent_again():
    async with store(TIRELESS) as held:
        await admit(held.limiter, Cost(1, 100))
        before = held.decisions()
        with held.server.frozen(), in_haste(held.route), pytest.raises(StoreAway) as away:
            await held.limiter.reserve("a", SCOPES, Cost(1, 500))
        assert isinstance(away.value.__cause__, Indefinite)
        eventually(lambda: held.decisions() == before + 1, "the one that was sent is carried out")
        await admit(held.limiter, Cost(1, 7))
        assert held.decisions() == before + 2
        assert held.tokens_used() == 607


async def test_a_refund_without_an_answer_is_not_sent_again():
    async with store(TIRELESS) as held:
        reservation = await admit(held.limiter, Cost(1, 500))
        before = held.decisions()
        with held.server.frozen(), in_haste(held.route):
            held.limiter.settle(reservation, Cost(1, 100))
            await until_true(lambda: held.failures["limiter settle"], "the deadline has passed")
            held.limiter.settle(reservation, Cost(1, 100))
        await admit(held.limiter, Cost(1, 7))
        assert held.decisions() == before + 2
        assert held.tokens_used() == 107
        assert held.failures == {"limiter settle": 1}


async def test_a_debt_without_an_answer_is_charged_once_more_however_often_it_is_sent():
    async with store(TIRELESS) as held:
        reservation = await admit(held.limiter, Cost(1, 100))
        with held.server.frozen(), in_haste(held.route):
            held.limiter.settle(reservation, Cost(1, 400))
            await until_true(lambda: held.failures["limiter settle"], "the deadline has passed")
            for _ in range(3):
                with pytest.raises(StoreAway):
                    await held.limiter.reserve("a", SCOPES, Cost(0, 0))
        assert held.failures["limiter charge"] == 3
        await admit(held.limiter, Cost(1, 7))
        await admit(held.limiter, Cost(1, 7))
        # 300 by the settlement and 300 by the charge: too much, and never too little.
        assert held.tokens_used() == 100 + 300 + 300 + 14
        assert "a" not in held.limiter._debts


async def test_a_charge_that_never_arrives_is_sent_until_it_does():
    """Nothing that is sent while it is cut off arrives, and nobody can tell."""
    share = Share(SystemClock(), lambda: Part(0, 1), lambda: None)
    team = SCOPES[:1]
    for fallback in (Closed(), share):
        async with store(TIRELESS, fallback) as held:
            reservation = await admit(held.limiter, Cost(0, 100), team)
            with held.server.frozen(), in_haste(held.route):
                held.limiter.settle(reservation, Cost(0, 400))
                await until_true(lambda: held.failures["limiter settle"], "the deadline has passed")
                for _ in range(5):
                    held.limiter.tell_all()
                    await asyncio.sleep(0.06)
                # What was on its way to it is lost with its connections.
                held.server.kill()
            await until_true(lambda: not held.route.primaries()[0].is_up, "the loss is noticed")
            held.server.start()
            await until_true(lambda: held.route.primaries()[0].is_up, "it is back")
            await until_admitted(held.limiter, Cost(0, 0), team)
            await until_true(lambda: held.tokens_used() >= 300, "it is charged")
            assert held.tokens_used() == 300


# Not able


async def test_a_server_without_memory_charges_no_scope():
    async with store() as held:
        await admit(held.limiter, Cost(1, 100))
        held.server.ask("CONFIG", "SET", "maxmemory", 1)
        with pytest.raises(StoreAway) as away:
            await held.limiter.reserve("a", SCOPES, Cost(1, 500))
        assert isinstance(away.value.__cause__, ErrorReply)
        assert isinstance(away.value.__cause__, Definite)
        assert away.value.__cause__.code == "OOM"
        held.server.ask("CONFIG", "SET", "maxmemory", 0)
        assert [held.tokens_used(scope.name) for scope in SCOPES] == [100, 100]


async def test_a_server_that_has_forgotten_the_scripts_is_told_them_and_runs_each_once():
    async with store() as held:
        held.server.ask("SCRIPT", "FLUSH")
        reservation = await admit(held.limiter, Cost(1, 500))
        held.server.ask("SCRIPT", "FLUSH")
        held.limiter.settle(reservation, Cost(1, 100))
        await until_true(lambda: held.route.primaries()[0].counts.posted == 1, "settled")
        held.server.ask("SCRIPT", "FLUSH")
        held.limiter.charge("a", SCOPES, Cost(0, 7))
        await until_true(lambda: held.route.primaries()[0].counts.posted == 2, "charged")
        held.server.ask("SCRIPT", "FLUSH")
        assert (await held.limiter.peek("a", SCOPES))[0].tokens.remaining == 10_000 - 107
        assert not held.failures


# Told again without asking


async def test_a_refusal_is_told_again_without_asking_until_the_team_settles():
    async with store() as held:
        limiter = held.limiter
        reservation = await admit(limiter, Cost(1, 10_000))
        before = held.decisions()
        # Held for longer than this takes, on however slow a machine.
        limiter._denials._hold_ms = 60_000
        for _ in range(5):
            refused = await limiter.reserve("a", SCOPES, Cost(1, 100))
            assert isinstance(refused, Refused)
        assert held.decisions() == before + 1
        limiter.settle(reservation, Cost(1, 9_000))
        await admit(limiter, Cost(1, 100))
        assert held.decisions() == before + 3


async def test_a_refusal_is_not_told_again_with_a_wait_that_has_grown():
    async with store() as held:
        limiter = held.limiter
        limiter._denials._hold_ms = 60_000
        await admit(limiter, Cost(1, 9_000))
        told = await limiter.reserve("a", SCOPES, Cost(1, 9_000))
        await admit(limiter, Cost(1, 900))
        truth = await limiter.reserve("a", SCOPES, Cost(1, 9_000))
        # A token comes back in a minute.
        assert truth.wait_ms > told.wait_ms + 899 * 60_000
        limiter.charge("a", SCOPES, Cost(0, 20_000))
        owing = await limiter.reserve("a", SCOPES, Cost(1, 9_000))
        assert owing.wait_ms > truth.wait_ms + 19_999 * 60_000


# The server's clock and memory


async def test_steps_of_the_servers_clock_are_counted_and_idleness_is_not():
    class Still:
        ns = 0

        def now_ms(self):
            return 0

        def monotonic_ns(self):
            return self.ns

    with RedisServer() as server:
        async with open_route(server.url) as route:
            clock = Still()
            limiter = RedisLimiter(
                Scripts(route), clock, Closed(), lambda *_: None, verbs=scripts_with(on_hand_clock), deny_ms=0
            )
            now_ms, seen = FAR_AHEAD_MS, []
            for by_ms, passed_ms in [
                (0, 0),
                (86_400_000, 86_400_000),
                (2_001, 0),
                (-1_999, 0),
                (-2_000, 0),
                (10, 10),
            ]:
                clock.ns += passed_ms * 1_000_000
                now_ms += by_ms
                server.ask(*clock_command(now_ms))
                await limiter.peek("a", SCOPES)
                seen.append([limiter.clock_steps.back, limiter.clock_steps.ahead])
            assert seen == [[0, 0], [0, 0], [0, 1], [0, 1], [1, 1], [1, 1]]


async def test_nothing_is_written_for_a_team_that_uses_nothing():
    async with store() as held:
        await held.limiter.peek("a", SCOPES)
        await held.limiter.reserve("a", SCOPES, Cost(101, 0))
        await held.limiter.reserve("a", SCOPES, Cost(0, 0))
        held.limiter.settle(await admit(held.limiter, Cost(1, 100)), Cost(0, 0))
        assert (await held.limiter.peek("a", SCOPES))[0].requests == Gauge(1, 100, 0)
        assert held.server.ask("DBSIZE") == 0


async def test_a_bucket_lives_until_it_is_full_and_the_next_is_of_another_epoch():
    limits = Limits(6_000, 600_000)
    scopes = (Scope("team", Schedule(limits, limits)),)
    async with store() as held:
        first = await admit(held.limiter, Cost(1, 500), scopes)
        # 50 ms of 600,000 a minute.
        assert held.server.ask("PTTL", bucket_key("a", "team")) <= 50
        eventually(lambda: held.server.ask("DBSIZE") == 0, "it expires by itself")
        second = await admit(held.limiter, Cost(1, 600_000), scopes)
        assert first.handles[0].epoch != second.handles[0].epoch
        held.limiter.settle(first, Cost(0, 0))
        await held.limiter.peek("a", scopes)
        epoch, at_ms, _, _, used, removed = unpack_state(raw(held.server, bucket_key("a", "team")))
        assert epoch == second.handles[0].epoch
        # All that has gone is what refill has taken since.
        assert removed == (at_ms - epoch // 1_000) * 600_000
        assert used == 600_000 * UNITS - removed
