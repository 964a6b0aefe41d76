"""Postgres goes away under a server of two workers, one of which dies meanwhile, and comes back."""

from __future__ import annotations

import json
import time

import pytest

from tests.support.postgres_server import PASSWORD, PostgresServer
from tests.support.redis_server import RedisServer
from tests.support.tollgate_process import eventually, run_tollgate
from tests.support.workers import ask, burst, until_all_serve, workers_of

pytestmark = pytest.mark.timeout(300)


def test_requests_go_on_without_postgres_and_a_worker_that_cannot_start_says_why(simulator, tmp_path):
    with RedisServer() as redis, PostgresServer() as postgres:
        stores = {"redis_url": redis.url, "database_url": postgres.url()}
        settings = "".join(f"{name} = {json.dumps(value)}\n" for name, value in stores.items())
        settings += "[server]\nworkers = 2\n"
        with run_tollgate(tmp_path, simulator.base_url, simulator.key, settings=settings) as gateway:
            until_all_serve(gateway, 2)
            team = gateway.add_team("growth")
            # Until every worker has seen the change that the new team is, and has asked again: four looks a second.
            before, until = 0, time.monotonic() + 2
            while time.monotonic() < until or before < 8 * 16:
                assert burst([gateway], team, 16) == {200: 16}
                before += 16
            postgres.kill()
            # Who was in stays in; what is used waits in the spool.
            assert burst([gateway], team, 16) == {200: 16}
            workers_of(gateway)[0].kill()
            eventually(lambda: "cannot serve: database does not answer" in gateway.stderr, what="the reason")
            # The other worker goes on.
            assert ask(gateway, team).status_code == 200
            postgres.start()
            until_all_serve(gateway, 3)

            def all_there():
                told = json.loads(gateway.cli("ledger", "verify", "--json"))
                assert told["ok"], told
                return told["events"] == before + 17 and told["spool"]["unshipped_events"] == 0

            eventually(all_there, seconds=60, what="an event for each request")
            assert "Traceback" not in gateway.stderr
            assert PASSWORD not in gateway.stderr + gateway.stdout
