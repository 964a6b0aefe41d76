"""Real processes that are killed at random moments under load, and a disk that takes no more.

Each request asks for a number of tokens of its own, and carries that number in its query: it names the call in the
upstream's records, and its event in the ledger, which charges that many whether it ended or was cut short.
"""

from __future__ import annotations

import json
import random
import resource
import signal
import threading
import time
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import requests
from sqlalchemy import select

from proxy.adapters.sql.engine import open_engine
from proxy.adapters.sql.tables import usage_events
from tests.support.held_upstream import HELD, held_upstream
from tests.support.redis_server import RedisServer
from tests.support.tollgate_process import eventually, run_simulator, run_tollgate
from tests.support.workers import figure, until_all_serve, workers_of

pytestmark = pytest.mark.timeout(300)

CALLERS = 6
MOST_CALLS = 500
"""The upstream remembers a thousand."""


def chat(number, **more):
    """A request whose answer has so many tokens, and can have no more."""
    message = {"role": "user", "content": f"echo:{'abcd' * number}"}
    return {"model": "gpt-4o-mini", "messages": [message], "max_tokens": number, **more}


@pytest.fixture
def upstream(tmp_path):
    with run_simulator(tmp_path / "simulator", "sk-upstream-of-this-test") as running:
        yield running


@pytest.fixture(params=["sqlite", "postgres"])
def database(request, tmp_path):
    """Where the ledger is kept: the line of the settings, and what `open_engine` takes."""
    if request.param == "sqlite":
        return "", tmp_path / "data" / "tollgate.sqlite3"
    url = request.getfixturevalue("postgres_url")
    return f"database_url = {json.dumps(url)}\n", url


def ask(gateway_url, team, number, *, session=None, **wishes):
    """One completion of so many tokens, plain or streamed by turns."""
    headers = {f"x-simulate-{name.replace('_', '-')}": str(value) for name, value in wishes.items()}
    with requests.Session() as own:
        own.trust_env = False
        return (session or own).post(
            f"{gateway_url}/chat/completions?call={number}",
            json=chat(number, stream=bool(number % 2)),
            headers={**team.headers, **headers},
            timeout=(30, 60),
        )


class Load:
    """Callers that never stop asking, wherever the server is at the moment."""

    def __init__(self, team, address):
        self._team = team
        self._stop = threading.Event()
        self._numbers = iter(range(1, MOST_CALLS + 1))
        self._lock = threading.Lock()
        self.address = address
        self.answered = Counter()
        self._callers = [threading.Thread(target=self._call, args=(seed,)) for seed in range(CALLERS)]

    def some_pass(self, rng):
        """Wait until it has been answered a few times more, and then for any moment."""
        enough = self.answered[200] + 2
        eventually(lambda: self.answered[200] >= enough, what="answers under load")
        time.sleep(rng.uniform(0.0, 0.3))

    @contextmanager
    def running(self):
        for caller in self._callers:
            caller.start()
        try:
            yield self
        finally:
            self._stop.set()
            for caller in self._callers:
                caller.join(100)

    def _call(self, seed):
        rng = random.Random(seed)
        while not self._stop.is_set():
            with self._lock:
                number = next(self._numbers, None)
                if number is None:
                    return
            while not self._stop.is_set() and not self._asked(number, rng):
                time.sleep(0.05)

    def _asked(self, number, rng):
        """Whether a server took the request, and perhaps was killed over it."""
        try:
            answer = ask(self.address, self._team, number, delay_ms=rng.randrange(20, 120))
        except requests.ConnectionError as error:
            return "NewConnectionError" not in repr(error)
        except requests.RequestException:
            return True
        with self._lock:
            self.answered[answer.status_code] += 1
        return True


def events_of(place):
    engine = open_engine(place)
    with engine.connect() as connection:
        rows = connection.execute(select(usage_events)).mappings().all()
    engine.dispose()
    return rows


def one_event_per_call(upstream, place, load):
    """Each call upstream saw has one event, and an event without such a call was cut short before it was sent."""
    calls = Counter(int(record["query"].removeprefix("call=")) for record in upstream.idle_stats()["records"])
    assert max(calls.values()) == 1, "nothing was asked twice"
    rows = events_of(place)
    events = Counter(row["output_tokens"] for row in rows)
    assert max(events.values()) == 1, "one event for a request"
    assert calls.keys() <= events.keys()
    unsent = [row for row in rows if row["output_tokens"] not in calls]
    assert {row["outcome"] for row in unsent} <= {"interrupted", "upstream_error"}
    outcomes = Counter(row["outcome"] for row in rows)
    assert outcomes["ok"] >= load.answered[200]
    assert all(row["estimated"] for row in rows if row["outcome"] == "interrupted")
    return outcomes


def verified(gateway):
    told = json.loads(gateway.cli("ledger", "verify", "--json"))
    assert told["ok"], told
    return told


def endless(session, gateway, team, number):
    """A stream that has begun and does not end."""
    answer = session.post(
        f"{gateway.base_url}/chat/completions?call={number}",
        json=chat(number, stream=True),
        headers={**team.headers, "x-simulate-chunk-ms": "3600000"},
        stream=True,
        timeout=60,
    )
    assert answer.status_code == 200
    return answer


def test_a_server_killed_at_random_under_load(upstream, database, tmp_path, session):
    settings, place = database
    kills, rng = 4, random.Random(20)
    start = (tmp_path, upstream.base_url, upstream.key)

    def serve():
        return run_tollgate(*start, settings=settings)

    with serve() as first:
        team = first.add_team("growth")
        load = Load(team, first.base_url)
        # Whatever the others are at, this one is in the middle of its answer.
        with load.running(), endless(session, first, team, MOST_CALLS + 2):
            load.some_pass(rng)
            first.signal(signal.SIGKILL)
            first.wait()
            for _ in range(kills - 1):
                with serve() as next_one:
                    load.address = next_one.base_url
                    load.some_pass(rng)
                    next_one.signal(signal.SIGKILL)
                    next_one.wait()
    with serve() as last:
        assert ask(last.base_url, team, MOST_CALLS + 1).status_code == 200

        def all_there():
            spool = verified(last)["spool"]
            return spool["unshipped_events"] == spool["open_requests"] == 0 and spool["writers"] == 1

        eventually(all_there, seconds=60, what="the account of all that was killed")
        outcomes = one_event_per_call(upstream, place, load)
    assert outcomes["ok"] > kills
    assert outcomes["interrupted"] > 0, "somebody was in the middle of a request"


def test_workers_killed_at_random_under_load(upstream, database, tmp_path):
    settings, place = database
    deaths, rng = 5, random.Random(21)
    with RedisServer() as redis:
        stores = f"{settings}redis_url = {json.dumps(redis.url)}\n[server]\nworkers = 2\n"
        with run_tollgate(tmp_path, upstream.base_url, upstream.key, settings=stores) as gateway:
            until_all_serve(gateway, 2)
            load = Load(gateway.add_team("growth"), gateway.base_url)
            with load.running():
                for death in range(1, deaths + 1):
                    load.some_pass(rng)
                    # One that has just died is not there for a moment.
                    rng.choice(eventually(lambda: workers_of(gateway), what="a worker")).kill()
                    eventually(
                        lambda death=death: gateway.stderr.count("ended with status -9") >= death,
                        what="its end noticed",
                    )

            def all_there():
                spool = verified(gateway)["spool"]
                return spool["unshipped_events"] == spool["open_requests"] == 0 and spool["writers"] == 2

            eventually(all_there, seconds=60, what="the account of all that was killed")
            outcomes = one_event_per_call(upstream, place, load)
    assert outcomes["ok"] > deaths


# The disk takes no more. The kernel refuses to let any file of the process grow, as it does when a disk is full.


@contextmanager
def full_disk(gateway):
    """No file of the server can grow beyond the segment it writes to."""
    pid = gateway._child.pid
    (segment,) = Path(gateway.data_dir, "spool").glob("*/*.spool")
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (segment.stat().st_size + 30, before[1]))
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, before)


@contextmanager
def under_way(session, gateway, team, number):
    """A stream that is held in its midst."""
    with session.post(
        f"{gateway.base_url}/chat/completions",
        json=chat(number, stream=True),
        headers={**team.headers, **HELD},
        stream=True,
        timeout=60,
    ) as answer:
        assert answer.status_code == 200
        yield answer


def test_on_a_full_disk_requests_are_refused_rather_than_unmetered(tmp_path, session):
    with held_upstream() as upstream, run_tollgate(tmp_path, upstream.base_url, "sk-upstream") as gateway:
        team = gateway.add_team("growth")
        assert ask(gateway.base_url, team, 1).status_code == 200
        with under_way(session, gateway, team, 2) as answer:
            assert upstream.asked == 2
            with full_disk(gateway):
                refused = [ask(gateway.base_url, team, 100 + number) for number in range(5)]
                assert {answer.status_code for answer in refused} == {503}
                assert all(answer.headers["Retry-After"] for answer in refused)
                # What was under way when the disk filled is answered to its end.
                upstream.go_on()
                assert answer.content.endswith(b"data: [DONE]\n\n")
                assert upstream.asked == 2, "nothing was sent unmetered"
                errors = {"store": "spool", "operation": "end"}
                assert eventually(lambda: figure(gateway, "tollgate_store_errors_total", **errors), what="it") == 1
        assert ask(gateway.base_url, team, 3).status_code == 200
        events = gateway.events("growth", 3)
        assert Counter((event["outcome"], event["output_tokens"]) for event in events) == {
            ("ok", n): 1 for n in (1, 2, 3)
        }
        assert verified(gateway)["spool"]["open_requests"] == 0


def test_what_a_full_disk_did_not_take_is_accounted_for_after_a_kill(tmp_path, session):
    """The begin record stands for the event that could not be written."""
    with held_upstream() as upstream:
        start = (tmp_path, upstream.base_url, "sk-upstream")
        with run_tollgate(*start) as gateway:
            team = gateway.add_team("growth")
            with under_way(session, gateway, team, 7) as answer, full_disk(gateway):
                upstream.go_on()
                assert answer.content.endswith(b"data: [DONE]\n\n")
                gateway.signal(signal.SIGKILL)
                gateway.wait()
        with run_tollgate(*start) as after:
            (event,) = after.events("growth", 1)
            assert (event["outcome"], event["output_tokens"], event["estimated"]) == ("interrupted", 7, 1)
            assert ask(after.base_url, team, 1).status_code == 200
            assert len(after.events("growth", 2)) == 2
            assert verified(after)["ok"]
