"""No secret leaves its place: of a server's life with good keys and bad ones, nothing has any, in whatever form."""

from __future__ import annotations

import base64
import json
import os
import signal
import stat
import subprocess
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.support.redis_server import RedisServer
from tests.support.secret_search import files_in, forms_of, leaks, redis_contents
from tests.support.tollgate_process import COMMAND, Team, clean_environment, eventually, run_tollgate

IMPORTED = "my team key number 1+/=?"
BAD = "sk-proj-nobody-knows-this-one"
ASK = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "echo:x"}], "max_tokens": 8}


def after_kid(key):
    """What of an issued key is secret."""
    return key[19:]


def add_hostile_requests(gateway, session, team, keys):
    """Whatever clients do; returns what they were answered."""
    said = {}
    url = f"{gateway.base_url}/chat/completions"

    def post(what, key, *, header="Authorization", content=ASK, headers=(), path=url):
        given = {"data": content} if isinstance(content, bytes) else {"json": content}
        value = f"Bearer {key}" if header == "Authorization" else key
        sent = {"Content-Type": "application/json", header: value, **dict(headers)}
        answer = session.post(path, headers=sent, timeout=30, **given)
        said[f"answer to {what}"] = f"{answer.status_code}\n{answer.headers}\n{answer.text}"
        return answer.status_code

    for name, key in keys.items():
        for header in ("Authorization", "api-key"):
            expected = 401 if name in {"bad", "revoked", "rotated", "unknown"} else 200
            assert post(f"{name} in {header}", key, header=header) == expected, name
        post(f"{name} streamed", key, content={**ASK, "stream": True})
        kept = {**ASK, "temperature": 0}
        for _ in range(2):
            post(f"{name} kept", key, content=kept)
        for what, content in (
            ("no JSON", b"{"),
            ("a key for a body", key.encode()),
            ("a key for JSON", json.dumps(key).encode()),
            ("a wrong type", json.dumps({**ASK, "n": key}).encode()),
            ("a doubled name", b'{"model": "a", "model": "b"}'),
            ("nothing", b""),
        ):
            post(f"{name}: {what}", key, content=content)
        post(f"{name}: a refusal upstream", key, headers={"x-simulate-status": "401"})
        post(f"{name}: a breakdown upstream", key, headers={"x-simulate-reset": "1"})
        post(f"{name}: other schemes", key, headers={"Authorization": f"Basic {key}"})
        post(f"{name}: a request id", key, headers={"X-Request-ID": key, "x-client-request-id": key})
        post(f"{name}: query", key, path=f"{url}?key={key}")
        bearer = {"Authorization": f"Bearer {key}"}
        for path in ("/models", "/files"):
            answer = session.get(f"{gateway.base_url}{path}", headers=bearer, timeout=30)
            said[f"{name} at {path}"] = f"{answer.headers}\n{answer.text}"
        # The answer names the path or the model that was asked for, to whom has asked; nothing else may.
        for path in (f"/{key}?api-key={key}", f"/models/{key}"):
            assert session.get(f"{gateway.base_url}{path}", headers=bearer, timeout=30).status_code in {401, 404}
    return said


def import_key(gateway, team):
    done = subprocess.run(
        (*COMMAND, "keys", "import", "--team", team.name, "--file", "-", "--json", *gateway._place),
        input=f"{IMPORTED}\n",
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return json.loads(done.stdout)[0]["id"], done.stdout + done.stderr


@pytest.mark.parametrize("stores", ["embedded", "redis"])
def test_no_secret_is_anywhere_in_any_form(simulator, tmp_path, session, stores):
    with ExitStack() as stack:
        options, redis, settings = (), None, "[upstream]\nfirst_backoff_ms = 5\nmax_backoff_ms = 20\n"
        if stores == "redis":
            redis = stack.enter_context(RedisServer())
            options = ("--redis-url", redis.url)
        start = (tmp_path, simulator.base_url, simulator.key)
        with run_tollgate(*start, settings=settings, options=options) as gateway:
            team = gateway.add_team("discreet")
            told = {"issued": gateway.cli("keys", "issue", "--team", team.name, "--label", "other", "--json")}
            revoked = json.loads(told.pop("issued"))
            gateway.cli("keys", "revoke", revoked["id"])
            old = json.loads(gateway.cli("keys", "issue", "--team", team.name, "--json"))
            new = json.loads(gateway.cli("keys", "rotate", old["id"], "--json"))
            gateway.cli("keys", "pepper", "rotate")
            fresh = json.loads(gateway.cli("keys", "issue", "--team", team.name, "--json"))
            imported, told["import"] = import_key(gateway, team)
            keys = {
                "good": team.key,
                "fresh": fresh["key"],
                "imported": IMPORTED,
                "revoked": revoked["key"],
                "rotated": old["key"],
                "its successor": new["key"],
                "bad": BAD,
                "unknown": "sk-tg_" + "a" * 12 + "_" + "b" * 49,
            }
            probe = Team(team.name, IMPORTED, imported)
            models = f"{gateway.base_url}/models"
            eventually(
                lambda: session.get(models, headers=probe.headers, timeout=10).status_code == 200, what="the key"
            )
            said = add_hostile_requests(gateway, session, team, keys)
            gateway.events(team.name, 8)
            for path in ("/healthz", "/readyz", "/metrics"):
                answer = session.get(f"{gateway.operations_url}{path}", timeout=10)
                said[path] = f"{answer.headers}\n{answer.text}"
            for command in (("keys", "list"), ("keys", "pepper", "list"), ("audit",), ("teams", "list"), ("usage",)):
                said[" ".join(command)] = gateway.cli(*command) + gateway.cli(*command, "--json")
            secrets = {name: after_kid(key) if key.startswith("sk-tg_") else key for name, key in keys.items()}
            secrets["the upstream's key"] = simulator.key
            peppers = json.loads((gateway.data_dir / "peppers.json").read_bytes())["peppers"]
            assert sorted(peppers) == ["1", "2"]
            secrets |= {f"pepper {version}": bytes.fromhex(pepper) for version, pepper in peppers.items()}
            at_home = frozenset({"peppers.json", "admin_token", "cache.key"})
            secrets["the admin API's token"] = gateway.cli("admin", "token").strip()
            if redis is not None:
                secrets["the cache's key"] = base64.b64decode((gateway.data_dir / "cache.key").read_bytes())
            places = said | told | files_in(gateway.data_dir, but=at_home)
            assert any("sqlite3" in name for name in places)
            if redis is not None:
                contents = redis_contents(redis.url)
                assert contents, "limits are kept there"
                places |= contents
            gateway.signal(signal.SIGTERM)
            assert gateway.wait() == 0
            places |= {"stdout": gateway.stdout, "stderr": gateway.stderr}
            assert len(gateway.stdout.splitlines()) > 50
            places |= {f"{name} afterwards": text for name, text in files_in(gateway.data_dir, but=at_home).items()}
    places["what upstream said"] = simulator.stdout + simulator.stderr
    assert leaks(places, secrets) == set()


def test_whatever_is_made_is_its_owners_alone_whatever_the_umask(simulator, tmp_path, session):
    before = os.umask(0)
    try:
        with run_tollgate(tmp_path, simulator.base_url, simulator.key, empty=True) as gateway:
            team = gateway.add_team("discreet")
            import_key(gateway, team)
            gateway.cli("keys", "pepper", "rotate")
            gateway.cli("admin", "token", "--rotate")
            table = tmp_path / "prices.csv"
            table.write_text("model,input,output\nin-house-7b,0.10,0.40\n")
            gateway.cli("prices", "import", str(table))
            url = f"{gateway.base_url}/chat/completions"
            assert session.post(url, headers=team.headers, json=ASK, timeout=30).status_code == 200
            made = {}
            for place, _, names in os.walk(gateway.data_dir):
                for path in (Path(place), *(Path(place, name) for name in names)):
                    with suppress(FileNotFoundError):  # what goes meanwhile
                        made[path] = stat.S_IMODE(path.stat().st_mode)
            names = {path.name for path in made}
            assert gateway.data_dir in made
            assert {"admin_token", "peppers.json", "prices.json", "tollgate.sqlite3", "spool"} <= names
            assert {str(path): oct(mode) for path, mode in made.items() if mode & 0o077} == {}
    finally:
        os.umask(before)


def test_the_search_finds_what_it_looks_for():
    secret = "a-secret+/that is looked for"
    for form, text in forms_of(secret.encode()):
        assert leaks({"log": b"before " + text + b" after"}, {"it": secret}), form
    for before in range(6):
        coded = base64.b64encode(b"x" * before + secret.encode() + b"y" * (before % 3))
        assert "log has it (base64)" in leaks({"log": coded}, {"it": secret})
    assert not leaks({"log": "nothing here"}, {"it": secret})
