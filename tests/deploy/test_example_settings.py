"""The example file says what the code does."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import msgspec

from proxy.core.tiers import DEFAULT_TIERS
from proxy.settings import NamedUpstreamSettings, Settings, load
from proxy.settings.names import leaves

EXAMPLE = Path(__file__).parents[2] / "deploy/tollgate.example.toml"
CERTIFICATES = Path(__file__).parents[1] / "support/tls"
EXPLAINED = {"data_dir", "database_url", "pepper_file", "redis_url", "cache_redis_url", "requests_per_minute"}
EXPLAINED |= {"tokens_per_minute", "aliases"}
EXPLAINED |= {"file", "api_key_file", "key_file", "admin_token_file", "webhook_url", "webhook_secret_file"}
EXPLAINED |= {"tls_cert_file", "tls_key_file", "ca_file", "https_proxy", "http_proxy"}
"""Settings without a default that could be written down; the example shows a value."""


def uncommented() -> str:
    """The example with every setting in force."""
    return re.sub(r"^# ((?:\[|\]|  \{|[a-z][a-z0-9_]* = ).*)$", r"\1", EXAMPLE.read_text(), flags=re.MULTILINE)


def test_the_example_changes_nothing_as_it_stands():
    assert load(EXAMPLE, {}) == Settings()


def test_the_example_names_every_setting():
    document = tomllib.loads(uncommented())
    named = {
        (table, key) if isinstance(document[table], dict) else (table,)
        for table in document
        for key in (document[table] if isinstance(document[table], dict) else [None])
    }
    secrets = {("upstream", "api_key"), ("cache", "key"), ("server", "admin_token"), ("budgets", "webhook_secret")}
    assert named == {path for path, _ in leaves(Settings)} - secrets - {("upstreams",)}


def test_the_example_names_every_setting_of_one_of_several_upstreams(tmp_path):
    block = re.search(r"^#   \[upstreams\..*\n(?:#   .*\n)+", EXAMPLE.read_text(), flags=re.MULTILINE)
    text = re.sub(r"^#   ", "", block[0], flags=re.MULTILINE)
    named = {key for upstream in tomllib.loads(text)["upstreams"].values() for key in upstream}
    assert named == {field.name for field in msgspec.structs.fields(NamedUpstreamSettings)} - {"api_keys"}
    (tmp_path / "openai.keys").write_text("sk-one\nsk-two\n")
    (tmp_path / "tollgate.toml").write_text(text)
    settings = load(tmp_path / "tollgate.toml", {"AZURE_OPENAI_API_KEY": "sk-three"})
    assert [len(upstream.api_keys) for upstream in settings.upstreams.values()] == [2, 1]
    assert settings.servability() == ()


def test_values_in_the_example_are_the_defaults():
    defaults = msgspec.to_builtins(Settings(), enc_hook=str)
    for table, content in tomllib.loads(uncommented()).items():
        for key, value in content.items() if isinstance(content, dict) else []:
            if key not in EXPLAINED | {"tiers"}:
                default = defaults[table][key]
                assert (list(default) if isinstance(default, tuple) else default) == value, f"{table}.{key}"


def test_the_example_is_accepted_with_every_setting_in_force(tmp_path):
    (tmp_path / "openai.key").write_text("sk-some-key")
    (tmp_path / "cache.key").write_text(f"{'A' * 43}\n{'B' * 42}A=\n")
    (tmp_path / "webhook.secret").write_text("a-secret")
    (tmp_path / "prices.json").write_text('{"models": {}}')
    for name, source in (("tls.crt", "server.pem"), ("tls.key", "server.pem"), ("ca.pem", "ca.pem")):
        (tmp_path / name).write_bytes((CERTIFICATES / source).read_bytes())
    file = tmp_path / "tollgate.toml"
    file.write_text(uncommented())
    settings = load(file, {})
    assert settings.limits.all_tiers()["payg"] == DEFAULT_TIERS["payg"]
    assert settings.prices.file == tmp_path / "prices.json"
