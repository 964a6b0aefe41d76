"""`tollgate cache` against a database of its own, and a real Redis."""

from __future__ import annotations

import json
import socket
from datetime import UTC, datetime, timedelta

import pytest
from click.testing import CliRunner
from sqlalchemy import insert, select

from proxy.adapters.sql.tables import audit_log, usage_daily
from proxy.app import open_registry
from proxy.app.database import open_database
from proxy.cli import main
from proxy.core.usage import Usage
from proxy.settings import load
from tests.support.redis_server import RedisServer


@pytest.fixture
def settings(tmp_path):
    return load(None, {}, {"data_dir": str(tmp_path / "data")})


@pytest.fixture
def run(settings):
    def invoke(*arguments):
        place = ("--data-dir", str(settings.data_dir))
        return CliRunner().invoke(main, ["cache", *arguments, *place], prog_name="tollgate")

    return invoke


@pytest.fixture
def done(run):
    def invoke(*arguments, said=""):
        result = run(*arguments)
        assert (result.exit_code, result.stderr) == (0, said), result.output
        return result.stdout

    return invoke


@pytest.fixture
def growth(settings):
    """The team as the database has it, whenever it is asked for."""

    def look():
        with open_registry(settings) as registry:
            return registry.get_team("growth")

    with open_registry(settings) as registry:
        registry.add_team("growth", "free")
    return look


@pytest.fixture
def spent(settings):
    """Two teams' use of today, and of forty days ago."""
    today = datetime.now(UTC).date()
    rows = [
        dict.fromkeys(Usage.__struct_fields__, 7)
        | {"day": day, "team": team, "model": model, "key_id": key, "upstream": "", "endpoint": "chat"}
        | {
            "requests": requests,
            "cached": cached,
            "estimated": 0,
            "cost_pico_usd": 5,
            "saved_pico_usd": cached * 10**11,
        }
        | {"saved_input_tokens": 1_000 * cached, "saved_output_tokens": 10 * cached}
        for day, team, model, key, requests, cached in (
            (today, "growth", "gpt-5", "k1", 5, 1),
            (today, "growth", "gpt-5", "k2", 1, 1),
            (today, "growth", "gpt-5-mini", "k1", 4, 0),
            (today, "research", "gpt-5", "k3", 2, 2),
            (today - timedelta(days=40), "growth", "gpt-5", "k1", 100, 100),
        )
    ]
    with open_database(settings) as engine, engine.begin() as connection:
        connection.execute(insert(usage_daily), rows)


@pytest.fixture(scope="module")
def redis():
    with RedisServer("maxmemory 50mb", "maxmemory-policy allkeys-lru") as server:
        yield server


def test_a_team_is_forgotten(done, growth, settings):
    before = growth()
    told = done("purge", "--team", "growth")
    assert told == ("forgot every answer kept for team growth; workers go by it within 10 s, and usually within one\n")
    assert growth().cache_secret != before.cache_secret
    with open_database(settings) as engine, engine.connect() as connection:
        (*_, last) = connection.execute(select(audit_log).order_by(audit_log.c.id)).mappings()
    assert (last["actor"].partition(":")[0], last["action"], last["subject"]) == ("cli", "cache.purge", "growth")


def test_a_model_is_forgotten_and_the_rest_is_not(done, growth, spent):
    before = growth()
    assert "every answer of gpt-5 kept for team growth" in done("purge", "--team", "growth", "--model", "gpt-5")
    after = growth()
    assert after.cache_secret == before.cache_secret
    assert list(after.cache_salts) == ["gpt-5"]
    assert json.loads(done("purge", "--team", "growth", "--model", "gpt-5", "--json")) == {
        "team": "growth", "model": "gpt-5", "purged": True
    }  # fmt: skip
    assert growth().cache_salts != after.cache_salts


def test_a_model_nobody_asked_for_is_doubted(done, growth, spent):
    note = "note: the ledger has no request of team growth for gpt5\n"
    assert "forgot" in done("purge", "--team", "growth", "--model", "gpt5", said=note)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("purge", "--team", "nobody"), "no team is named nobody"),
        (("purge", "--team", "nobody", "--model", "gpt-5"), "no team is named nobody"),
        (("purge", "--team", "growth", "--model", "\x1b[2J"), "model: must be printable"),
        (("stats", "--team", "nobody"), "no team is named nobody"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_done_is_said_in_a_sentence(run, growth, spent, arguments, message):
    before = growth()
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert message in result.stderr
    assert "\x1b" not in result.stderr
    assert growth() == before


def test_a_purge_wants_a_team(run):
    assert run("purge").exit_code == 2


def test_a_purge_is_announced_over_redis(done, growth, redis):
    for model in ((), ("--model", "gpt-5")):
        before = redis.calls("publish")
        done("purge", "--team", "growth", *model, "--redis-url", redis.url, said=said_of(model))
        assert redis.calls("publish") == before + 1


def said_of(model):
    return "note: the ledger has no request of team growth for gpt-5\n" if model else ""


def test_stats_by_team_and_model(done, spent):
    told = json.loads(done("stats", "--json"))
    assert told == {
        "usage": [
            row("growth", "gpt-5", 6, 2, 33.3),
            row("growth", "gpt-5-mini", 4, 0, 0.0),
            row("research", "gpt-5", 2, 2, 100.0),
        ],
        "store": {"kind": "memory", "max_bytes": 256 * 2**20},
    }
    assert json.loads(done("stats", "--team", "research", "--json"))["usage"] == [row("research", "gpt-5", 2, 2, 100.0)]
    assert json.loads(done("stats", "--since", "60d", "--json"))["usage"][0] == row("growth", "gpt-5", 106, 102, 96.2)


def row(team, model, requests, cached, percent):
    return {
        "team": team,
        "model": model,
        "requests": requests,
        "cached": cached,
        "cached_percent": percent,
        "saved_input_tokens": 1_000 * cached,
        "saved_output_tokens": 10 * cached,
        "saved_usd": f"{cached // 10}.{cached % 10}00000000000",
    }


def test_stats_in_a_table(done, spent):
    header, first, *_, empty, store = done("stats").splitlines()
    assert header.split() == ["team", "model", "requests", "cached", "share", "saved_tokens", "saved_usd"]
    assert first.split() == ["growth", "gpt-5", "6", "2", "33.3", "%", "2,020", "0.200000"]
    assert empty == ""
    assert store.startswith("answers are kept in each worker, at most 268,435,456 bytes")


def test_the_store_is_asked_where_it_is_redis(done, spent, redis):
    redis.ask("SET", "something", "x" * 10_000)
    (server,) = json.loads(done("stats", "--redis-url", redis.url, "--json"))["store"]["servers"]
    assert server["address"].endswith(str(redis.port))
    assert 10_000 < server["used_bytes"] < server["max_bytes"] == 50 * 2**20
    assert (server["policy"], server["evicted_keys"]) == ("allkeys-lru", 0)
    *_, header, line = done("stats", "--redis-url", redis.url).splitlines()
    assert header.split() == ["redis", "used_bytes", "max_bytes", "policy", "evicted_keys"]
    assert line.split()[2:] == ["52,428,800", "allkeys-lru", "0"]


def test_evictions_are_told(done, spent):
    with RedisServer("maxmemory 3mb", "maxmemory-policy allkeys-lru") as server:
        for number in range(60):
            server.ask("SET", f"k{number}", "x" * 100_000)
        (told,) = json.loads(done("stats", "--redis-url", server.url, "--json"))["store"]["servers"]
        assert told["evicted_keys"] > 0


def test_the_ledger_is_told_though_redis_is_away(done, spent):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"redis://127.0.0.1:{nobody.getsockname()[1]}/0"
        told = json.loads(done("stats", "--redis-url", url, "--json"))
        assert told["store"] == {"kind": "redis", "servers": None}
        assert len(told["usage"]) == 3
        assert done("stats", "--redis-url", url).splitlines()[-1].endswith("which did not answer")


def test_a_cache_that_is_off_says_so(done, spent, tmp_path):
    file = tmp_path / "tollgate.toml"
    file.write_text("[cache]\nenabled = false\n")
    assert json.loads(done("stats", "--config", str(file), "--json"))["store"] == {"kind": "off"}
    assert done("stats", "--config", str(file)).splitlines()[-1] == "the cache is off"
