"""What `tollgate doctor` says of Redis and of the database, with real servers."""

from __future__ import annotations

import asyncio
import json
import socket
import socketserver
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing, contextmanager

import pytest

from proxy.adapters.clock import SystemClock
from proxy.adapters.sql.engine import open_engine
from proxy.adapters.sql.migrate import migrate
from proxy.app import open_registry
from proxy.settings import load
from tests.faults.tcp_proxy import TcpProxy
from tests.support.doctor import Doctor, answering
from tests.support.redis_server import RedisServer, eventually, free_port
from tests.support.tollgate_process import clean_environment, run_tollgate

PASSWORD = "hunter2-of-the-store"


@pytest.fixture
def doctor(tmp_path):
    """One in front of an upstream that is well: what fails is what is asked about."""
    with answering(200, json.dumps({"data": []}).encode()) as url:
        ask = Doctor(tmp_path)

        def about(settings="", *options, **variables):
            told = ask(settings, *options, "--upstream", url, OPENAI_API_KEY="sk-some-key", **variables)
            assert PASSWORD not in told.printed
            return told

        about.data_dir = ask.data_dir
        yield about


# Redis


def test_a_redis_for_limits_and_one_for_answers_that_are_fit(doctor):
    with RedisServer() as limits, RedisServer("maxmemory 50mb", "maxmemory-policy allkeys-lru") as answers:
        told = doctor("", TOLLGATE_REDIS_URL=limits.url, TOLLGATE_CACHE_REDIS_URL=answers.url)
    assert told.status == 0
    for check, server in (("redis", limits), ("cache_redis", answers)):
        assert told.verdict(check) == "ok"
        assert f"at 127.0.0.1:{server.port} answers in " in told[check][1]
        assert told.verdict(f"{check}.clock") == "ok"


def test_a_redis_that_throws_limits_away_and_one_that_keeps_answers_for_ever(doctor):
    with RedisServer("maxmemory-policy allkeys-lru") as limits, RedisServer() as answers:
        told = doctor("", TOLLGATE_REDIS_URL=limits.url, TOLLGATE_CACHE_REDIS_URL=answers.url)
    assert told.status == 0
    verdict, said, remedy = told["redis"]
    assert (verdict, remedy) == ("warn", "set noeviction")
    assert "throws keys away when memory is short (allkeys-lru)" in said
    verdict, said, remedy = told["cache_redis"]
    assert (verdict, remedy) == ("warn", "set maxmemory, and maxmemory-policy allkeys-lru")
    assert "without a bound" in said


def test_a_replica_takes_no_limits(doctor):
    with RedisServer() as primary, RedisServer(f"replicaof 127.0.0.1 {primary.port}") as replica:
        eventually(lambda: replica.ask("INFO")["master_link_status"] == "up", "the replica follows")
        told = doctor("", TOLLGATE_REDIS_URL=replica.url)
    assert told.status == 1
    assert told["redis"][::2] == ("fail", "name its primary, or use redis+sentinel://")


def test_a_redis_that_is_away_fails_and_one_of_answers_is_missed(doctor):
    url = f"redis://:{PASSWORD}@127.0.0.1:{free_port()}"
    told = doctor("", TOLLGATE_REDIS_URL=url, TOLLGATE_CACHE_REDIS_URL=f"{url[:-5]}{free_port()}")
    assert told.status == 1
    assert told.verdict("redis") == "fail"
    assert told["redis"][1].endswith(": Connection refused")
    assert told.verdict("cache_redis") == "warn"


def test_a_redis_that_accepts_and_says_nothing(doctor):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        told = doctor("", TOLLGATE_REDIS_URL=f"redis://127.0.0.1:{silent.getsockname()[1]}")
    assert told.verdict("redis") == "fail"
    assert "no answer in time" in told["redis"][1]


_WHERE_NAMES_ARE_NOT_FOUND = """
import socket, sys, threading
from proxy.app import doctor
from proxy.cli import main
numbers = socket.getaddrinfo
def held(host, *args, **options):
    if "." in str(host) and not str(host)[0].isdigit():
        threading.Event().wait(600)
    return numbers(host, *args, **options)
socket.getaddrinfo = held
doctor._PATIENCE_SECONDS = 1.0
main(["doctor", "--json", "--port", "0", "--admin-port", "0", *sys.argv[1:]])
"""


def test_names_that_are_looked_up_for_ever_keep_nobody(doctor):
    """The threads that look them up cannot be told to end: the command ends without them."""
    done = subprocess.run(
        (sys.executable, "-c", _WHERE_NAMES_ARE_NOT_FOUND, "--data-dir", doctor.data_dir, "--upstream",
         "http://upstream.example/v1"),
        env=clean_environment(
            OPENAI_API_KEY="sk-some-key",
            TOLLGATE_REDIS_URL=f"redis://:{PASSWORD}@redis.example",
            TOLLGATE_DATABASE_URL=f"postgresql://tollgate:{PASSWORD}@one.example,two.example/tollgate",
        ),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    failed = {each["check"] for each in json.loads(done.stdout)["checks"] if each["verdict"] == "fail"}
    assert {"database", "redis", "upstream"} <= failed
    assert PASSWORD not in done.stdout + done.stderr


def test_a_wrong_password_of_redis(doctor):
    with RedisServer("requirepass another") as redis:
        told = doctor("", TOLLGATE_REDIS_URL=f"redis://:{PASSWORD}@127.0.0.1:{redis.port}")
    assert told.verdict("redis") == "fail"
    assert "it refuses us (WRONGPASS" in told["redis"][1]


@contextmanager
def an_old_redis():
    """The port of one that says it is of 2018, in the few words it is asked for."""
    told = b"redis_version:5.0.3\r\nrole:master\r\nmaxmemory_policy:noeviction\r\n"
    answers = {b"INFO": b"$%d\r\n%s\r\n" % (len(told), told), b"PING": b"+PONG\r\n", b"CLIENT": b"+OK\r\n"}

    class Handler(socketserver.StreamRequestHandler):
        def handle(self):
            while line := self.rfile.readline():
                words = []
                for _ in range(int(line[1:])):
                    self.rfile.readline()
                    words.append(self.rfile.readline().strip())
                now = str(SystemClock().now_ms() // 1_000).encode()
                time = b"*2\r\n$%d\r\n%s\r\n$1\r\n0\r\n" % (len(now), now)
                self.wfile.write(answers.get(words[0], time))

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

        def handle_error(self, *_):
            pass

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def test_a_redis_that_is_too_old(doctor):
    with an_old_redis() as port:
        told = doctor("", TOLLGATE_REDIS_URL=f"redis://127.0.0.1:{port}")
    assert told.status == 1
    assert told["redis"] == ("fail", f"redis 5.0.3 at 127.0.0.1:{port} is too old", "6.2 or newer is needed")


def test_a_redis_that_is_far_away(doctor):
    """Half of the time that a decision has is gone on the way."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    with RedisServer() as redis:
        proxy = TcpProxy(("127.0.0.1", redis.port))
        proxy.delay_seconds = 0.06
        asyncio.run_coroutine_threadsafe(proxy.start(), loop).result(10)
        try:
            told = doctor("", TOLLGATE_REDIS_URL=f"redis://127.0.0.1:{proxy.port}")
        finally:
            asyncio.run_coroutine_threadsafe(proxy.stop(), loop).result(10)
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()
    assert told.status == 0
    assert told["redis"][::2] == ("warn", "put it nearer, or raise redis_deadline_ms")
    assert " of the 100 ms allowed" in told["redis"][1]


def test_one_redis_for_both_is_said_and_machines_without_a_common_key_are_warned_of(doctor):
    with RedisServer() as redis:
        told = doctor("[server]\nreplicas = 2\n", TOLLGATE_REDIS_URL=redis.url)
        shared = doctor("", TOLLGATE_REDIS_URL=redis.url)
    assert told.verdict("cache") == "warn"
    assert "cannot open what another has sealed" in told["cache"][1]
    assert shared["cache"][0] == "ok"
    assert "limits and answers share one Redis" in shared["cache"][1]
    assert "cache_redis" not in shared.checks


def test_more_workers_than_one_without_redis(doctor):
    told = doctor("", "--workers", "2")
    assert told.status == 1
    assert told.verdict("settings") == "fail"
    assert "TOLLGATE_REDIS_URL" in told["settings"][2]


def test_a_url_that_is_no_redis_url_is_not_asked(doctor):
    told = doctor("", TOLLGATE_REDIS_URL=f"http://:{PASSWORD}@127.0.0.1")
    assert told.verdict("settings") == "fail"
    assert "redis" not in told.checks


@pytest.mark.parametrize(("off_ms", "verdict"), [(0, "ok"), (30_000, "warn"), (-90_000, "fail")])
def test_clocks_of_stores_are_held_against_ours(doctor, postgres_url, monkeypatch, off_ms, verdict):
    true_now_ms = SystemClock.now_ms
    monkeypatch.setattr(SystemClock, "now_ms", lambda self: true_now_ms(self) + off_ms)
    with RedisServer() as redis:
        told = doctor("", TOLLGATE_REDIS_URL=redis.url, TOLLGATE_DATABASE_URL=postgres_url)
    for check in ("redis.clock", "database.clock"):
        assert told.verdict(check) == verdict
        if off_ms:
            assert ("ahead of" if off_ms > 0 else "behind") in told[check][1]


# The database


def settings_of(doctor, **variables):
    return load(None, variables, {"data_dir": str(doctor.data_dir)})


def test_a_database_that_is_not_there_yet_is_not_made(doctor):
    told = doctor()
    assert told.status == 0
    assert told["database"][:2] == ("ok", f"SQLite, made in {doctor.data_dir} at the first start")
    assert not doctor.data_dir.exists()


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_a_database_in_use(doctor, kind, request):
    variables = {"TOLLGATE_DATABASE_URL": request.getfixturevalue("postgres_url")} if kind == "postgres" else {}
    settings = settings_of(doctor, **variables)
    with open_registry(settings) as registry:
        registry.add_team("growth", "payg")
    told = doctor("", **variables)
    assert told.status == 0
    assert told["keys"][::2] == ("warn", "tollgate teams add NAME, then tollgate keys issue --team NAME")
    with open_registry(settings) as registry:
        registry.issue_key("growth")
    told = doctor("", **variables)
    assert told.status == 0
    assert told.verdict("database") == told.verdict("peppers") == told.verdict("keys") == "ok"
    assert told["keys"][1] == "1 can be used"
    assert ("SQLite" if kind == "sqlite" else "Postgres") in told["database"][1]


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_keys_whose_peppers_are_lost_or_others(doctor, kind, request):
    variables = {"TOLLGATE_DATABASE_URL": request.getfixturevalue("postgres_url")} if kind == "postgres" else {}
    with open_registry(settings_of(doctor, **variables)) as registry:
        registry.add_team("growth", "payg")
        registry.issue_key("growth")
    peppers = doctor.data_dir / "peppers.json"
    kept = peppers.read_text()
    peppers.unlink()
    verdict, said, remedy = (told := doctor("", **variables))["peppers"]
    assert (told.status, verdict, said) == (1, "fail", f"{peppers} is missing, and the database goes by it: 1 keys")
    assert "restore" in remedy
    peppers.write_text(json.dumps({"current": 1, "peppers": {"1": "ab" * 32}}))
    peppers.chmod(0o600)
    assert "is not the one that keys in this database are hashed under" in doctor("", **variables)["peppers"][1]
    peppers.write_text(json.dumps({"current": 2, "peppers": {"2": "ab" * 32}}))
    told = doctor("", **variables)
    assert told["peppers"][:2] == ("fail", f"1 keys are hashed under peppers that {peppers} lacks, and are refused")
    # Looking has noted nothing: what was there is still right, and the only one.
    peppers.write_text(kept)
    with open_registry(settings_of(doctor, **variables)) as registry:
        assert [pepper.version for pepper in registry.list_peppers()] == [1]
    assert doctor("", **variables).verdict("peppers") == "ok"


def test_peppers_that_are_lost_before_there_is_a_key_keep_a_server_from_starting_too(doctor):
    with open_registry(settings_of(doctor)) as registry:
        registry.add_team("growth", "payg")
        registry.revoke_key(registry.issue_key("growth").record.kid)
    peppers = doctor.data_dir / "peppers.json"
    assert doctor().verdict("peppers") == "ok"
    peppers.unlink()
    told = doctor()
    assert (told.status, told["peppers"][1]) == (1, f"{peppers} is missing, and the database goes by it: 0 keys")


def test_a_new_database_has_no_peppers_to_miss(doctor):
    doctor.data_dir.mkdir(mode=0o700)
    engine = open_engine(doctor.data_dir / "tollgate.sqlite3")
    migrate(engine)
    engine.dispose()
    told = doctor()
    assert told.status == 0
    assert told["peppers"][:2] == ("ok", f"{doctor.data_dir}/peppers.json, made at the first start")


def test_a_schema_that_is_older_or_newer(doctor):
    doctor.data_dir.mkdir(mode=0o700)
    file = doctor.data_dir / "tollgate.sqlite3"
    engine = open_engine(file)
    migrate(engine)
    engine.dispose()
    for revision, status, verdict, words in (
        ("0001", 0, "warn", "the next start migrates it"),
        ("9999", 1, "fail", "install that version again"),
    ):
        with closing(sqlite3.connect(file)) as database, database:
            database.execute("UPDATE alembic_version SET version_num = ?", (revision,))
        told = doctor()
        assert (told.status, told.verdict("database")) == (status, verdict)
        assert revision in told["database"][1]
        assert words in told["database"][2]
        with closing(sqlite3.connect(file)) as database:
            assert database.execute("SELECT version_num FROM alembic_version").fetchone() == (revision,)


def test_an_empty_database_and_a_file_that_is_none(doctor, postgres):
    with postgres.database() as name:
        told = doctor("", TOLLGATE_DATABASE_URL=postgres.url(name))
        assert (told.status, told.verdict("database")) == (0, "ok")
        assert "gets its schema at the first start" in told["database"][1]
        assert postgres.ask("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'", name) == [(0,)]
    doctor.data_dir.mkdir(mode=0o700)
    (doctor.data_dir / "tollgate.sqlite3").write_text("not a database, whatever its name says" * 40)
    told = doctor()
    assert told.status == 1
    assert told["database"][:2] == ("fail", "it does not answer: file is not a database")


def test_a_postgres_that_refuses_is_away_or_cannot_hold_every_name(doctor, postgres):
    told = doctor("", TOLLGATE_DATABASE_URL=postgres.url(password=PASSWORD))
    assert told.status == 1
    assert "password authentication failed" in told["database"][1]
    told = doctor("", TOLLGATE_DATABASE_URL=f"postgresql://tollgate:{PASSWORD}@127.0.0.1:{free_port()}/tollgate")
    assert told.verdict("database") == "fail"
    assert "Connection refused" in told["database"][1]
    with postgres.database(encoding="SQL_ASCII") as name:
        told = doctor("", TOLLGATE_DATABASE_URL=postgres.url(name))
    assert told["database"][:2] == (
        "fail",
        "the database's encoding is SQL_ASCII; make one with ENCODING 'UTF8'",
    )


def test_models_in_use_without_a_price(doctor, tmp_path, simulator, session):
    settings = "[models]\nunknown = 'allow'\n"
    with run_tollgate(tmp_path, simulator.base_url, simulator.key, settings=settings) as gateway:
        team = gateway.add_team("growth")
        for number, model in enumerate(("gpt-4o-mini", "ft:gpt-4o-mini:acme::1"), 1):
            body = {"model": model, "messages": [{"role": "user", "content": "hello"}]}
            answer = session.post(f"{gateway.base_url}/chat/completions", json=body, headers=team.headers, timeout=30)
            assert answer.status_code == 200
            gateway.events("growth", number)
            if number == 1:
                told = doctor(settings)
                assert told["prices.models"][0] == "ok"
    told = doctor(settings)
    assert told.status == 0
    verdict, said, remedy = told["prices.models"]
    assert verdict == "warn"
    assert said.startswith("without a price, and used in the last 30 days: ft:gpt-4o-mini:acme::1;")
    assert "tollgate prices import" in remedy
