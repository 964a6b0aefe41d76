"""A hundred callers who ask the same at one time, over four processes and in every form, whatever is lost meanwhile.

Connections are open, and their processes known, before anything is asked. Upstream stands still (SIGSTOP) until all
who ask are seen to wait, so that how fast anything is decides nothing.
"""

from __future__ import annotations

import http.client
import itertools
import json
from collections import Counter
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

import psutil
import pytest

from proxy.core.replay import assemble
from proxy.core.tiers import Limits
from tests.support.redis_server import RedisServer
from tests.support.tollgate_process import eventually, run_simulator, run_tollgate
from tests.support.workers import figure, standing_in_redis, until_all_serve, workers_of

CALLERS = 100
PROCESSES = 4
# Deadlines that a loaded machine keeps: what is shown is how many calls are made, not how soon a store is given up.
SETTINGS = "[server]\nworkers = 4\n[limits]\nredis_deadline_ms = 10000\n[cache]\nredis_deadline_ms = 10000\n"
CAPACITY = 1_000_000
# Hardly refill: what the bucket lacks is what was taken.
LIMITS = Limits(requests_per_minute=1, tokens_per_minute=1, request_capacity=CAPACITY, token_capacity=CAPACITY)
STREAM = {"stream": True}
COUNTED = {"stream": True, "stream_options": {"include_usage": True}}
FORMS = {"plain": ({},), "streamed": (COUNTED, STREAM), "mixed": (STREAM, {}, COUNTED)}
STUCK = {
    "before its answer": {"x-simulate-hang": "1"},
    "in the middle of it": {"x-simulate-chunk-ms": "3600000"},
}
_numbers = itertools.count()


@pytest.fixture(scope="module")
def own_simulator(tmp_path_factory):
    """One that may stand still: nobody else has it."""
    with run_simulator(tmp_path_factory.mktemp("simulator"), "sk-upstream-of-this-test") as running:
        yield running


@pytest.fixture
def upstream(own_simulator):
    own_simulator.idle_stats()
    own_simulator.reset()
    return own_simulator


@pytest.fixture(scope="module")
def redis():
    with RedisServer() as running:
        yield running


@pytest.fixture(scope="module")
def gateway(own_simulator, redis, tmp_path_factory):
    place, options = tmp_path_factory.mktemp("gateway"), ("--redis-url", redis.url)
    with run_tollgate(place, own_simulator.base_url, own_simulator.key, settings=SETTINGS, options=options) as running:
        yield running


@pytest.fixture
def team(gateway):
    """A team of the test's own, once all processes serve and no store is away."""
    until_all_serve(gateway, PROCESSES + gateway.stderr.count("ended with status -9"))
    eventually(lambda: figure(gateway, "tollgate_degraded") == 0, what="all stores")
    return gateway.add_team(
        f"team-{next(_numbers)}",
        requests_per_minute=1,
        tokens_per_minute=1,
        request_capacity=CAPACITY,
        token_capacity=CAPACITY,
    )


REFUSED = "refused"


class Caller:
    """One connection, and the process that serves it."""

    def __init__(self, gateway):
        place = urlsplit(gateway.root)
        self._connection = http.client.HTTPConnection(place.hostname, place.port, timeout=60)
        self._connection.connect()
        self.port = self._connection.sock.getsockname()[1]
        self.pid = 0
        self.stream = False
        self.headers = {}
        """Of the answer."""

    def ask(self, team, body, headers):
        """Send a request; its answer is for later."""
        self.stream = "stream" in body
        sent = {**team.headers, "Content-Type": "application/json", **headers}
        self._connection.request("POST", "/v1/chat/completions", json.dumps(body), sent)

    def told(self, *, may_be_refused=False):
        """The answer, as a completion in either form; None when the connection broke before there was a whole one.

        Where it may be, a refusal by a limit, or for want of a limiter, is `REFUSED`.
        """
        with suppress(ConnectionError, http.client.HTTPException):
            answer = self._connection.getresponse()
            content = answer.read()
            self.headers = answer.headers
            if may_be_refused and answer.status in (429, 503):
                assert json.loads(content)["error"]["code"] in ("rate_limit_exceeded", "server_is_overloaded")
                return REFUSED
            assert answer.status == 200, content
            if not self.stream:
                return json.loads(content)
            *events, done, nothing = content.split(b"\n\n")
            assert (done, nothing) == (b"data: [DONE]", b"")
            return assemble([json.loads(event.removeprefix(b"data: ")) for event in events])
        return None

    def close(self):
        self._connection.close()


@contextmanager
def callers_of(gateway):
    """The callers, each with an open connection, spread over all processes."""
    callers = []
    try:
        callers += (Caller(gateway) for _ in range(CALLERS))
        by_port = {caller.port: caller for caller in callers}

        def all_are_served():
            for worker in workers_of(gateway):
                for connection in worker.net_connections("tcp4"):
                    if connection.raddr and connection.raddr.port in by_port:
                        by_port[connection.raddr.port].pid = worker.pid
            return all(caller.pid for caller in callers)

        eventually(all_are_served, what="a process for each connection")
        assert len({caller.pid for caller in callers}) == PROCESSES
        yield callers
    finally:
        for caller in callers:
            caller.close()


def ask_all(redis, team, callers, form, headers=None, *, after_first=lambda: None):
    """Have everybody ask the same, each in one of the forms, and see all of them wait."""
    messages = [{"role": "user", "content": "Who is first? All of us at once, please. " * 20}]
    body = {"model": "gpt-4o-mini", "temperature": 0, "max_tokens": 8, "messages": messages}
    for caller, options in zip(callers, itertools.cycle(FORMS[form]), strict=False):
        caller.ask(team, body | options, headers or {})
        if caller is callers[0]:
            after_first()
    # Whoever has paid waits for the call.
    eventually(lambda: charged(redis, team)[0] == CALLERS, seconds=50, what="all callers waiting")


def charged(redis, team):
    """Requests and tokens that the team's bucket in the store lacks."""
    standing = standing_in_redis(redis.url, team, LIMITS)
    return CAPACITY - standing.requests.remaining, CAPACITY - standing.tokens.remaining


def pays(redis, team, *events):
    """Every caller has paid a request, and the calls their tokens, once.

    Whoever waits for a call holds no tokens, in whatever process.
    """
    requests, tokens = charged(redis, team)
    told = [tokens_of(event) for event in events]
    assert requests <= CALLERS
    assert sum(told) > 100, "once can be told from a hundred times"
    # A token may have come back for each minute that the machine took.
    assert sum(told) - 10 < tokens <= sum(told)


def tokens_of(event):
    return event["input_tokens"] + event["output_tokens"]


def the_answer(told, *, of_one_call=True):
    """What all were told, which is one thing. A stream without usage tells the rest; each call has an id and a time."""
    assert None not in told
    if not of_one_call:
        told = [each | {"id": "", "created": 0} for each in told]
        for choice in (choice for each in told for choice in each["choices"]):
            choice["message"].pop("annotations", None)  # upstream has none in a stream
    whole = {json.dumps({**each, "usage": None}, sort_keys=True) for each in told}
    usages = {json.dumps(each["usage"], sort_keys=True) for each in told if each.get("usage")}
    assert len(whole) == 1
    assert len(usages) == 1
    return json.loads(whole.pop()) | {"usage": json.loads(usages.pop())}


def ties_out(gateway, team, *, calls, hits):
    """The ledger has an event for each call upstream and each hit; returns those of the calls."""
    events = gateway.events(team.name, calls + hits)
    cached = [event for event in events if event["outcome"] == "cached"]
    assert (len(events), len(cached)) == (calls + hits, hits)
    assert {event["cost_pico_usd"] for event in cached} <= {0}
    gateway.cli("ledger", "verify")
    return [event for event in events if event["outcome"] != "cached"]


@pytest.mark.parametrize("form", FORMS)
def test_a_hundred_at_once_are_one_call(gateway, upstream, redis, team, form):
    troubles = figure(gateway, "tollgate_cache_failures_total")
    with callers_of(gateway) as callers:
        with upstream.standing_still():
            ask_all(redis, team, callers, form)
        answer = the_answer([caller.told() for caller in callers])
    assert upstream.idle_stats()["requests"] == 1
    assert len({caller.headers["x-request-id"] for caller in callers}) == CALLERS
    if form == "plain":
        said = Counter(caller.headers["Cache-Status"].partition("; ttl")[0] for caller in callers)
        assert said["tollgate; fwd=uri-miss; stored"] == 1, said
    (called,) = ties_out(gateway, team, calls=1, hits=CALLERS - 1)
    assert called["outcome"] == "ok"
    assert tokens_of(called) == answer["usage"]["total_tokens"]
    pays(redis, team, called)
    assert figure(gateway, "tollgate_cache_failures_total") == troubles


@pytest.mark.parametrize(
    ("form", "when"),
    [
        ("plain", "before its answer"),
        ("streamed", "before its answer"),
        ("streamed", "in the middle of it"),
        ("mixed", "in the middle of it"),
    ],
)
def test_the_process_that_leads_is_killed(gateway, upstream, redis, team, form, when):
    # The first call upstream never ends; its successor does.
    stuck = {**STUCK[when], "x-simulate-id": team.name, "x-simulate-times": "1"}
    with callers_of(gateway) as callers:

        def until_it_calls():
            eventually(lambda: upstream.stats()["in_flight"] == 1, what="a call upstream")

        leading = callers[0].pid
        ask_all(redis, team, callers, form, stuck, after_first=until_it_calls)
        psutil.Process(leading).kill()
        told = {caller: caller.told() for caller in callers}
    surviving = [told[caller] for caller in callers if caller.pid != leading]
    answer = the_answer(surviving)
    assert [told[caller] for caller in callers if caller.pid == leading] == [None] * (CALLERS - len(surviving))
    assert upstream.idle_stats()["requests"] == 2
    called = ties_out(gateway, team, calls=2, hits=len(surviving) - 1)
    killed, finished = sorted(called, key=lambda event: event["outcome"])
    assert (killed["outcome"], killed["estimated"]) == ("interrupted", 1)
    assert (finished["outcome"], finished["estimated"]) == ("ok", 0)
    assert tokens_of(finished) == answer["usage"]["total_tokens"]
    pays(redis, team, killed, finished)


def cut_connections(redis):
    for kind in ("normal", "pubsub"):
        redis.ask("CLIENT", "KILL", "TYPE", kind)


CUTS = {"killed": RedisServer.kill, "its connections reset": cut_connections}


@pytest.fixture
def restored(redis):
    """Redis is there again in the end, as empty as a new one."""
    yield
    redis.kill()
    redis.start()


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize(
    ("form", "cut"),
    [("plain", "killed"), ("streamed", "killed"), ("mixed", "killed"), ("mixed", "its connections reset")],
)
def test_redis_is_lost_in_mid_fill(gateway, upstream, redis, team, form, cut):
    with callers_of(gateway) as callers:
        with upstream.standing_still():
            ask_all(redis, team, callers, form)
            for mark in ("fill", "wait"):
                eventually(lambda mark=mark: redis.ask("KEYS", f"c:{team.name}:*:{mark}"), what=f"a {mark} under way")
            CUTS[cut](redis)
        # Without a limiter a process that waited has no part of so slow a limit yet: the call's own process has paid.
        # On a slow machine, one that is back at once has been missed all the same.
        told = [caller.told(may_be_refused=True) for caller in callers]
        answered = [each for each in told if each != REFUSED]
        the_answer(answered, of_one_call=False)
    calls = upstream.idle_stats()["requests"]
    assert 1 <= calls <= PROCESSES + 1
    assert len(answered) == CALLERS or calls == 1 or cut != "killed"
    called = ties_out(gateway, team, calls=calls, hits=len(answered) - calls)
    assert [event["outcome"] for event in called] == ["ok"] * calls
    assert len({tokens_of(event) for event in called}) == 1
