"""What `tollgate doctor` says of this machine: packages, files, disk, ports, prices."""

from __future__ import annotations

import datetime as dt
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from proxy.app.doctor import machine
from proxy.cli import main
from proxy.settings import load
from tests.support.certificates import Authority
from tests.support.doctor import Doctor, answering
from tests.support.redis_server import RedisServer, free_port
from tests.support.tollgate_process import COMMAND, clean_environment, run_tollgate

MODELS = json.dumps({"data": []}).encode()


@pytest.fixture
def upstream_url():
    with answering(200, MODELS) as url:
        yield url


@pytest.fixture
def doctor(tmp_path, upstream_url):
    """One in front of an upstream that is well: what fails is what is asked about."""
    ask = Doctor(tmp_path)

    def about(settings="", *options, **variables):
        return ask(settings, *options, "--upstream", upstream_url, OPENAI_API_KEY="sk-some-key", **variables)

    about.data_dir, about.config = ask.data_dir, ask.config
    return about


def test_a_first_user_with_everything_in_place_is_told_so(doctor):
    told = doctor()
    assert told.status == 0
    assert {verdict for verdict, _, _ in told.checks.values()} <= {"ok", "warn"}
    assert {
        "settings", "packages", "extensions", "open_files", "prices", "data_dir", "disk", "listener.public",
        "listener.operations", "database", "upstream.openai", "clock.openai",
    } <= set(told.checks)  # fmt: skip


def test_people_get_a_line_each_and_what_to_do_below(tmp_path):
    result = CliRunner().invoke(
        main,
        ["doctor", "--data-dir", str(tmp_path / "data")],
        env={"OPENAI_API_KEY": None, "HTTPS_PROXY": "127.0.0.1:1"},
    )
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    (at,) = [number for number, line in enumerate(lines) if line.startswith("fail  settings ")]
    assert "calls to https://api.openai.com/v1 need a key" in lines[at]
    assert lines[at + 1].strip().startswith("-> set OPENAI_API_KEY or ")
    assert any(line.startswith("ok    packages ") for line in lines)
    assert result.stderr.strip().endswith(" fail")


def test_settings_that_cannot_be_read_are_all_there_is_to_say(doctor):
    told = doctor("[server]\nprot = 1\n")
    assert told.status == 1
    assert set(told.checks) == {"settings"}
    assert told["settings"] == ("fail", f"{doctor.config}:2: server.prot: unknown key", "did you mean port?")


# Packages


def test_what_the_extra_brings_is_missed_where_it_is_needed(doctor, monkeypatch):
    there = machine.find_spec
    monkeypatch.setattr(machine, "find_spec", lambda name: None if name in {"psycopg", "uvloop"} else there(name))
    monkeypatch.setattr(machine, "missing_for_cache", lambda: ("cryptography",))
    assert doctor()["packages"][0] == "ok", "nothing that is configured needs it"
    told = doctor()
    assert told["extensions"] == ("fail", "the event loop (uvloop) is not installed", "pip install uvloop")
    assert told.status == 1
    with RedisServer() as redis:
        told = doctor("", TOLLGATE_REDIS_URL=redis.url)
    assert told["packages"] == (
        "warn",
        "a cache in Redis needs cryptography, not installed here",
        "pip install 'tollgate[server]'",
    )
    told = doctor("", TOLLGATE_DATABASE_URL=f"postgresql://tollgate@127.0.0.1:{free_port()}/tollgate")
    assert told["packages"][::2] == ("fail", "pip install 'tollgate[server]'")


def test_without_its_compiled_parser_nothing_is_served(tmp_path, upstream_url):
    done = subprocess.run(
        (*COMMAND, "doctor", "--data-dir", str(tmp_path / "data"), "--upstream", upstream_url, "--json", "--port", "0"),
        env=clean_environment(AIOHTTP_NO_EXTENSIONS="1"),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    (told,) = [each for each in json.loads(done.stdout)["checks"] if each["check"] == "extensions"]
    assert told["verdict"] == "fail"
    assert "AIOHTTP_NO_EXTENSIONS" in told["remedy"]


def test_a_compiled_part_that_only_makes_it_fast(doctor, monkeypatch):
    there = machine.find_spec
    monkeypatch.setattr(machine, "find_spec", lambda name: None if name.startswith("hiredis") else there(name))
    verdict, said, remedy = doctor()["extensions"]
    assert (verdict, "hiredis" in said, remedy.endswith(" hiredis")) == ("warn", True, True)


# Open files


def test_open_files_are_held_against_connections(doctor):
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    enough = (min(hard, 1_048_576) - 256) // 2
    assert doctor(f"[server]\nmax_connections = {enough}\n")["open_files"][0] == "ok"
    verdict, said, remedy = doctor(f"[server]\nmax_connections = {enough + 1}\n")["open_files"]
    assert verdict == "warn"
    assert f"enough for {enough:,} clients" in said
    assert remedy.endswith(f"max_connections = {enough}")


# Ports


def test_a_port_that_another_program_has(doctor, monkeypatch):
    monkeypatch.setattr(machine, "_PATIENCE_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as taken, answering(200, b"tollgate_ is not at the start") as other:
        ports = taken.getsockname()[1], int(other.rpartition(":")[2].partition("/")[0])
        told = doctor("", "--port", str(ports[0]), "--admin-port", str(ports[1]))
    assert told.status == 1
    for check, port, setting in (
        ("listener.public", ports[0], "port"),
        ("listener.operations", ports[1], "admin_port"),
    ):
        verdict, said, remedy = told[check]
        assert (verdict, said) == ("fail", f"127.0.0.1:{port} is taken by another program")
        assert remedy.endswith(f"choose another with {setting}")


def test_a_port_that_is_free(doctor):
    port, other = free_port(), free_port()
    told = doctor("", "--port", str(port), "--admin-port", str(other))
    assert told["listener.public"][:2] == ("ok", f"127.0.0.1:{port} is free")
    assert told["listener.operations"][:2] == ("ok", f"127.0.0.1:{other} is free")


def test_ports_that_tollgate_itself_has(doctor, gateway):
    public, operations = (int(url.rpartition(":")[2]) for url in (gateway.root, gateway.operations_url))
    told = doctor("", "--port", str(public), "--admin-port", str(operations))
    assert told["listener.public"][:2] == ("ok", f"127.0.0.1:{public} is served by Tollgate now")
    assert told["listener.operations"][:2] == ("ok", f"127.0.0.1:{operations} is served by Tollgate now")
    exchanged = doctor("", "--port", str(operations), "--admin-port", str(public))
    assert exchanged["listener.public"][0] == exchanged["listener.operations"][0] == "fail"


def test_tollgate_is_known_by_https_too(doctor, tmp_path, upstream_url):
    certificate, key = Authority(tmp_path).issue("gateway")
    tls = f"[server]\ntls_cert_file = '{certificate}'\ntls_key_file = '{key}'\n"
    key.chmod(0o600)
    with run_tollgate(tmp_path / "gateway", upstream_url, "sk-some-key", settings=tls) as gateway:
        port = gateway.root.rpartition(":")[2]
        told = doctor(tls, "--port", port, "--admin-port", "0")
    assert told["listener.public"][:2] == ("ok", f"127.0.0.1:{port} is served by Tollgate now")
    assert told["tls"][0] == "warn", "it is good for a day"


def test_an_address_of_another_machine(doctor):
    told = doctor("", "--host", "192.0.2.1", "--port", "8080", "--admin-port", "0")
    assert told["listener.public"][:2] == ("fail", "no address of this machine is that of 192.0.2.1:8080")
    told = doctor("", "--host", "no-such-host.invalid", "--port", "8080", "--admin-port", "0")
    assert told["listener.public"][:2] == ("fail", "no-such-host.invalid is no address here")


# Files and disk


@pytest.fixture
def used(doctor):
    """A data directory that a server has used."""
    from proxy.app import open_registry

    with open_registry(load(None, {}, {"data_dir": str(doctor.data_dir)})) as registry:
        registry.add_team("growth", "payg")
        registry.issue_key("growth")
    CliRunner().invoke(main, ["admin", "token", "show", "--data-dir", str(doctor.data_dir)])
    return doctor.data_dir


@pytest.mark.parametrize(
    ("mode", "verdict", "words"),
    [(0o600, "ok", ""), (0o640, "ok", ""), (0o644, "fail", "everybody"), (0o660, "fail", "a group may change")],
)
@pytest.mark.parametrize("name", ["peppers", "openai", "database"])
def test_modes_of_secrets(doctor, used, tmp_path, name, mode, verdict, words):
    (tmp_path / "openai.key").write_text("sk-some-key\n")
    (tmp_path / "openai.key").chmod(0o600)
    paths = {
        "peppers": ("files.peppers", used / "peppers.json"),
        "openai": ("files.upstream_key", tmp_path / "openai.key"),
        "database": ("files.database", used / "tollgate.sqlite3"),
    }
    check, path = paths[name]
    path.chmod(mode)
    told = doctor("[upstream]\napi_key_file = 'openai.key'\n")
    assert told.verdict(check) == verdict
    assert words in told[check][1]
    assert told.status == (1 if verdict == "fail" else 0)
    if verdict == "fail":
        assert told[check][2] in {f"chmod 600 {path}", f"chmod g-w {path}"}
    others = {other for other, _ in paths.values()} - {check}
    assert {told.verdict(other) for other in others} == {"ok"}


def test_a_settings_file_with_a_password_is_a_secret(doctor):
    with_password = "redis_url = 'redis://:hunter2@127.0.0.1:1'\n"
    assert doctor(with_password).verdict("files.config") == "ok"
    doctor.config.chmod(0o600)
    assert "files.config" not in doctor("").checks
    # `doctor` of these tests writes the file anew with mode 600.
    doctor.config.write_text(with_password)
    doctor.config.chmod(0o644)
    shown = CliRunner().invoke(main, ["doctor", "--config", str(doctor.config), "--json"])
    (told,) = [each for each in json.loads(shown.stdout)["checks"] if each["check"] == "files.config"]
    assert (told["verdict"], told["remedy"]) == ("fail", f"chmod 600 {doctor.config}")
    assert "hunter2" not in shown.output


@pytest.mark.parametrize(
    ("mode", "verdict", "words"),
    [(0o600, "ok", "for its owner alone"), (0o400, "ok", "for its owner alone"), (0o640, "fail", "passes"),
     (0o604, "fail", "passes"), (None, "fail", "is not there")],
)  # fmt: skip
def test_a_file_of_passwords_that_the_driver_would_pass_over(doctor, tmp_path, mode, verdict, words):
    path = tmp_path / "pgpass"
    if mode is not None:
        path.write_text("*:*:*:*:hunter2\n")
        path.chmod(mode)
    url = f"postgresql://tollgate@127.0.0.1:{free_port()}/tollgate?passfile={path}"
    told = doctor("", TOLLGATE_DATABASE_URL=url)
    assert told.verdict("files.passfile") == verdict
    assert words in told["files.passfile"][1]
    assert str(path) in told["files.passfile"][1]
    assert "hunter2" not in told.printed


def test_secrets_that_are_none(doctor, used):
    for name, check, words in (
        ("peppers.json", "files.peppers", "is not a file of peppers"),
        ("admin_token", "files.admin_token", "holds no token of the admin API"),
        ("cache.key", "files.cache_key", "is not a file of master keys"),
    ):
        (used / name).write_text("nonsense")
        (used / name).chmod(0o600)
        verdict, said, remedy = doctor()[check]
        assert (verdict, words in said, "restore it" in remedy) == ("fail", True, True)
        (used / name).unlink()


def test_a_directory_that_others_look_into(doctor, used):
    assert doctor()["data_dir"] == ("ok", str(used), "")
    used.chmod(0o755)
    assert doctor()["data_dir"] == ("warn", f"others may look into {used}", f"chmod 700 {used}")


def test_a_file_where_the_directory_should_be(doctor):
    doctor.data_dir.write_text("")
    told = doctor()
    assert told.status == 1
    assert told["data_dir"][:2] == ("fail", f"{doctor.data_dir} is no directory")


_AS_NOBODY = """
import os, sys
from click.testing import CliRunner
from proxy.cli import main
ask = lambda: CliRunner().invoke(main, ["doctor", "--json", *sys.argv[1:]]).stdout
ask()  # whoever comes next may not be allowed to look where the modules are
if os.geteuid() == 0:
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
print(ask())
"""


def test_a_directory_and_secrets_of_another_user():
    place = Path(tempfile.mkdtemp(prefix="tollgate-doctor-", dir="/tmp"))
    try:
        (place / "admin_token").write_text(f"tga_{'0' * 64}")
        (place / "admin_token").chmod(0o600 if os.geteuid() == 0 else 0o000)
        place.chmod(0o755 if os.geteuid() == 0 else 0o500)
        done = subprocess.run(
            (sys.executable, "-c", _AS_NOBODY, "--data-dir", place, "--upstream", "http://127.0.0.1:1/v1"),
            env=clean_environment(),
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
    finally:
        place.chmod(0o700)
        shutil.rmtree(place)
    checks = {each["check"]: each for each in json.loads(done.stdout)["checks"]}
    for check, words in (("data_dir", f"may not write {place}"), ("files.admin_token", "may not read")):
        assert checks[check]["verdict"] == "fail"
        assert words in checks[check]["said"]
        assert "run this as the user the server runs as" in checks[check]["remedy"]


def test_a_directory_that_only_another_user_may_look_into():
    """As a server leaves it: whoever asks as somebody else is told so, and hears of the rest."""
    place = Path(tempfile.mkdtemp(prefix="tollgate-doctor-", dir="/tmp"))
    try:
        (place / "data").mkdir()
        (place / "data/tollgate.sqlite3").touch()
        place.chmod(0o755)
        (place / "data").chmod(0o700 if os.geteuid() == 0 else 0o000)
        done = subprocess.run(
            (sys.executable, "-c", _AS_NOBODY, "--data-dir", place / "data", "--upstream", "http://127.0.0.1:1/v1"),
            env=clean_environment(),
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
    finally:
        (place / "data").chmod(0o700)
        shutil.rmtree(place)
    checks = {each["check"]: each for each in json.loads(done.stdout)["checks"]}
    for check in ("data_dir", "files.peppers", "files.database", "database"):
        assert checks[check]["verdict"] == "fail"
        assert f"{place}/data" in checks[check]["said"]
        assert checks[check]["remedy"].startswith("run this as the user the server runs as")
    assert checks["disk"]["verdict"] != "fail"
    assert "Connection refused" in checks["upstream.openai"]["said"]


def test_room_for_the_spool(doctor):
    free = shutil.disk_usage(doctor.data_dir.parent).free
    assert doctor("[ledger]\nsegment_bytes = 65_536\nquota_bytes = 65_536\n")["disk"][0] == "ok"
    told = doctor(f"[ledger]\nquota_bytes = {2 * free}\n")
    assert told.status == 0
    verdict, _, remedy = told["disk"]
    assert (verdict, remedy) == ("warn", "make room, or lower ledger.quota_bytes")


def test_a_full_disk(doctor):
    """/proc is a file system that has no room for anybody, and everybody has it."""
    assert shutil.disk_usage("/proc").free == 0
    told = doctor("[ledger]\nsegment_bytes = 65_536\nquota_bytes = 65_536\n", "--data-dir", "/proc/tollgate")
    assert told.status == 1
    assert told["disk"][:2] == ("fail", "0 MiB free beside /proc/tollgate")
    assert "no request is served" in told["disk"][2]


def test_a_certificate_and_the_key_of_another(doctor, tmp_path):
    authority = Authority(tmp_path)
    (certificate, key), (_, another) = authority.issue("one"), authority.issue("two")
    for file in (key, another):
        file.chmod(0o600)
    # What does not fit is refused with the settings; what fits is said to.
    told = doctor(f"[server]\ntls_cert_file = '{certificate}'\ntls_key_file = '{another}'\n")
    assert told.status == 1
    assert "is not the key of" in told["settings"][1]
    told = doctor(f"[server]\ntls_cert_file = '{certificate}'\ntls_key_file = '{key}'\n")
    assert told.verdict("files.tls_key") == "ok"


@pytest.mark.parametrize(
    ("lasts", "verdict", "words"),
    [(dt.timedelta(days=20), "ok", "good until"), (dt.timedelta(days=13), "warn", "good until"),
     (dt.timedelta(days=-1), "fail", "was good until")],
)  # fmt: skip
def test_how_long_a_certificate_is_good_for(doctor, tmp_path, monkeypatch, lasts, verdict, words):
    from proxy.adapters.clock import SystemClock

    authority = Authority(tmp_path)
    certificate, key = authority.issue("gateway")
    key.chmod(0o600)
    # It is made for a day from now; the clock is set so that this is as far away as is asked for.
    until_ms = SystemClock().now_ms() + int(dt.timedelta(days=1) / dt.timedelta(milliseconds=1))
    monkeypatch.setattr(SystemClock, "now_ms", lambda _: until_ms - int(lasts / dt.timedelta(milliseconds=1)))
    told = doctor(f"[server]\ntls_cert_file = '{certificate}'\ntls_key_file = '{key}'\n")
    assert told.verdict("tls") == verdict
    assert words in told["tls"][1]
    assert (verdict == "ok") is not bool(told["tls"][2])


# Prices


def test_old_prices_are_warned_of(doctor, monkeypatch):
    from proxy.adapters.clock import SystemClock

    assert doctor()["prices"][0] == "ok"
    true_now_ms, later_ms = SystemClock.now_ms, int(dt.timedelta(days=400) / dt.timedelta(milliseconds=1))
    monkeypatch.setattr(SystemClock, "now_ms", lambda self: true_now_ms(self) + later_ms)
    verdict, said, remedy = doctor()["prices"]
    assert verdict == "warn"
    assert " days old, in the table of the package" in said
    assert "tollgate prices import" in remedy


def test_a_price_file_that_is_none(doctor):
    doctor.data_dir.mkdir(mode=0o700)
    (doctor.data_dir / "prices.json").write_text('{"models": {"gpt-4o": {"prices": 3}}}')
    told = doctor()
    assert told.status == 1
    assert "default needs input and output" in told["settings"][1]


def test_help_and_refusals_load_no_server():
    program = (
        "import sys; from click.testing import CliRunner; from proxy.cli import main; "
        "CliRunner().invoke(main, ['doctor', '--help']); print('aiohttp' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert shown == "False\n"
