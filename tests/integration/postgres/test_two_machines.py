"""Two servers with nothing in common but a Postgres, a Redis and the peppers: as two machines would be."""

from __future__ import annotations

import json
import signal
import subprocess
from collections import Counter

import pytest
from sqlalchemy import select

from proxy.adapters.sql.engine import open_engine
from proxy.adapters.sql.tables import usage_events
from tests.support.days import day_that_lasts
from tests.support.postgres_server import PASSWORD
from tests.support.redis_server import RedisServer
from tests.support.tollgate_process import COMMAND, Team, clean_environment, eventually, run_tollgate
from tests.support.workers import ask, burst, figure, has_ended, slow_stream, until_all_serve, workers_of

pytestmark = pytest.mark.timeout(300)

FREE = 20


@pytest.fixture(scope="module")
def database(postgres):
    """Empty: the first server to start makes the schema."""
    with postgres.database() as name:
        yield postgres.url(name)


@pytest.fixture(scope="module")
def machines(simulator, database, tmp_path_factory):
    with RedisServer() as redis:
        place = tmp_path_factory.mktemp("machines")
        stores = {"redis_url": redis.url, "database_url": database, "pepper_file": str(place / "peppers.json")}
        lines = [f"{name} = {json.dumps(value)}" for name, value in stores.items()]
        settings = "\n".join((*lines, "[server]", "workers = 2", "replicas = 2"))
        with (
            run_tollgate(place / "one", simulator.base_url, simulator.key, settings=settings) as one,
            run_tollgate(place / "two", simulator.base_url, simulator.key, settings=settings) as two,
        ):
            for each in (one, two):
                until_all_serve(each, 2)
            yield one, two


def events_of(database, team):
    engine = open_engine(database)
    with engine.connect() as connection:
        rows = connection.execute(select(usage_events).where(usage_events.c.team == team)).mappings().all()
    engine.dispose()
    return rows


def test_a_key_issued_on_one_is_good_on_the_other(machines):
    one, two = machines
    one.cli("teams", "add", "growth", "--tier", "unlimited")
    for issuer, other in ((one, two), (two, one)):
        issued = json.loads(issuer.cli("keys", "issue", "--team", "growth", "--json"))
        team = Team("growth", issued["key"], issued["id"])
        assert {ask(each, team).status_code for each in (other, issuer)} == {200}


def test_a_key_revoked_on_one_is_refused_by_the_other(machines):
    one, two = machines
    team = one.add_team("revoked")
    assert burst(machines, team, 16) == {200: 16}
    two.cli("keys", "revoke", team.kid)
    # What workers know of a key they trust for ten seconds when nobody tells them.
    eventually(
        lambda: all(ask(each, team).status_code == 401 for each in machines for _ in range(6)),
        seconds=9,
        what="a key revoked everywhere",
    )


def test_a_team_changed_on_one_is_held_to_it_by_the_other(machines):
    one, two = machines
    team = one.add_team("changed")
    assert ask(two, team).status_code == 200
    one.cli("teams", "set", "changed", "--rpm", "7")
    eventually(
        lambda: all(ask(two, team).headers.get("x-ratelimit-limit-requests") == "7" for _ in range(6)),
        seconds=9,
        what="the limit on the other machine",
    )


def test_one_limit_and_one_ledger_for_both(machines, database):
    day_that_lasts()
    team = machines[0].add_team("shared", requests_per_minute=1, request_capacity=FREE)
    ended = burst(machines, team, 60)
    assert FREE <= ended[200] <= FREE + 1
    for each in machines:
        eventually(lambda each=each: figure(each, "tollgate_requests_total", team="shared"), what="requests on each")
    eventually(lambda: len(events_of(database, "shared")) == ended[200], what="an event for each request sent on")
    for each in machines:
        (row,) = json.loads(each.cli("usage", "--team", "shared", "--json"))
        assert row["requests"] == ended[200]
        told = json.loads(each.cli("ledger", "verify", "--json"))
        assert told["ok"], told


def test_the_password_is_in_no_log(machines):
    for each in machines:
        assert PASSWORD not in each.stdout + each.stderr


def test_two_that_share_a_database_and_no_limits_are_refused(simulator, postgres, tmp_path):
    with postgres.database() as name:
        settings = f'database_url = "{postgres.url(name)}"\npepper_file = "{tmp_path}/peppers.json"\n'
        place = (tmp_path / "one", simulator.base_url, simulator.key)
        with run_tollgate(*place, settings=settings) as alone:
            second = (*COMMAND, "serve", "--config", str(tmp_path / "one" / "tollgate.toml"), "--port", "0")
            options = ("--admin-port", "0", "--data-dir", str(tmp_path / "two"), "--upstream", simulator.base_url)
            refused = subprocess.run(
                (*second, *options), env=clean_environment(), capture_output=True, text=True, timeout=60, check=False
            )
            assert refused.returncode == 1
            assert "TOLLGATE_REDIS_URL" in refused.stderr
            assert "Traceback" not in refused.stderr
            assert PASSWORD not in refused.stderr
            alone.signal(signal.SIGKILL)
            alone.wait()
        with run_tollgate(tmp_path / "two", *place[1:], settings=settings) as after:
            assert ask(after, after.add_team("growth")).status_code == 200


def crash(gateway):
    """End all of its processes at once; a supervisor that sees its workers die would start others."""
    workers = workers_of(gateway)
    gateway.signal(signal.SIGSTOP)
    for worker in workers:
        worker.kill()
    gateway.signal(signal.SIGKILL)
    gateway.wait()
    eventually(lambda: all(has_ended(worker) for worker in workers), what="the end of every worker")


def test_a_machine_that_is_killed_is_accounted_for_when_it_starts_again(
    simulator, database, machines, tmp_path, session
):
    """Its spool is on its own disk; the other machine's is none of its business."""
    one, _ = machines
    team = one.add_team("crashed")
    settings = (one.data_dir.parent / "tollgate.toml").read_text()
    place = (tmp_path, simulator.base_url, simulator.key)
    with run_tollgate(*place, settings=settings) as third:
        until_all_serve(third, 2)
        assert burst([third], team, 20) == {200: 20}
        with slow_stream(session, third, team, 600_000):
            crash(third)
    with run_tollgate(*place, settings=settings) as again:
        eventually(lambda: len(events_of(database, "crashed")) == 21, what="every event")
        assert Counter(row["outcome"] for row in events_of(database, "crashed")) == {"ok": 20, "interrupted": 1}
        assert json.loads(again.cli("ledger", "verify", "--json"))["ok"]
