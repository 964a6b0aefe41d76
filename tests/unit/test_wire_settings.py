"""Settings of certificates, proxies, names and the parser: what is refused, and where it is said to be wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from proxy.cli import main
from proxy.settings import SettingsError, load
from tests.support.certificates import Authority
from tests.support.tollgate_process import clean_environment

SECRET = "s3cret-of-the-proxy"


def problems(tmp_path: Path, text: str, **environ: str) -> list[str]:
    file = tmp_path / "tollgate.toml"
    file.write_text(text)
    try:
        load(file, environ)
    except SettingsError as error:
        return [str(problem).removeprefix(f"{file}:") for problem in error.problems]
    return []


def test_a_certificate_and_its_key_come_together_and_match(tmp_path):
    authority = Authority(tmp_path)
    (one, key), (_, other) = authority.issue("one"), authority.issue("two")
    head = "[server]\n"
    assert problems(tmp_path, f'{head}tls_cert_file = "{one}"\ntls_key_file = "{key}"\n') == []
    (alone,) = problems(tmp_path, f'{head}tls_cert_file = "{one}"\n')
    assert alone == "2: server.tls_cert_file: has no meaning without server.tls_key_file"
    (alone,) = problems(tmp_path, f'{head}tls_key_file = "{key}"\n')
    assert alone == "2: server.tls_key_file: has no meaning without server.tls_cert_file"
    (mixed,) = problems(tmp_path, f'{head}tls_cert_file = "{one}"\ntls_key_file = "{other}"\n')
    assert mixed.startswith("2: server.tls_cert_file: ")
    assert "is not the key of" in mixed
    (gone,) = problems(tmp_path, f'{head}tls_cert_file = "none.crt"\ntls_key_file = "{key}"\n')
    assert gone.endswith("none.crt: No such file or directory")


def test_tollgate_check_proves_certificates(tmp_path):
    file = tmp_path / "tollgate.toml"
    file.write_text('[server]\ntls_cert_file = "a.crt"\ntls_key_file = "a.key"\n[upstream]\nca_file = "ca.pem"\n')
    result = CliRunner().invoke(main, ["check", "--config", str(file)], env={"OPENAI_API_KEY": "sk-a"})
    assert result.exit_code == 1
    assert [line.split(": ")[1] for line in result.stderr.splitlines()] == ["server.tls_cert_file", "upstream.ca_file"]


def test_authorities_are_read(tmp_path):
    authority = Authority(tmp_path)
    assert problems(tmp_path, f'[upstream]\nca_file = "{authority.file}"\n') == []
    (tmp_path / "no.pem").write_text("nothing")
    (told,) = problems(tmp_path, '[upstream]\nca_file = "no.pem"\n')
    assert told.endswith("no.pem holds no certificates in PEM")


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"])
def test_a_proxy_that_cannot_be_used_is_refused_by_its_variable(tmp_path, variable):
    (told,) = problems(tmp_path, "", **{variable: f"socks5://user:{SECRET}@proxy:1080"})
    assert told.startswith(f"environment: {variable.upper()}: only proxies")
    assert SECRET not in told


def test_a_proxy_may_stand_in_the_file(tmp_path):
    assert problems(tmp_path, '[outgoing]\nhttps_proxy = "http://proxy:3128"\nno_proxy = "a,b"\n') == []
    (told,) = problems(tmp_path, '[outgoing]\nhttp_proxy = "https://proxy:3128"\n')
    assert told.startswith("2: outgoing.http_proxy: only proxies")


@pytest.mark.parametrize("host", ["", "http://a.example", "a.example:8081", "*.example", "a/b", "a b", "a@b"])
def test_names_of_the_operations_listener_are_names(tmp_path, host):
    assert problems(tmp_path, '[server]\nadmin_allowed_hosts = ["ok.example"]\n') == []
    (told,) = problems(tmp_path, f'[server]\nadmin_allowed_hosts = ["ok.example", "{host}"]\n')
    assert "admin_allowed_hosts[1]" in told
    assert "expected a name of a host" in told


@pytest.mark.parametrize(
    "name", ["header_timeout_seconds", "body_timeout_seconds", "write_timeout_seconds", "idle_timeout_seconds"]
)
def test_patience_is_more_than_none(tmp_path, name):
    assert problems(tmp_path, f"[server]\n{name} = 0.5\n") == []
    for value in ("0.0", "-1.0", "100000.0"):
        assert len(problems(tmp_path, f"[server]\n{name} = {value}\n")) == 1


@pytest.mark.parametrize("command", [("check",), ("serve", "--port", "0", "--admin-port", "0")])
def test_without_the_compiled_parser_nothing_is_served(tmp_path, command):
    environ = clean_environment(
        AIOHTTP_NO_EXTENSIONS="1", OPENAI_API_KEY="sk-some-key", TOLLGATE_DATA_DIR=str(tmp_path)
    )
    done = subprocess.run(
        (sys.executable, "-m", "proxy", *command),
        env=environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "compiled HTTP parser is missing" in done.stderr
    assert "AIOHTTP_NO_EXTENSIONS" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_there_is_room_for_the_largest_body(tmp_path):
    assert problems(tmp_path, "[server]\nmax_body_bytes = 1000\nmax_held_bytes = 1000\n") == []
    (told,) = problems(tmp_path, "[server]\nmax_body_bytes = 1000\nmax_held_bytes = 999\n")
    assert told == "3: server.max_held_bytes: is below max_body_bytes (1000)"
