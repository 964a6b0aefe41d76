from __future__ import annotations

import json
import sys

import pytest
from click.testing import CliRunner

from proxy.cli import main
from tests.support.redis_server import RedisServer, eventually, free_port


@pytest.fixture
def check(tmp_path):
    def run(text, *arguments, **environment):
        file = tmp_path / "tollgate.toml"
        file.write_text(text)
        return file, CliRunner().invoke(main, ["check", "--config", str(file), *arguments], env=environment)

    return run


def test_a_good_file_is_said_to_be_good(check):
    file, result = check("[server]\nport = 9000\n", OPENAI_API_KEY="sk-some-key")
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"{file}: ok\n", "")


def test_a_missing_upstream_key_is_a_note(check):
    _, result = check("", OPENAI_API_KEY="")
    assert result.exit_code == 0
    assert result.stderr.startswith("note: upstream.api_key: ")


def test_every_problem_is_named_with_its_line(check):
    file, result = check("[server]\nprot = 1\n\n[cache]\nttl_seconds = 'x'\n")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        f"{file}:2: server.prot: unknown key (did you mean port?)",
        f"{file}:5: cache.ttl_seconds: expected int, got str",
    ]


def test_what_this_version_does_not_serve_is_a_problem(check):
    _, result = check("[server]\nworkers = 4\n", OPENAI_API_KEY="sk-some-key")
    assert result.exit_code == 1
    assert "server.workers" in result.stderr


def test_json_names_the_same_problems(check):
    file, result = check("[server]\nprot = 1\n", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout) == {
        "ok": False,
        "problems": [
            {
                "key": "server.prot",
                "message": "unknown key",
                "file": str(file),
                "line": 2,
                "suggestion": "did you mean port?",
            }
        ],
    }


def test_json_of_a_good_file(check):
    _, result = check("", "--json", OPENAI_API_KEY="sk-some-key")
    assert (result.exit_code, json.loads(result.stdout)) == (0, {"ok": True, "problems": []})


# Redis


def about(check, url, **more):
    told = {"TOLLGATE_CACHE_ENABLED": "false"} | more
    _, result = check("", OPENAI_API_KEY="sk-some-key", TOLLGATE_REDIS_URL=url, **told)
    return result.exit_code, result.stderr


def test_a_redis_that_answers_and_is_fit_needs_no_word(check):
    with RedisServer() as redis:
        assert about(check, redis.url) == (0, "")


def test_a_redis_that_evicts_is_warned_of(check):
    with RedisServer("maxmemory-policy allkeys-lru") as redis:
        status, said = about(check, redis.url)
        assert status == 0
        assert said.startswith("warning: redis ")
        assert said.endswith(
            f" at 127.0.0.1:{redis.port} throws keys away when memory is short (allkeys-lru): set noeviction\n"
        )


def test_a_replica_is_warned_of(check):
    with RedisServer() as primary, RedisServer(f"replicaof 127.0.0.1 {primary.port}") as replica:
        eventually(lambda: replica.ask("INFO")["master_link_status"] == "up", "the replica follows")
        status, said = about(check, replica.url)
        assert status == 0
        assert "is a replica and takes no writes: name its primary, or use redis+sentinel://" in said


def test_a_redis_that_does_not_answer_is_warned_of(check):
    status, said = about(check, f"redis://:a-password@127.0.0.1:{free_port()}")
    assert (status, said) == (0, "warning: Redis does not answer from here\n")


@pytest.mark.parametrize("url", ["http://127.0.0.1:6379", "redis://:a-password@127.0.0.1:port", "redis+sentinel://h:1"])
def test_a_url_that_is_no_redis_url_is_a_problem(check, url):
    _, result = check("", OPENAI_API_KEY="sk-some-key", TOLLGATE_REDIS_URL=url)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "redis_url: " in result.stderr.lower()
    assert "a-password" not in result.stderr


# Redis of the cache

EVICTING = ("maxmemory 50mb", "maxmemory-policy allkeys-lru")


def about_cache(check, **environment):
    _, result = check("", OPENAI_API_KEY="sk-some-key", **environment)
    return result.exit_code, result.stderr


def test_a_cache_that_shares_the_redis_of_limits_is_a_note(check):
    with RedisServer() as redis:
        for cache in ({}, {"TOLLGATE_CACHE_REDIS_URL": f"{redis.url}/1"}):
            status, said = about_cache(check, TOLLGATE_REDIS_URL=redis.url, **cache)
            assert status == 0
            assert said.startswith("note: limits and answers share one Redis")
            assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (EVICTING, ""),
        ((EVICTING[0], "maxmemory-policy volatile-lfu"), ""),
        ((EVICTING[0], "maxmemory-policy volatile-ttl"), "throws away what fills are held by first (volatile-ttl)"),
        (EVICTING[:1], "refuses answers when memory is short (noeviction): set maxmemory-policy allkeys-lru"),
        ((), "holds answers without a bound: set maxmemory, and maxmemory-policy allkeys-lru"),
    ],
)
def test_a_redis_of_answers_alone_has_to_evict(check, options, said):
    with RedisServer(*options) as redis:
        status, all_said = about_cache(check, TOLLGATE_CACHE_REDIS_URL=redis.url)
    assert status == 0
    assert said in all_said
    assert bool(all_said) is bool(said)


def test_a_redis_of_the_cache_that_does_not_answer_is_warned_of(check):
    status, said = about_cache(check, TOLLGATE_CACHE_REDIS_URL=f"redis://:a-password@127.0.0.1:{free_port()}")
    assert (status, said) == (0, "warning: Redis of the cache does not answer from here\n")


def test_machines_that_would_each_make_a_key_are_warned_of(check):
    with RedisServer() as limits, RedisServer(*EVICTING) as answers:
        urls = {"TOLLGATE_REDIS_URL": limits.url, "TOLLGATE_CACHE_REDIS_URL": answers.url, "TOLLGATE_REPLICAS": "2"}
        status, said = about_cache(check, **urls)
        assert status == 0
        assert "each machine makes a master key of its own" in said
        assert "TOLLGATE_CACHE_KEY" in said
        assert about_cache(check, TOLLGATE_CACHE_KEY="A" * 43, **urls) == (0, "")


def test_without_its_packages_a_cache_in_redis_is_a_warning_or_refused(check, monkeypatch):
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with RedisServer() as redis:
        status, said = about_cache(check, TOLLGATE_REDIS_URL=redis.url)
        assert status == 0
        assert said.startswith("warning: each worker keeps answers of its own, because a cache in Redis needs crypto")
        assert said.endswith("pip install 'tollgate[server]'\n")
        status, said = about_cache(check, TOLLGATE_CACHE_REDIS_URL=redis.url)
        assert status == 1
        assert "pip install 'tollgate[server]'" in said
