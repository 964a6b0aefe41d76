from __future__ import annotations

import json

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


def about(check, url):
    _, result = check("", OPENAI_API_KEY="sk-some-key", TOLLGATE_REDIS_URL=url)
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
