"""Every law of a limiter on every engine, over histories that Hypothesis draws and shortens."""

import re
import subprocess
import sys
from contextlib import ExitStack
from itertools import count
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy.adapters.memory.limiter import MemoryLimiter
from proxy.adapters.redis.limiter import DENY_MS
from proxy.core.bucket import Admitted, Cost, Scope
from proxy.core.tiers import Limits, Schedule
from tests.support.limiter_build import FAR_AHEAD_MS, clock_command
from tests.support.limiter_laws import LAWS
from tests.support.redis_server import all_servers
from tests.support.tollgate_process import ROOT

# Each example takes teams of its own, so that one limiter serves all of them.
of_an_engine = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


teams = (f"alike-{number}" for number in count())


@pytest.mark.parametrize("law", LAWS)
@of_an_engine
@given(chance=st.randoms(use_true_random=False))
async def test_of_every_history(engine, law, chance):
    await LAWS[law](engine, chance)


@of_an_engine
@given(chance=st.randoms(use_true_random=False), limits=st.sampled_from([Limits(6, 60), Limits(7, 70, 3, 40)]))
async def test_the_answers_are_those_of_the_embedded_limiter(engine, clock, chance, limits):
    scopes = (
        Scope("team", Schedule(limits, limits), chance.choice((None, 2))),
        Scope("key:k", Schedule(limits, limits)),
    )
    team, embedded = next(teams), MemoryLimiter(clock)
    under_way = []
    for _ in range(20):
        cost = Cost(chance.choice((0, 1, 1, 2)), chance.randint(0, 50))
        verb = chance.choice("rrrscw")
        if verb == "r":
            answers = [await limiter.reserve(team, scopes, cost) for limiter in (engine.limiter, embedded)]
            if isinstance(answers[1], Admitted):
                under_way.append([answer.reservation for answer in answers])
                answers = [answer.standing for answer in answers]
            else:
                # For so long a refusal may be told again, with the figures as they were.
                clock.advance(DENY_MS)
            assert answers[0] == answers[1]
        elif verb == "s" and under_way:
            for limiter, own in zip(
                (engine.limiter, embedded), under_way.pop(chance.randrange(len(under_way))), strict=True
            ):
                limiter.settle(own, cost)
        elif verb == "c":
            engine.limiter.charge(team, scopes, cost)
            embedded.charge(team, scopes, cost)
        else:
            clock.advance(chance.choice((1, 1_000, 10_001)))
        assert await engine.limiter.peek(team, scopes) == await embedded.peek(team, scopes)


def test_four_processes_admit_on_a_cluster_what_one_would(redis_servers):
    server = redis_servers(all_servers()[0], "cluster-enabled yes")
    server.ask("FLUSHALL")
    server.ask(*clock_command(FAR_AHEAD_MS))
    url = f"redis+cluster://127.0.0.1:{server.port}"
    with ExitStack() as stack:
        workers = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-m", "tests.support.limiter_worker", url, str(seed), "hand"],
                    cwd=ROOT,
                    text=True,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                )
            )
            for seed in range(4)
        ]
        for worker in workers:
            stack.callback(worker.kill)
            assert worker.stdout.readline() == "ready\n"
        admitted = []
        # Full at first; a request comes back in 3 s; the minute brings all of them back, and no more than those.
        for now_ms in (0, 2_999, 3_000, 62_999, 63_000, 600_000):
            server.ask(*clock_command(FAR_AHEAD_MS + now_ms))
            for worker in workers:
                worker.stdin.write("same 40\n")
                worker.stdin.flush()
            admitted.append(sum(int(worker.stdout.readline().split()[0]) for worker in workers))
    assert admitted == [20, 0, 1, 19, 1, 20]


def test_every_test_and_law_that_the_table_names_is_there():
    table = Path(__file__).with_name("README.md").read_text("utf-8")
    named = re.findall(r"`(test_\w+\.py)(?:::(\w+))?`", table)
    assert len(named) > 30
    tests = {
        (path.name, test)
        for path in (ROOT / "tests").rglob("test_*.py")
        for test in ("", *re.findall(r"^(?:async )?def (test_\w+)\(", path.read_text("utf-8"), re.MULTILINE))
    }
    assert set(named) <= tests, set(named) - tests
    laws = set(re.findall(r"`([a-z]+(?:_[a-z]+)+)`", table))
    assert laws == set(LAWS)


def test_every_mutation_that_the_table_names_is_made():
    table = Path(__file__).with_name("README.md").read_text("utf-8").partition("| mutation |")[2]
    made = Path(__file__).with_name("test_limiter_mutations.py").read_text("utf-8")
    named = [name for row in re.findall(r"^\| ([^-|]+) \|", table, re.MULTILINE) for name in row.split("; ")]
    assert len(named) == 12
    for name in named:
        assert f'"{name}' in made or name == "law that breaks", name
