"""The services of the compose file, all but Grafana, started together without containers."""

from __future__ import annotations

import shutil
import socket
import tempfile
import threading
from pathlib import Path

import psutil
import psycopg
import pytest
import redis
import requests

from tests.support.compose import COMPOSE, NATIVE, natively
from tests.support.tollgate_process import eventually, run_simulator

KEY = "sk-upstream-of-the-compose-file"
HELLO = {"model": "gpt-4o-mini", "temperature": 0, "messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture(scope="module")
def place():
    """Where the user that Postgres runs as can reach it."""
    path = Path(tempfile.mkdtemp(prefix="tollgate-compose-", dir="/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def simulator(place):
    with run_simulator(place / "simulator", KEY, "--tokens", "30") as running:
        yield running


def keys_of(address: str) -> set[str]:
    host, port = address.split(":")
    with redis.Redis(host, int(port), decode_responses=True) as client:
        return set(client.scan_iter(count=1_000))


def ask(url: str, **parameters):
    with requests.Session() as session:
        session.trust_env = False
        return session.get(url, params=parameters, timeout=10)


@pytest.mark.timeout(240)
def test_all_of_it_together_from_the_first_request_to_the_last(place, simulator):
    assert set(NATIVE) == set(COMPOSE["services"]) - {"grafana"}
    with natively(place, OPENAI_API_KEY=KEY, TOLLGATE_UPSTREAM=simulator.base_url) as services:
        processes = family(services)
        operations = services.address("tollgate", 8081)
        eventually(lambda: ask(f"http://{operations}/readyz").status_code == 200, seconds=30, what="readiness")
        doctor_finds_nothing_that_fails(services)
        base_url = f"http://{services.address('tollgate')}/v1"
        assert services.exec("teams", "add", "growth").returncode == 0
        key = services.exec("keys", "issue", "--team", "growth").stdout.strip()
        assert key.startswith("sk-tg_")
        headers = {"Authorization": f"Bearer {key}"}

        asked = requests_go_through_and_then_one_is_from_the_cache(base_url, headers)
        limits_and_answers_are_where_they_belong(services)
        the_ledger_in_postgres_has_them(services, asked)
        prometheus_has_scraped_them(services, asked)
        a_stop_lets_a_stream_end(services, base_url, headers)
        the_ledger_ties_out(services, asked + 1)
        for name in ("prometheus", "redis-cache", "redis", "postgres"):
            assert services.stop(name) == 0
    assert not psutil.wait_procs(processes, timeout=20)[1], "something is left behind"
    for port in services.ports.values():
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0


def family(services):
    """Every process there is: the services, and what they have started."""
    roots = [psutil.Process(child.pid) for child in services.running.values()]
    return [*roots, *(child for root in roots for child in root.children(recursive=True))]


def doctor_finds_nothing_that_fails(services):
    ports = [services.address("tollgate", port).rpartition(":")[2] for port in (8080, 8081)]
    doctor = services.exec("doctor", "--port", ports[0], "--admin-port", ports[1])
    assert doctor.returncode == 0, doctor.stdout
    assert doctor.stdout.count("is served by Tollgate now") == 2


def requests_go_through_and_then_one_is_from_the_cache(base_url, headers):
    """How many: of a Redis that keeps it waiting Tollgate asks no answer, and a machine stands still at times."""
    answers = []
    with requests.Session() as session:
        session.trust_env = False

        def is_hit():
            answers.append(session.post(f"{base_url}/chat/completions", json=HELLO, headers=headers, timeout=30))
            assert answers[-1].status_code == 200, answers[-1].text
            return answers[-1].headers["x-tollgate-cache"] == "hit"

        eventually(is_hit, what="an answer from the cache")
    *fresh, kept = answers
    assert fresh
    assert {answer.headers["x-tollgate-cache"] for answer in fresh} == {"miss"}
    assert kept.content in [answer.content for answer in fresh]
    return len(answers)


def limits_and_answers_are_where_they_belong(services):
    def growths(service):
        return {key for key in keys_of(services.address(service)) if "growth" in key}

    limits = eventually(lambda: growths("redis"), what="limits of the team")
    answers = eventually(lambda: growths("redis-cache"), what="answers of the team")
    assert "tollgate:workers" in keys_of(services.address("redis"))
    assert not limits & answers
    for name, policy in (("redis", "noeviction"), ("redis-cache", "allkeys-lfu")):
        host, port = services.address(name).split(":")
        with redis.Redis(host, int(port), decode_responses=True) as client:
            assert client.config_get("maxmemory-policy") == {"maxmemory-policy": policy}
            assert client.config_get("appendonly")["appendonly"] == ("yes" if name == "redis" else "no")


def the_ledger_in_postgres_has_them(services, asked):
    def rows():
        with psycopg.connect(services.dsn("tollgate")) as connection:
            found = connection.execute("SELECT cost_pico_usd > 0, model FROM usage_events WHERE team = 'growth'")
            found = sorted(found.fetchall())
            return found if len(found) == asked else None

    found = eventually(rows, seconds=60, what="all events in Postgres")
    assert found == [(False, "gpt-4o-mini"), *[(True, "gpt-4o-mini")] * (asked - 1)]
    assert not (services.volume("tollgate", "/var/lib/tollgate") / "tollgate.sqlite3").exists()


def prometheus_has_scraped_them(services, asked):
    url = f"http://{services.address('prometheus')}/api/v1/query"

    def count():
        result = ask(url, query='sum(tollgate_requests_total{team="growth"})').json()["data"]["result"]
        return result and float(result[0]["value"][1]) == asked

    eventually(count, seconds=60, what="all requests in Prometheus")
    rules = ask(f"http://{services.address('prometheus')}/api/v1/rules").json()["data"]["groups"]
    assert sum(len(group["rules"]) for group in rules) > 10, "the rules are loaded with it"


def a_stop_lets_a_stream_end(services, base_url, headers):
    """A stream of two seconds is under way when the signal comes."""
    begun, told = threading.Event(), []

    def listen():
        body = {**HELLO, "temperature": 1, "stream": True}
        slowly = {**headers, "x-simulate-chunk-ms": "60"}
        with requests.Session() as session:
            session.trust_env = False
            with session.post(
                f"{base_url}/chat/completions", json=body, headers=slowly, stream=True, timeout=30
            ) as answer:
                for line in answer.iter_lines():
                    told.append(line)
                    begun.set()

    listener = threading.Thread(target=listen)
    listener.start()
    assert begun.wait(20)
    grace = COMPOSE["services"]["tollgate"]["stop_grace_period"]
    assert services.stop("tollgate") == 0, grace
    listener.join(20)
    assert told[-2:] == [b"data: [DONE]", b""]
    assert len(told) > 40


def the_ledger_ties_out(services, asked):
    with psycopg.connect(services.dsn("tollgate")) as connection:
        assert connection.execute("SELECT count(*) FROM usage_events").fetchone() == (asked,)
    verified = services.exec("ledger", "verify")
    assert verified.returncode == 0, verified.stderr
