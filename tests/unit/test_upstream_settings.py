"""Several upstreams and aliases in the settings: what they mean, and what is wrong with them."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from click.testing import CliRunner

from proxy.app.demo import simulated
from proxy.app.upstreams import named_upstreams
from proxy.cli import main
from proxy.settings import DEFAULT_UPSTREAM_URL, Secret, SettingsError, UpstreamKind, load

KEY = "sk-upstream-secret"
AZURE = """
[upstreams.azure]
kind = "azure"
base_url = "https://some.openai.azure.com/"
api_key_variable = "AZURE_KEYS"
models = { "gpt-4o" = "my-deployment" }
"""


@pytest.fixture
def written(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "tollgate.toml"
        path.write_text(text)
        return path

    return write


def refused(file, environ=None, overrides=None):
    """What is wrong: line, key, message."""
    with pytest.raises(SettingsError) as caught:
        load(file, environ or {}, overrides)
    assert KEY not in str(caught.value)
    return [(problem.line, problem.key, problem.message) for problem in caught.value.problems]


def test_one_upstream_is_what_it_was():
    settings = load(None, {"OPENAI_API_KEY": KEY}, {"upstream.name": "mine", "upstream.tokens_per_minute": 7})
    (only,) = named_upstreams(settings).items()
    assert only[0] == "mine"
    assert (only[1].kind, only[1].base_url, only[1].api_keys) == (
        UpstreamKind.OPENAI,
        DEFAULT_UPSTREAM_URL,
        (Secret(KEY),),
    )
    assert (only[1].models, only[1].tokens_per_minute) == (None, 7)


def test_keys_come_from_a_variable_before_a_file_and_are_not_shown(written, tmp_path):
    (tmp_path / "keys").write_text("sk-of-file-1\n\n  sk-of-file-2\n")
    file = written(AZURE.replace("models", 'api_key_file = "keys"\nmodels'))
    from_file = load(file, {}).upstreams["azure"]
    assert from_file.api_keys == (Secret("sk-of-file-1"), Secret("sk-of-file-2"))
    settings = load(file, {"AZURE_KEYS": f" {KEY}\t{KEY}2\n{KEY}3 "})
    assert settings.upstreams["azure"].api_keys == (Secret(KEY), Secret(f"{KEY}2"), Secret(f"{KEY}3"))
    assert KEY not in repr(settings)
    assert "sk-of-file" not in repr(from_file)
    assert settings.upstreams["azure"].base_url == "https://some.openai.azure.com"


@pytest.mark.parametrize("name", ["api_key", "api_keys"])
def test_keys_do_not_belong_in_the_file(written, name):
    value = f'"{KEY}"' if name == "api_key" else f'["{KEY}"]'
    ((line, key, message),) = refused(written(f"[upstreams.a]\n{name} = {value}\n"))
    assert (line, key, message) == (2, f"upstreams.a.{name}", "keys do not belong in this file")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read the file: No such file or directory"),
        (b"\xff", "the file holds more than keys: it is not ASCII"),
        (b" \n", "the file is empty"),
    ],
)
def test_a_file_of_keys_that_is_none(written, tmp_path, content, message):
    if content is not None:
        (tmp_path / "keys").write_bytes(content)
    assert refused(written('[upstreams.a]\nweight = 2\napi_key_file = "keys"\n')) == [
        (3, "upstreams.a.api_key_file", message)
    ]


@pytest.mark.parametrize(
    ("text", "line", "key", "message"),
    [
        ('kind = "azur"', 2, "kind", "must be one of openai, azure, compatible"),
        ("wieght = 3", 2, "wieght", "unknown key"),
        ('models = ["gpt-4o"]', 2, "models", "expected a table, got a list"),
        ("weight = 0", 2, "weight", "expected int >= 1"),
        ("priority = -1", 2, "priority", "expected int >= 0"),
        ('base_url = "ftp://x"', 2, "base_url", "expected an http:// or https:// URL"),
        ('base_url = "https://user:secret@x/v1"', 2, "base_url", "must not carry credentials"),
        ('base_url = "https://x/v1?a=b"', 2, "base_url", "must not carry a query or fragment"),
        ('base_url = "https://[x/v1"', 2, "base_url", "not a URL"),
        ('kind = "compatible"', 1, "base_url", "an upstream of kind compatible is somewhere else"),
        ('weight = 1\napi_version = "2024-10-21"', 3, "api_version", 'has no meaning but for kind = "azure"'),
        (
            'kind = "azure"\nbase_url = "https://x.azure.com/openai/v1"\nmodels = { "a" = "b" }',
            3, "base_url", "of Azure is the resource alone: leave /openai/v1 out",
        ),
        (
            'kind = "azure"\nbase_url = "https://x.azure.com"',
            1, "models", "Azure serves what is deployed there: name the deployments, by model",
        ),
        ("models = {}", 2, "models", "names no model, so nothing would be asked there"),
        ('api_key_variable = "TOLLGATE_X"', 2, "api_key_variable",
         "variables that begin with TOLLGATE_ are settings; call it something else"),
        ('api_key_variable = "MY KEY"', 2, "api_key_variable", None),
        ('api_key_variable = "TWICE"', 2, "api_key_variable", "holds one key twice"),
        ('api_key_variable = "ODD"', 2, "api_key_variable",
         "keys must be printable ASCII, with blanks or line breaks between them"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_one_of_several(written, text, line, key, message):
    environ = {"TWICE": "sk-a sk-b sk-a", "ODD": "sk-\u00e9"}
    (problem,) = refused(written(f"[upstreams.a]\n{text}\n"), environ)
    assert problem[:2] == (line, f"upstreams.a.{key}")
    assert message is None or message in problem[2]


@pytest.mark.parametrize(
    "text", ['name = "x"', 'base_url = "http://x/v1"', "requests_per_minute = 5", "tokens_per_minute = 5"]
)
def test_one_and_several_are_not_mixed(written, text):
    key = text.split(" ", 1)[0]
    ((line, where, message),) = refused(written(f"[upstream]\n{text}\n[upstreams.a]\nweight = 1\n"))
    assert (line, where) == (2, f"upstream.{key}")
    assert message == "is said of the only upstream, and there are [upstreams]"


def test_an_option_for_the_only_upstream_is_refused_beside_several(written):
    ((_, where, _),) = refused(written("[upstreams.a]\nweight = 1\n"), {}, {"upstream.base_url": "http://x/v1"})
    assert where == "--upstream"


def test_what_is_said_of_all_calls_stands_beside_several(written):
    settings = load(written("[upstream]\nmax_attempts = 7\nbreaker_failures = 0\n[upstreams.a]\nweight = 1\n"), {})
    assert (settings.upstream.max_attempts, list(settings.upstreams)) == (7, ["a"])
    assert load(written("[upstreams.a]\n"), {"OPENAI_API_KEY": KEY}).upstreams["a"].api_keys == ()


def test_an_upstream_without_its_key_cannot_serve(written):
    local = '[upstreams.local]\nkind = "compatible"\nbase_url = "http://127.0.0.1:8000/v1"\n'
    settings = load(written(AZURE + "[upstreams.openai]\nweight = 1\n" + local), {})
    told = [(problem.key, problem.suggestion) for problem in settings.servability()]
    assert told == [
        ("upstreams.azure", "set AZURE_KEYS"),
        (
            "upstreams.openai",
            "name a file of keys with upstreams.openai.api_key_file, or a variable with api_key_variable",
        ),
    ]
    assert load(written(AZURE + local), {"AZURE_KEYS": KEY}).servability() == ()


@pytest.mark.parametrize(
    ("aliases", "key", "message"),
    [
        ('a = "a"', "a", "is another name of itself"),
        ('a = "b"\nb = "gpt-4o"', "a", "b is an alias itself; name the model"),
        ('a = "gpt-5"', "a", "no upstream serves gpt-5"),
        ('a = ""', "a", None),
    ],
)
def test_what_is_wrong_with_an_alias(written, aliases, key, message):
    (problem,) = refused(written(AZURE + "[models.aliases]\n" + aliases), {"AZURE_KEYS": KEY})
    assert problem[1] in {f"models.aliases.{key}", "models.aliases"}
    assert message is None or message == problem[2]


def test_an_alias_of_a_model_that_is_served(written):
    settings = load(written(AZURE + '[models.aliases]\n"my.fast" = "gpt-4o"\n'), {"AZURE_KEYS": KEY})
    assert settings.models.aliases == {"my.fast": "gpt-4o"}


def test_check_shows_it(written, monkeypatch):
    monkeypatch.delenv("AZURE_KEYS", raising=False)
    file = written(AZURE)
    shown = CliRunner().invoke(main, ["check", "--config", str(file)])
    assert shown.exit_code == 0
    assert "note: upstreams.azure: calls to it need a key (set AZURE_KEYS)" in shown.output
    file.write_text(AZURE.replace("models", "modles"))
    shown = CliRunner().invoke(main, ["check", "--config", str(file)])
    assert shown.exit_code == 1
    assert f"{file}:6: upstreams.azure.modles: unknown key (did you mean models?)" in shown.output


def test_no_table_of_names_is_a_variable():
    with pytest.raises(SettingsError) as caught:
        load(None, {"TOLLGATE_UPSTREAMS": "a", "TOLLGATE_MODELS_ALIASES": "b", "TOLLGATE_LIMITS_TIERS": "c"})
    assert [problem.message for problem in caught.value.problems] == ["unknown variable"] * 3


async def test_a_demo_before_upstreams_of_ones_own_starts_none(written):
    settings = load(written(AZURE), {"AZURE_KEYS": KEY})
    async with AsyncExitStack() as stack:
        assert await simulated(settings, stack) is settings
        assert await simulated(load(None, {}), stack) != load(None, {}), "without any there is one to try it with"
