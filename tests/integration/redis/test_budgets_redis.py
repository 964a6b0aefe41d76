"""Budgets on real servers: many processes, accounts that are lost, made and brought up to date by several, outages."""

import asyncio
import subprocess
import sys
from collections import Counter
from contextlib import ExitStack, asynccontextmanager

import pytest
import redis

from proxy.adapters.clock import SystemClock
from proxy.adapters.redis.accounts import account_key, told_key
from proxy.adapters.redis.bucket_state import bucket_key
from proxy.adapters.redis.budget_parts import BudgetParts, Telling
from proxy.adapters.redis.fallback import Closed
from proxy.adapters.redis.limiter import RedisLimiter
from proxy.adapters.redis.policies import Open
from proxy.adapters.redis.scripts import Scripts
from proxy.adapters.redis.share import Share
from proxy.adapters.spent import SpentReader
from proxy.core.bucket import Admitted, Cost, OverBudget, Scope
from proxy.core.budget import MINUTE_MS, SETTLED_AFTER_MINUTES, Cap, Period, Spend, span_of
from proxy.core.decision import TEAM_SCOPE
from proxy.core.errors import StoreAway
from proxy.core.share import Part
from proxy.core.tiers import Limits, Schedule
from tests.support.redis_route import in_haste, open_route, until_true
from tests.support.redis_server import RedisServer, all_servers
from tests.support.spend_books import SpendBooks
from tests.support.tollgate_process import ROOT

WIDE = Limits(1_000_000, 1_000_000_000)
SCOPES = (Scope("team", Schedule(WIDE, WIDE)),)
ONE = Cost(1, 10)
CAP = Cap("team", span_of(Period.TOTAL, 0), 100, 50)


@pytest.fixture(scope="module", params=all_servers(), ids=[f"server {n}" for n in range(len(all_servers()))])
def shared_server(request):
    with RedisServer(binary=request.param) as running:
        yield running


@pytest.fixture
def server(shared_server):
    shared_server.ask("FLUSHALL")
    return shared_server


class Later(SystemClock):
    """The system's clock, ahead by what a test says."""

    ahead_ms = 0

    def now_ms(self):
        return super().now_ms() + self.ahead_ms


@asynccontextmanager
async def worker(url, books, *, policy=None, part=None):
    """A worker's limiter; `policy` makes its fallback, `part` its part in an outage."""
    clock, failures = Later(), Counter()
    async with open_route(url) as route:
        scripts = Scripts(route)

        def away(team):
            return scripts.away(bucket_key(team, TEAM_SCOPE))

        fallback = policy(clock, part, away) if policy else Closed()
        limiter = RedisLimiter(
            scripts,
            clock,
            fallback,
            lambda store, operation: failures.update([(store, operation)]),
            deny_ms=0,
            reader=SpentReader(books, clock, lambda *failed: failures.update([failed])),
            parts=BudgetParts(clock, lambda: part, away) if part else None,
        )
        await limiter.load()
        limiter.clock, limiter.failures = clock, failures
        yield limiter


def spend(limiter, amount, cap=CAP):
    return Spend((cap,), amount, limiter.clock.now_ms())


async def admit(limiter, amount, cap=CAP):
    decision = await limiter.reserve("a", SCOPES, ONE, spend(limiter, amount, cap))
    assert isinstance(decision, Admitted), decision
    return decision.reservation


def held(server):
    """The account as the server keeps it."""
    fields = server.ask("HGETALL", account_key("a", CAP.name))
    return fields if isinstance(fields, dict) else dict(zip(fields[::2], fields[1::2], strict=True))


def assert_whole(server):
    fields = held(server)
    minutes = sum(int(amount) for name, amount in fields.items() if name.isdigit())
    assert int(fields["total"]) == int(fields["base"]) + minutes


@pytest.mark.parametrize("processes", [4])
def test_four_processes_spend_a_budget_to_the_last_request_that_fits(server, processes):
    with ExitStack() as stack:
        workers = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-m", "tests.support.limiter_worker", server.url, str(seed)],
                    cwd=ROOT,
                    text=True,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                )
            )
            for seed in range(processes)
        ]
        for each in workers:
            stack.callback(each.kill)
            assert each.stdout.readline() == "ready\n"
        for each in workers:
            each.stdin.write("capped 80\n")
            each.stdin.flush()
        assert sum(int(each.stdout.readline().split()[0]) for each in workers) == 1_000 // 7


async def test_an_account_is_kept_beside_the_teams_buckets_and_goes_when_idle(server):
    async with worker(server.url, SpendBooks()) as limiter:
        await admit(limiter, 60)
    keys = [account_key("a", CAP.name), told_key("a", CAP.name, CAP.warn_nano_usd)]
    assert all("{a}" in key for key in keys)
    kept_ms = 2 * SETTLED_AFTER_MINUTES * MINUTE_MS
    assert 0 < server.ask("PTTL", keys[0]) <= kept_ms
    assert server.ask("PTTL", keys[1]) > kept_ms
    assert_whole(server)


async def test_a_flushed_server_has_its_accounts_made_anew(server):
    books = SpendBooks()
    async with worker(server.url, books) as limiter:
        settled, under_way = await admit(limiter, 20), await admit(limiter, 30)
        limiter.settle(settled, ONE, 10)
        books.write("a", "team", settled.spend.at_ms, 10)
        await admit(limiter, 0)
        server.ask("FLUSHALL")
        # Missing is what has not reached the ledger: what is under way, until it is settled.
        assert isinstance(await limiter.reserve("a", SCOPES, ONE, spend(limiter, 91)), OverBudget)
        await admit(limiter, 5)
        limiter.settle(under_way, ONE, 25)
        over = await limiter.reserve("a", SCOPES, ONE, spend(limiter, 61))
        assert over.used_nano_usd == 10 + 5 + 25
        assert_whole(server)


async def test_of_several_who_make_an_account_one_does(server):
    books = SpendBooks()
    async with worker(server.url, books) as first, worker(server.url, books) as second:
        books.write("a", "team", first.clock.now_ms(), 40)
        decisions = await asyncio.gather(
            *(each.reserve("a", SCOPES, ONE, spend(each, 10)) for each in (first, second) * 10)
        )
    assert sum(isinstance(each, Admitted) for each in decisions) == 6
    assert held(server)["total"] == "100"
    assert_whole(server)


async def test_several_who_take_the_ledgers_word_do_no_harm(server):
    books = SpendBooks()
    async with worker(server.url, books) as first, worker(server.url, books) as second:
        workers = (first, second)
        for amount in range(1, 7):
            each = workers[amount % 2]
            reservation = await admit(each, amount)
            each.settle(reservation, ONE, amount - 1)
            books.write("a", "team", reservation.spend.at_ms, amount - 1)
            for other in workers:
                other.clock.ahead_ms += 5 * MINUTE_MS
            # One of them is late, and brings an older word.
            second.clock.ahead_ms -= MINUTE_MS * (amount % 3)
            await asyncio.gather(*(one.budgets.resync() for one in workers * 2), admit(first, 0))
            second.clock.ahead_ms = first.clock.ahead_ms
            assert held(server)["total"] == str(sum(entry[3] for entry in books.entries))
            assert_whole(server)
        assert not first.failures + second.failures


def by_parts(clock, part, away):
    return Share(clock, lambda: part, lambda: None, away=away, notice_ms=100)


async def test_in_an_outage_a_worker_spends_what_it_saw_left_and_tells_it_on_the_return(server):
    books = SpendBooks()
    async with worker(server.url, books, policy=by_parts, part=Part(0, 1)) as limiter:
        await admit(limiter, 40)
        with server.frozen(), in_haste(limiter._scripts._route):
            await until_true(lambda: limiter._is_wary or limiter.look(), "the store is away")
            under_way = await admit(limiter, 50)
            assert isinstance(await limiter.reserve("a", SCOPES, ONE, spend(limiter, 11)), OverBudget)
            with pytest.raises(StoreAway):
                await limiter.reserve("never seen", SCOPES, ONE, spend(limiter, 1))
            limiter.settle(under_way, ONE, 30)
        await until_true(lambda: limiter.look() or "a" not in limiter.budgets, "the store is told")
        await until_true(lambda: int(held(server)["total"]) > 40, "the store has heard")
        over = await limiter.reserve("a", SCOPES, ONE, spend(limiter, 1_000))
        # Told before it was settled, it counts as it was reserved until the ledger tells.
        assert over.used_nano_usd in (40 + 30, 40 + 50)
        assert_whole(server)


async def test_what_was_spent_in_an_outage_is_added_once_and_to_the_account_that_was_seen(server):
    async with worker(server.url, SpendBooks(), policy=by_parts, part=Part(0, 1)) as limiter:
        reservation = await admit(limiter, 10)
        (epoch,), (minute,) = reservation.epochs, reservation.minutes
        parts = limiter.budgets.parts
        for name, of_epoch in (("one", epoch), ("one", epoch), ("two", epoch), ("three", epoch - 1)):
            parts.keep(Telling(name, "a", CAP.name, of_epoch, {minute: 20, 0: 1_000}))
            limiter.budgets.tell("a")
        over = await limiter.reserve("a", SCOPES, ONE, spend(limiter, 1_000))
        assert over.used_nano_usd == 10 + 20 + 20
        assert_whole(server)


async def test_open_lets_pass_and_closed_does_not(server):
    for policy, passes in ((lambda *_: Open(lambda: None), True), (None, False)):
        async with worker(server.url, SpendBooks(), policy=policy) as limiter:
            with server.frozen(), in_haste(limiter._scripts._route):
                await until_true(lambda limiter=limiter: limiter._is_wary or limiter.look(), "the store is away")
                if passes:
                    reservation = await admit(limiter, 1_000)
                    limiter.settle(reservation, ONE, 1_000)
                else:
                    with pytest.raises(StoreAway):
                        await limiter.reserve("a", SCOPES, ONE, spend(limiter, 1))


async def test_amounts_are_exact_up_to_the_largest_of_budgets(server):
    largest = Cap("team", CAP.span, 2**52, None)
    async with worker(server.url, SpendBooks()) as limiter:
        await admit(limiter, 2**52 - 1, largest)
        assert isinstance(await limiter.reserve("a", SCOPES, ONE, spend(limiter, 2, largest)), OverBudget)
        await admit(limiter, 1, largest)
    assert held(server)["total"] == str(2**52)


async def test_no_account_is_asked_where_there_is_no_budget(server):
    with redis.Redis(unix_socket_path=server.socket) as client:
        async with worker(server.url, SpendBooks()) as limiter:
            client.config_resetstat()
            decision = await limiter.reserve("a", SCOPES, ONE)
            limiter.settle(decision.reservation, ONE)
            await limiter.peek("a", SCOPES)
            commands = client.info("commandstats")
    assert not [
        name for name in commands if name.startswith(("cmdstat_h", "cmdstat_pexpire")) and name != "cmdstat_hello"
    ]


async def test_limits_and_budgets_are_one_command_and_so_is_their_settlement(server):
    caps = (CAP, Cap("key:k", span_of(Period.DAY, 0), 100, None))
    async with worker(server.url, SpendBooks()) as limiter:
        await limiter.reserve("a", SCOPES, ONE, Spend(caps, 1, limiter.clock.now_ms()))
        before, with_text = server.calls("evalsha"), server.calls("eval")
        decision = await limiter.reserve("a", SCOPES, ONE, Spend(caps, 2, limiter.clock.now_ms()))
        assert server.calls("evalsha") == before + 1
        limiter.settle(decision.reservation, ONE, 7)
        await limiter.peek("a", SCOPES)
        assert server.calls("evalsha") == before + 3
    assert held(server)["total"] == "8"
    assert server.calls("eval") == with_text
