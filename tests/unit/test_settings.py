from __future__ import annotations

import base64
import pickle
import re
import string
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.tiers import DEFAULT_TIERS, Limits, Phase, Tier
from proxy.settings import (
    DEFAULT_UPSTREAM_URL,
    HitsCount,
    Problem,
    Secret,
    Settings,
    SettingsError,
    load,
    parse_duration_ms,
)
from proxy.settings.lines import key_lines
from proxy.settings.names import leaves, variable_of

KEY = "sk-upstream-secret"


@pytest.fixture
def written(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "tollgate.toml"
        path.write_text(text)
        return path

    return write


def refused(*sources) -> tuple[Problem, ...]:
    with pytest.raises(SettingsError) as caught:
        load(*sources)
    return caught.value.problems


def where(problems: tuple[Problem, ...]) -> list[tuple[int | None, str]]:
    return [(problem.line, problem.key) for problem in problems]


def test_nothing_written_means_defaults():
    settings = load(None, {})
    assert settings == Settings()
    assert (settings.server.host, settings.server.port, settings.server.admin_port) == ("127.0.0.1", 8080, 8081)
    assert settings.upstream.base_url == DEFAULT_UPSTREAM_URL
    assert settings.limits.all_tiers() == dict(DEFAULT_TIERS)
    assert settings.limits.default_tier in DEFAULT_TIERS


def test_options_win_over_environment_over_file_over_defaults(written):
    file = written("[server]\nhost = '10.0.0.1'\nport = 1001\nadmin_port = 1002\n")
    settings = load(file, {"TOLLGATE_PORT": "2001", "TOLLGATE_ADMIN_PORT": "2002"}, {"server.port": 3001})
    server = settings.server
    assert (server.host, server.admin_port, server.port, server.admin_host) == ("10.0.0.1", 2002, 3001, "127.0.0.1")


def test_the_environment_names_the_file(written):
    file = written("[server]\nport = 1001\n")
    assert load(None, {"TOLLGATE_CONFIG": str(file)}).server.port == 1001
    assert load(file, {"TOLLGATE_CONFIG": "/nowhere"}).server.port == 1001


def test_empty_variables_and_absent_options_count_as_absent():
    assert load(None, {"TOLLGATE_PORT": "", "OPENAI_API_KEY": ""}, {"server.host": None}) == Settings()


def test_every_setting_but_tiers_has_a_variable_of_its_own():
    variables = [variable_of(path) for path, _ in leaves(Settings)]
    assert len(set(variables)) == len(variables)
    expected = {"TOLLGATE_HOST", "TOLLGATE_PORT", "TOLLGATE_ADMIN_PORT", "TOLLGATE_DATA_DIR", "TOLLGATE_UPSTREAM"}
    expected |= {"TOLLGATE_REDIS_URL", "TOLLGATE_CACHE_REDIS_URL", "TOLLGATE_DATABASE_URL", "TOLLGATE_WORKERS"}
    assert expected | {"OPENAI_API_KEY", "TOLLGATE_CACHE_TTL_SECONDS"} <= set(variables)


def test_variables_take_the_type_of_their_setting():
    settings = load(
        None,
        {
            "TOLLGATE_WORKERS": "3",
            "TOLLGATE_DRAIN_SECONDS": "2.5",
            "TOLLGATE_CACHE_ENABLED": "false",
            "TOLLGATE_LIMITS_HITS_COUNT": "nothing",
            "TOLLGATE_MODELS_EXTRA": "my-model, other",
            "TOLLGATE_DATA_DIR": "state",
        },
    )
    assert (settings.server.workers, settings.server.drain_seconds, settings.cache.enabled) == (3, 2.5, False)
    assert settings.limits.hits_count is HitsCount.NOTHING
    assert settings.models.extra == ("my-model", "other")
    assert settings.data_dir == Path.cwd() / "state"


def test_paths_in_a_file_are_relative_to_it(written, tmp_path):
    (tmp_path / "prices.json").write_text('{"models": {}}')
    settings = load(written("data_dir = 'state'\n[prices]\nfile = 'prices.json'\n"), {})
    assert (settings.data_dir, settings.prices.file) == (tmp_path / "state", tmp_path / "prices.json")


@pytest.mark.parametrize("content", ["{", "{}", '{"models": {"m": {"prices": {"input": 1}}}}'])
def test_a_price_file_that_cannot_be_used_is_refused(written, tmp_path, content):
    (tmp_path / "prices.json").write_text(content)
    with pytest.raises(SettingsError) as caught:
        load(written("[prices]\nfile = 'prices.json'\n"), {})
    (problem,) = caught.value.problems
    assert (problem.key, problem.line) == ("prices.file", 2)


def test_settings_are_frozen():
    with pytest.raises(AttributeError):
        Settings().server.port = 1


def test_every_problem_of_a_file_is_named_with_its_line_and_the_nearest_name(written):
    file = written(
        """\
databse_url = "sqlite://"

[server]
port = "80"
prot = 80
# workers = 5
workers = 0

[streams]
ask_for_usage = "yes"

[stream]
"""
    )
    problems = refused(file, {})
    assert where(problems) == [
        (1, "databse_url"),
        (4, "server.port"),
        (5, "server.prot"),
        (7, "server.workers"),
        (10, "streams.ask_for_usage"),
        (12, "stream"),
    ]
    assert {problem.file for problem in problems} == {str(file)}
    suggestions = [problem.suggestion for problem in problems]
    assert suggestions == [
        "did you mean database_url?",
        None,
        "did you mean port?",
        None,
        None,
        "did you mean streams?",
    ]
    assert problems[1].message == "expected int, got str"
    assert str(problems[2]) == f"{file}:5: server.prot: unknown key (did you mean port?)"


def test_lines_are_right_within_values_that_span_them(written):
    file = written(
        """\
[models]
extra = [
  "requests_per_minut = 1",
]

[limits.tiers]
gold = [
  # requests_per_minut = 1
  { requests_per_minute = 20, lasts = "48h" },
  { requests_per_minut = 60 },
]

[[limits.tiers.silver]]
lasts = "1h"

[[limits.tiers.silver]]
tokens_per_minute = 0
"""
    )
    assert where(refused(file, {})) == [
        (10, "limits.tiers.gold[1].requests_per_minut"),
        (17, "limits.tiers.silver[1].tokens_per_minute"),
    ]


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("[server]\nport = \n", 2, "Invalid value"),
        ("[server]\nport = 1\nport = 2\n", 3, "Cannot overwrite a value"),
        ("[server]\nport = 1 host = 2\n", 2, "newline or end of document"),
        ("x = '''\n\n", 2, "Unterminated string|Expected"),
    ],
)
def test_syntax_errors_name_their_line(written, text, line, message):
    (problem,) = refused(written(text), {})
    assert problem.line == line
    assert re.search(message, problem.message, re.IGNORECASE)


def test_an_unreadable_file_is_a_problem(tmp_path):
    (problem,) = refused(tmp_path / "none.toml", {})
    assert "No such file" in problem.message
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe")
    assert "UTF-8" in refused(binary, {})[0].message


def test_unknown_variables_of_our_prefix_are_refused_with_the_nearest():
    problems = refused(None, {"TOLLGATE_PROT": "1", "TOLLGATE_LIMITS_TIERS": "[]", "PATH": "/bin"})
    assert [(problem.key, problem.file) for problem in problems] == [
        ("TOLLGATE_PROT", "environment"),
        ("TOLLGATE_LIMITS_TIERS", "environment"),
    ]
    assert problems[0].suggestion == "did you mean TOLLGATE_PORT?"


def test_kubernetes_service_links_are_recognised():
    problems = refused(None, {"TOLLGATE_PORT": "tcp://10.0.0.1:80", "TOLLGATE_SERVICE_HOST": "10.0.0.1"})
    assert [problem.key for problem in problems] == ["TOLLGATE_PORT", "TOLLGATE_SERVICE_HOST"]
    assert all("enableServiceLinks" in (problem.suggestion or "") for problem in problems)


def test_headers_that_are_left_out_are_those_of_the_table(written):
    settings = load(written("[headers]\noff = ['X-Tollgate-Cost-USD', 'x-ratelimit-*']\n"), {})
    assert settings.headers.off == ("X-Tollgate-Cost-USD", "x-ratelimit-*")
    assert load(None, {"TOLLGATE_HEADERS_OFF": "age, cache-status"}).headers.off == ("age", "cache-status")
    off = "['x-tollgate-costs-usd', 'content-type', 'Retry-After', 'x-request-id', 'age']"
    problems = refused(written(f"[headers]\noff = {off}\n"), {})
    assert [(problem.key, problem.line) for problem in problems] == [(f"headers.off[{at}]", 2) for at in range(4)]
    assert [problem.message for problem in problems] == [
        "no header of Tollgate's own is named x-tollgate-costs-usd",
        "no header of Tollgate's own is named content-type",
        "Retry-After cannot be left out",
        "x-request-id cannot be left out",
    ]
    assert problems[0].suggestion == "did you mean x-tollgate-cost-usd?"
    assert all("x-tollgate-upstream" in problem.suggestion for problem in problems[1:])


def test_wrong_options_and_variables_are_named_as_they_were_given():
    problems = refused(None, {"TOLLGATE_ADMIN_PORT": "eighty"}, {"server.port": 70_000, "upstream.base_url": "nope"})
    assert [(problem.file, problem.key) for problem in problems] == [
        ("environment", "TOLLGATE_ADMIN_PORT"),
        ("command line", "--port"),
    ]
    (problem,) = refused(None, {}, {"upstream.base_url": "nope"})
    assert (problem.file, problem.key) == ("command line", "--upstream")


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        ("[server]\nport = 8081\n", None, "server.admin_port"),
        ("[server]\nadmin_port = 8080\n", 2, "server.admin_port"),
        ("[upstream]\nbase_url = 'ftp://host'\n", 2, "upstream.base_url"),
        ("[upstream]\nbase_url = 'http://me:pw@host/v1'\n", 2, "upstream.base_url"),
        ("[upstream]\nbase_url = 'http://host/v1?x=1'\n", 2, "upstream.base_url"),
        ("[upstream]\nbase_url = 'http://[host/v1'\n", 2, "upstream.base_url"),
        ("[upstream]\nfirst_backoff_ms = 9000\n", 2, "upstream.first_backoff_ms"),
        ("[limits]\ndefault_tier = 'fre'\n", 2, "limits.default_tier"),
        ("[limits.tiers]\ngold = []\n", 2, "limits.tiers.gold"),
        ("[limits.tiers]\ngold = [{ lasts = '1h' }]\n", 2, "limits.tiers.gold[0].lasts"),
        ("[limits.tiers]\ngold = [{}, {}]\n", 2, "limits.tiers.gold[0].lasts"),
        ("[limits.tiers]\ngold = [{ lasts = 'soon' }, {}]\n", 2, "limits.tiers.gold[0].lasts"),
        ("[limits.tiers]\ngold = [{ token_capacity = 5 }]\n", 2, "limits.tiers.gold[0].token_capacity"),
        (
            "[limits.tiers]\ngold = [{ tokens_per_minute = 10_000_000_001 }]\n",
            2,
            "limits.tiers.gold[0].tokens_per_minute",
        ),
        ("[limits.tiers]\n'go ld' = [{}]\n", 2, "limits.tiers.go ld"),
        ("[cache]\nentry_max_bytes = 300_000_000\n", 2, "cache.entry_max_bytes"),
        ("[ledger]\nquota_bytes = 65536\n", 1, "ledger.segment_bytes"),
        ("[prices]\nfile = 'none.json'\n", 2, "prices.file"),
        ("redis_url = 'http://host'\n", 1, "redis_url"),
        ("database_url = 'mysql://host'\n", 1, "database_url"),
        ("server = 5\n", 1, "server"),
        ("[upstream]\napi_key = 'sk-x'\n", 2, "upstream.api_key"),
        ("[upstream]\napi_key_file = 'none.key'\n", 2, "upstream.api_key_file"),
        ("[upstream]\napi_key_file = ''\n", 2, "upstream.api_key_file"),
    ],
)
def test_values_that_cannot_stand_together_are_refused_where_they_are_written(written, text, line, key):
    (problem,) = refused(written(text), {})
    assert problem.key == key
    assert problem.line == (1 if line is None else line)


def test_a_slash_at_the_end_of_the_upstream_is_dropped():
    assert load(None, {"TOLLGATE_UPSTREAM": "http://127.0.0.1:9/v1/"}).upstream.base_url == "http://127.0.0.1:9/v1"


def test_tiers_of_the_operator_stand_beside_the_documented_ones(written):
    file = written(
        """\
[limits]
default_tier = "gold"
[limits.tiers]
free = [{ requests_per_minute = 1 }]
gold = [
  { requests_per_minute = 5, request_capacity = 9, lasts = "1h30m" },
  { tokens_per_minute = 7, token_capacity = 8 },
]
"""
    )
    tiers = load(file, {}).limits.all_tiers()
    assert tiers["payg"] == DEFAULT_TIERS["payg"]
    assert tiers["free"] == Tier("free", (Phase(Limits(1)),))
    assert tiers["gold"] == Tier("gold", (Phase(Limits(5, None, 9), 5_400_000), Phase(Limits(None, 7, None, 8))))


def test_secrets_do_not_show(written, tmp_path):
    settings = load(
        None,
        {"OPENAI_API_KEY": KEY, "TOLLGATE_REDIS_URL": "redis://:hunter2@h", "TOLLGATE_DATABASE_URL": "sqlite://pw"},
    )
    assert settings.upstream.api_key == Secret(KEY)
    assert settings.upstream.api_key.reveal() == KEY
    key = settings.upstream.api_key
    shown = f"{settings!r} {settings} {key} {key!a} {msgspec.structs.asdict(settings)}"
    assert not any(secret in shown for secret in (KEY, "hunter2", "sqlite://pw"))
    assert pickle.loads(pickle.dumps(settings)) == settings


@pytest.mark.parametrize(
    "sources",
    [
        {"OPENAI_API_KEY": f"{KEY} x"},
        {"OPENAI_API_KEY": f"{KEY}\nx"},
        {"OPENAI_API_KEY": f"{KEY}é"},
        {"TOLLGATE_REDIS_URL": KEY},
        {"TOLLGATE_DATABASE_URL": f"mysql://{KEY}"},
        {"TOLLGATE_UPSTREAM": f"http://{KEY}@host"},
    ],
)
def test_a_refused_secret_is_not_repeated(sources):
    (problem,) = refused(None, sources)
    assert KEY not in str(problem)
    assert KEY not in repr(problem)


def test_a_key_in_the_settings_file_is_refused_and_not_repeated(written):
    (problem,) = refused(written(f"[upstream]\napi_key = '{KEY}'\n"), {})
    assert KEY not in str(problem)
    assert "OPENAI_API_KEY" in (problem.suggestion or "")


def test_the_key_can_come_from_a_file_and_the_environment_wins(written, tmp_path):
    (tmp_path / "openai.key").write_text(f"{KEY}\n")
    file = written("[upstream]\napi_key_file = 'openai.key'\n")
    assert load(file, {}).upstream.api_key == Secret(KEY)
    assert load(file, {"OPENAI_API_KEY": "sk-other"}).upstream.api_key == Secret("sk-other")


@pytest.mark.parametrize("content", [b"", b"\n", b"two words", b"\xff"])
def test_a_key_file_that_holds_no_key_is_refused(written, tmp_path, content):
    (tmp_path / "openai.key").write_bytes(content)
    (problem,) = refused(written("[upstream]\napi_key_file = 'openai.key'\n"), {})
    assert problem.line == 2


def test_the_default_upstream_needs_a_key_unless_it_is_simulated():
    settings = load(None, {})
    with pytest.raises(SettingsError, match="OPENAI_API_KEY"):
        settings.check_servable()
    settings.check_servable(demo=True)
    load(None, {"OPENAI_API_KEY": KEY}).check_servable()
    load(None, {"TOLLGATE_UPSTREAM": "http://127.0.0.1:9/v1"}).check_servable()


@pytest.mark.parametrize("name", ["workers", "replicas"])
def test_processes_that_share_no_limits_are_refused(name):
    settings = load(None, {f"TOLLGATE_{name.upper()}": "2"})
    with pytest.raises(SettingsError) as caught:
        settings.check_servable(demo=True)
    (problem,) = caught.value.problems
    assert problem.key == f"server.{name}"
    assert "TOLLGATE_REDIS_URL" in (problem.suggestion or "")
    assert f"TOLLGATE_{name.upper()}=1" in (problem.suggestion or "")


def test_a_cache_in_redis_is_served():
    load(None, {"TOLLGATE_CACHE_REDIS_URL": "rediss://h"}).check_servable(demo=True)


@pytest.mark.parametrize("package", ["cryptography", "backports"] if sys.version_info < (3, 14) else ["cryptography"])
def test_a_cache_in_redis_without_its_packages_is_refused_with_what_to_install(monkeypatch, package):
    for name in (package, f"{package}.zstd"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SettingsError) as caught:
        load(None, {"TOLLGATE_CACHE_REDIS_URL": "redis://h"}).check_servable(demo=True)
    (problem,) = caught.value.problems
    assert problem.key == "cache_redis_url"
    assert package in problem.message
    assert "pip install 'tollgate[server]'" in (problem.suggestion or "")
    # One that was named for limits goes on without.
    load(None, {"TOLLGATE_REDIS_URL": "redis://h"}).check_servable(demo=True)


@pytest.mark.parametrize("variable", ["TOLLGATE_REDIS_URL", "TOLLGATE_CACHE_REDIS_URL"])
def test_a_url_of_redis_that_leads_nowhere_is_refused_and_not_repeated(variable):
    with pytest.raises(SettingsError) as caught:
        load(None, {variable: "redis://:hunter2@h:port"}).check_servable(demo=True)
    assert "hunter2" not in str(caught.value)
    assert [problem.key for problem in caught.value.problems] == [variable.removeprefix("TOLLGATE_").lower()]


CACHE_KEY = base64.b64encode(bytes(range(32))).decode()


def test_cache_keys_come_from_a_file_and_the_environment_wins(written, tmp_path):
    (tmp_path / "cache.key").write_text(f"{CACHE_KEY}\n{'A' * 43}\n")
    file = written("[cache]\nkey_file = 'cache.key'\n")
    settings = load(file, {})
    assert settings.cache.key == Secret(f"{CACHE_KEY}\n{'A' * 43}")
    assert CACHE_KEY not in repr(settings)
    assert load(file, {"TOLLGATE_CACHE_KEY": "B" * 42 + "A"}).cache.key == Secret("B" * 42 + "A")


@pytest.mark.parametrize("content", ["not-a-key", f"{CACHE_KEY}\n{CACHE_KEY[:-2]}", "B" * 43, "é", "", "A" * 86])
def test_cache_keys_that_are_none_are_refused_where_they_are_written_and_not_repeated(written, tmp_path, content):
    (tmp_path / "cache.key").write_text(content)
    (problem,) = refused(written("[cache]\nkey_file = 'cache.key'\n"), {})
    assert (problem.key, problem.line) == ("cache.key_file", 2)
    assert content[:5] not in str(problem) or not content
    if content.strip() and content.isascii():
        (problem,) = refused(None, {"TOLLGATE_CACHE_KEY": content})
        assert problem.key == "TOLLGATE_CACHE_KEY"
        assert "openssl rand -base64 32" in (problem.suggestion or "")
        assert content[:5] not in str(problem)


def test_a_cache_key_in_the_settings_file_is_refused_and_not_repeated(written):
    (problem,) = refused(written(f"[cache]\nkey = '{CACHE_KEY}'\n"), {})
    assert (problem.key, problem.line) == ("cache.key", 2)
    assert CACHE_KEY not in str(problem)
    assert "TOLLGATE_CACHE_KEY" in (problem.suggestion or "")


@pytest.mark.parametrize("count", ["workers", "replicas"])
def test_redis_lets_many_share_one_limit(count):
    load(None, {"TOLLGATE_REDIS_URL": "redis://h", f"TOLLGATE_{count.upper()}": "3"}).check_servable(demo=True)


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:////tmp/x.db",
        "postgresql://h/db",
        "postgresql+psycopg://user:pw@h:5432/db?sslmode=verify-full",
        "postgresql:///db?host=/run/postgresql",
    ],
)
def test_databases_that_are_served(url):
    load(None, {"TOLLGATE_DATABASE_URL": url}).check_servable(demo=True)


@pytest.mark.parametrize("url", ["postgresql://u:hunter2@h:port/db", "postgresql://u:hunter2@h"])
def test_a_postgres_url_that_leads_nowhere_is_refused_and_not_repeated(url):
    with pytest.raises(SettingsError, match="postgresql://") as caught:
        load(None, {"TOLLGATE_DATABASE_URL": url}).check_servable(demo=True)
    assert "hunter2" not in str(caught.value)
    assert [problem.key for problem in caught.value.problems] == ["database_url"]


def test_postgres_without_its_driver_is_refused_with_what_to_install(monkeypatch):
    monkeypatch.setattr("proxy.settings.schema.find_spec", {}.get)
    settings = load(None, {"TOLLGATE_DATABASE_URL": "postgresql://h/db"})
    with pytest.raises(SettingsError, match=r"tollgate\[server\]"):
        settings.check_servable(demo=True)


@pytest.mark.parametrize(
    ("text", "expected_ms"),
    [("90d", 7_776_000_000), ("48h", 172_800_000), ("1h30m", 5_400_000), ("250ms", 250), ("2w", 1_209_600_000)],
)
def test_durations(text, expected_ms):
    assert parse_duration_ms(text) == expected_ms


@pytest.mark.parametrize("text", ["", "90", "d", "-1d", "1.5h", "90 d", "0d", "1y", "٣d", "1d\n"])
def test_what_is_not_a_duration_is_refused(text):
    with pytest.raises(ValueError, match="duration"):
        parse_duration_ms(text)


UNITS_MS = {"w": 604_800_000, "d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1_000, "ms": 1}


@given(st.lists(st.tuples(st.integers(0, 10**6), st.sampled_from(sorted(UNITS_MS))), min_size=1, max_size=5))
def test_parts_of_a_duration_add_up(parts):
    total = sum(count * UNITS_MS[unit] for count, unit in parts)
    text = "".join(f"{count}{unit}" for count, unit in parts)
    if total:
        assert parse_duration_ms(text) == total
    else:
        with pytest.raises(ValueError, match="longer than nothing"):
            parse_duration_ms(text)


names = st.text(string.ascii_lowercase, min_size=1, max_size=4)
values = st.sampled_from(["1", "'x'", "[1,\n 2]", "'''a\n# b\nc = 1\n'''", "true", "[ # c\n]"])
noise = st.sampled_from(["", "\n", "# k = 1\n", "  \n# [t]\n"])


@given(st.dictionaries(names, st.dictionaries(names, st.tuples(noise, values), max_size=4), max_size=4))
def test_every_key_is_found_on_the_line_where_it_was_written(document):
    text = ""
    expected = {}
    for table, keys in document.items():
        expected[table,] = text.count("\n") + 1
        text += f"[{table}]\n"
        for key, (before, value) in keys.items():
            text += before
            expected[table, key] = text.count("\n") + 1
            text += f"{key} = {value}\n"
    assert key_lines(text) == expected


def test_no_document_defeats_the_search_for_lines():
    text = 'a.b = { c = [ { d = 1 }, { d = 2 } ] }\n"q x" = 1\n[t]\n[t.u]\nk = 1\n[[l]]\n[[l]]\n[l.m]\nz = 1\n'
    lines = key_lines(text.replace("\n", "\r\n"))
    assert lines["a", "b", "c", 1, "d"] == 1
    assert lines["q x",] == 2
    assert lines["t", "u", "k"] == 5
    assert (lines["l", 0], lines["l", 1], lines["l", 1, "m", "z"]) == (6, 7, 9)
