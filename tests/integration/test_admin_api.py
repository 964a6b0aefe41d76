"""The admin API of a real server, beside the command line: each sees what the other did."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import socket
import stat
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest
import requests

from proxy.web.admin.operation import PREFIX
from proxy.web.admin.table import OPERATIONS
from tests.support.days import day_that_lasts
from tests.support.secret_search import files_in, leaks
from tests.support.tollgate_process import Tollgate, eventually, run_tollgate

ASK = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Who?"}], "temperature": 0}
IMPORTED = "key-that-clients-have-already-4711"
PRICES = "model,input,output\nin-house-7b,0.10,0.40\n"


class Admin:
    """A caller of the admin API."""

    def __init__(self, gateway: Tollgate, token: str | None = None) -> None:
        self.url = f"{gateway.operations_url}{PREFIX}"
        self.session = requests.Session()
        self.session.trust_env = False
        token = token or (gateway.data_dir / "admin_token").read_text().strip()
        self.session.headers["Authorization"] = f"Bearer {token}"

    def __call__(self, method: str, path: str, body: object = None, **more: object) -> requests.Response:
        if body is not None:
            more["json"] = body
        return self.session.request(method, f"{self.url}{path}", timeout=30, **more)

    def told(self, method: str, path: str, body: object = None, status: int = 200, **more: object):
        answer = self(method, path, body, **more)
        assert answer.status_code == status, answer.text
        assert answer.headers["Cache-Control"] == "no-store"
        return answer.json()

    def refused(self, status: int, method: str, path: str, body: object = None, **more: object):
        answer = self(method, path, body, **more)
        assert answer.status_code == status, answer.text
        assert answer.headers["Content-Type"] == "application/json"
        error = answer.json()["error"]
        assert sorted(error) == ["code", "message", "param", "type"]
        return error


@pytest.fixture(scope="module")
def gateway(simulator, tmp_path_factory):
    with run_tollgate(tmp_path_factory.mktemp("admin"), simulator.base_url, simulator.key) as running:
        yield running


@pytest.fixture(scope="module")
def admin(gateway):
    admin = Admin(gateway)
    yield admin
    admin.session.close()


def cli(gateway, *arguments):
    return json.loads(gateway.cli(*arguments, "--json"))


def status_of(gateway, key):
    with requests.Session() as session:
        session.trust_env = False
        headers = {"Authorization": f"Bearer {key}"}
        return session.post(f"{gateway.base_url}/chat/completions", json=ASK, headers=headers, timeout=30).status_code


def test_teams_are_the_same_on_both_sides(gateway, admin):
    made = admin.told("POST", "/teams", {"name": "blue", "tier": "payg", "max_parallel": 4, "models": ["gpt-5"]}, 201)
    assert (made["models"], made["weight"]) == (["gpt-5"], 1)
    (shown,) = [team for team in cli(gateway, "teams", "list") if team["name"] == "blue"]
    assert shown == made
    cli(gateway, "teams", "set", "blue", "--tpm", "70", "--shadow-tier", "free", "--cache", "off")
    changed = admin.told("GET", "/teams/blue")
    assert (changed["own_limits"]["tokens_per_minute"], changed["shadow_tier"], changed["cache"]) == (70, "free", "off")
    patched = admin.told("PATCH", "/teams/blue", {"tokens_per_minute": None, "shadow_tier": None, "models": None})
    same = {"tokens_per_minute", "own_limits", "limits", "shadow_tier", "shadow_since", "models"}
    assert {name: patched[name] for name in patched.keys() - same} == {
        name: changed[name] for name in patched.keys() - same
    }
    assert (patched["own_limits"], patched["shadow_tier"], patched["models"]) == (None, None, None)
    assert admin.told("PATCH", "/teams/blue", {"stateful": True}) == {**patched, "stateful": True}
    assert admin.told("PATCH", "/teams/blue", {"stateful": False}) == patched
    assert admin.told("PATCH", "/teams/blue", {}) == patched, "nothing given, nothing changed"
    assert admin.told("PATCH", "/teams/blue", {"weight": 7}) == {**patched, "weight": 7}
    assert admin.told("GET", "/audit?team=blue&limit=1000")["data"][-1]["details"] == {"weight": 7}
    cli(gateway, "teams", "set", "blue", "--weight", "2")
    assert admin.told("PATCH", "/teams/blue", {"tier": "payg"})["weight"] == 2, "what is not given stays"
    odd = "openai/gpt 5%2F\N{SNOWMAN}"
    limited = admin.told(
        "PUT", f"/teams/blue/model-limits/{requests.utils.quote(odd, safe='')}", {"requests_per_minute": 3}
    )
    assert limited["model_limits"] == {odd: {"requests_per_minute": 3, "tokens_per_minute": None}}
    (shown,) = [team for team in cli(gateway, "teams", "list") if team["name"] == "blue"]
    assert shown == limited
    for _ in range(2):
        cleared = admin.told("DELETE", f"/teams/blue/model-limits/{requests.utils.quote(odd, safe='')}")
        assert cleared["model_limits"] == {}


def test_keys_are_the_same_on_both_sides_and_open_what_they_say(gateway, admin):
    admin.told("POST", "/teams", {"name": "keyed", "tier": "unlimited"}, 201)
    issued = admin.told("POST", "/keys", {"team": "keyed", "label": "ci \N{ROCKET}", "expires_in_seconds": 900}, 201)
    key, kid = issued.pop("key"), issued["id"]
    assert status_of(gateway, key) == 200
    (shown,) = cli(gateway, "keys", "list", "--team", "keyed")
    last_used = ("last_used",)
    assert {**shown, **dict.fromkeys(last_used)} == {**issued, **dict.fromkeys(last_used)}
    assert issued["created_by"] == "admin-api"
    cli(gateway, "keys", "set", kid, "--label", "nightly", "--rpm", "70")
    found = admin.told("GET", f"/keys/{kid}")
    assert (found["label"], found["requests_per_minute"]) == ("nightly", 70)
    assert admin.told("PATCH", f"/keys/sk-tg_{kid}", {"requests_per_minute": None})["requests_per_minute"] is None
    assert found["max_wait_ms"] is None
    cli(gateway, "keys", "set", kid, "--max-wait", "20s")
    assert admin.told("PATCH", f"/keys/{kid}", {"label": "ci"})["max_wait_ms"] == 20_000, "what is not given stays"
    assert admin.told("PATCH", f"/keys/{kid}", {"max_wait_ms": 3_600_000})["max_wait_ms"] == 3_600_000
    assert admin.told("PATCH", f"/keys/{kid}", {"max_wait_ms": None})["max_wait_ms"] is None
    assert admin.told("POST", "/keys", {"team": "keyed", "max_wait_ms": 5}, 201)["max_wait_ms"] == 5

    rotated = admin.told("POST", f"/keys/{kid}/rotate", {"overlap_seconds": 600})
    assert (rotated["id"], rotated["state"]) == (kid, "rotating")
    assert status_of(gateway, rotated["key"]) == status_of(gateway, key) == 200
    again = admin.told("POST", f"/keys/{kid}/rotate", {})
    assert again["state"] == "live"
    assert eventually(lambda: status_of(gateway, key) == 401, what="the end of the old secrets")
    for _ in range(2):
        assert admin.told("POST", f"/keys/{kid}/revoke")["state"] == "revoked"
    assert eventually(lambda: status_of(gateway, again["key"]) == 401, what="the revocation")
    assert admin.refused(422, "POST", f"/keys/{kid}/rotate", {})["param"] == "key_id"

    (imported,) = admin.told("POST", "/keys/import", {"team": "keyed", "keys": [IMPORTED, ""]}, 201)["data"]
    assert imported["imported"]
    assert eventually(lambda: status_of(gateway, IMPORTED) == 200, what="the imported key")
    assert (
        admin.refused(422, "POST", "/keys/import", {"team": "keyed", "keys": ["a-good-key-0123456789", "weak"]})[
            "param"
        ]
        == "keys[1]"
    )


def test_accounts_are_the_same_on_both_sides(gateway, admin):
    day_that_lasts()
    admin.told("POST", "/teams", {"name": "spender", "tier": "unlimited"}, 201)
    key = admin.told("POST", "/keys", {"team": "spender"}, 201)["key"]
    assert [status_of(gateway, key) for _ in range(3)] == [200, 200, 200]
    gateway.events("spender", 3)
    axes = "day,team,key,model,upstream,endpoint"
    usage = admin.told("GET", f"/usage?by={axes}&team=spender")["data"]
    assert usage == cli(gateway, "usage", "--by", axes, "--team", "spender")
    assert sum(float(row["cost_usd"]) for row in usage) > 0
    sheet = admin("GET", f"/usage.csv?by={axes}&team=spender")
    assert sheet.headers["Content-Type"] == "text/csv; charset=utf-8"
    assert sheet.text == gateway.cli("usage", "--by", axes, "--team", "spender", "--csv")
    assert [row["cost_usd"] for row in csv.DictReader(io.StringIO(sheet.text))] == [row["cost_usd"] for row in usage]
    (total,) = admin.told("GET", "/usage?by=&team=spender")["data"]
    assert (total["requests"], total["cached"]) == (3, 2)
    assert total["output_tokens"] == sum(row["output_tokens"] for row in usage)
    assert not {"day", "team", "key"} & total.keys()
    today = usage[0]["day"]
    assert admin.told("GET", f"/usage?by=team&team=spender&since={today}")["data"][0]["requests"] == 3
    assert admin.told("GET", f"/usage?by=team&team=spender&since=2020-01-01&until={today}")["data"] == []

    assert admin.told("GET", "/cache?team=spender") == cli(gateway, "cache", "stats", "--team", "spender")
    assert admin.told("POST", "/cache/purge", {"team": "spender", "model": "gpt-4o-mini"}) == {
        "team": "spender",
        "model": "gpt-4o-mini",
        "purged": True,
    }
    eventually(lambda: admin.told("GET", "/ledger/verification")["spool"]["unshipped_events"] == 0, what="the shipper")
    assert admin.told("GET", "/ledger/verification") == cli(gateway, "ledger", "verify")
    rebuilt = admin.told("POST", "/ledger/rebuild")
    assert (rebuilt["ok"], rebuilt["rebuilt_rows"]) == (True, len(admin.told("GET", f"/usage?by={axes}")["data"]))
    assert admin.told("GET", "/prices?model=gpt-4o-mini") == cli(gateway, "prices", "list", "--model", "gpt-4o-mini")
    assert admin.told("GET", "/prices?at=2026-12-01") == cli(gateway, "prices", "list", "--at", "2026-12-01")
    assert admin.told("GET", "/peppers")["data"] == cli(gateway, "keys", "pepper", "list")
    assert [tier["name"] for tier in admin.told("GET", "/tiers")["data"]] == ["free", "payg", "unlimited"]
    (payg,) = [tier for tier in admin.told("GET", "/tiers")["data"] if tier["name"] == "payg"]
    assert [phase["lasts_seconds"] for phase in payg["phases"]] == [172_800, None]
    assert admin.told("GET", "/audit?limit=1000&team=spender")["data"] == cli(gateway, "audit", "--team", "spender")


def test_long_lists_come_in_pages(gateway, admin):
    admin.told("POST", "/teams", {"name": "many", "tier": "free"}, 201)
    keys = [f"one-of-very-many-keys-{number:05}" for number in range(230)]
    admin.told("POST", "/keys/import", {"team": "many", "keys": keys}, 201)

    def pages(path):
        found, cursor = [], ""
        while cursor is not None:
            page = admin.told("GET", f"{path}&cursor={cursor}")
            found += page["data"]
            cursor = page["next_cursor"]
        return found

    ids = [key["id"] for key in pages("/keys?team=many&limit=100")]
    assert len(ids) == len(set(ids)) == 230
    assert ids == [key["id"] for key in cli(gateway, "keys", "list", "--team", "many")]
    assert len(admin.told("GET", "/keys?team=many")["data"]) == 100
    assert pages("/teams?limit=1") == admin.told("GET", "/teams?limit=1000")["data"]
    assert pages("/audit?limit=3") == admin.told("GET", "/audit?limit=1000")["data"]
    for path in ("/keys?limit=0", "/keys?limit=1001", "/keys?cursor=1.x", "/audit?cursor=x", "/keys?limit=ten"):
        assert admin.refused(422, "GET", path)["param"] in {"limit", "cursor"}


CHANGES = {
    "rotatePepper": ("POST", "/peppers/rotate", {}, "pepper.rotate"),
    "retirePepper": ("POST", "/peppers/1/retire", None, "pepper.retire"),
    "addTeam": ("POST", "/teams", {"name": "audited"}, "team.add"),
    "setTeam": ("PATCH", "/teams/audited", {"tier": "payg"}, "team.set"),
    "setModelLimit": ("PUT", "/teams/audited/model-limits/m", {"tokens_per_minute": 5}, "team.limit"),
    "clearModelLimit": ("DELETE", "/teams/audited/model-limits/m", None, "team.limit"),
    "issueKey": ("POST", "/keys", {"team": "audited"}, "key.issue"),
    "setKey": ("PATCH", "/keys/{kid}", {"label": "x"}, "key.set"),
    "rotateKey": ("POST", "/keys/{kid}/rotate", {}, "key.rotate"),
    "revokeKey": ("POST", "/keys/{kid}/revoke", None, "key.revoke"),
    "importKeys": ("POST", "/keys/import", {"team": "audited", "keys": [IMPORTED]}, "key.import"),
    "purgeCache": ("POST", "/cache/purge", {"team": "audited"}, "cache.purge"),
    "rebuildLedger": ("POST", "/ledger/rebuild", None, "ledger.rebuild"),
    "importPrices": ("POST", "/prices/import", {"format": "csv", "content": PRICES}, "prices.import"),
}
"""Every operation that changes something, in an order in which each finds what it needs, and what is noted of it."""


def test_every_change_is_audited_once_and_shows_no_secret(simulator, tmp_path):
    assert CHANGES.keys() == {operation.name for operation in OPERATIONS if operation.method != "GET"}
    secrets, whole, kid = [simulator.key, IMPORTED], [], ""
    with run_tollgate(tmp_path, simulator.base_url, simulator.key) as gateway:
        admin = Admin(gateway)
        shown = ""
        for name, (method, path, body, action) in CHANGES.items():
            before = admin.told("GET", "/audit?limit=1000")["data"]
            answer = admin(method, path.format(kid=kid), body)
            assert answer.status_code in {200, 201}, f"{name}: {answer.text}"
            after = admin.told("GET", "/audit?limit=1000")["data"]
            assert after[: len(before)] == before
            (line,) = after[len(before) :]
            assert (line["actor"], line["action"]) == ("admin-api", action)
            key = answer.json().get("key")
            if key is not None:
                assert name in {"issueKey", "rotateKey"}
                kid = answer.json()["id"]
                whole.append(key)
                secrets.append(key.rsplit("_", 1)[1])
            else:
                shown += answer.text
        assert len(secrets) == 4
        for key in [IMPORTED, *whole]:
            for method, path, body in (
                ("POST", "/keys/import", {"team": "audited", "keys": [key]}),
                ("POST", "/keys/import", {"team": "audited", "keys": [f"another {IMPORTED}", key + "\n"]}),
                ("POST", "/keys/import", {"team": key, "keys": [key], "label": key * 9}),
                ("POST", "/keys", {"team": "audited", "label": key + "\x1b"}),
                ("POST", f"/keys/{key}/revoke", None),
                ("GET", f"/keys?cursor={key}", None),
            ):
                answer = admin(method, path, body)
                assert answer.status_code == 422, answer.text
                shown += answer.text
        secrets += [admin.session.headers["Authorization"].split()[1], *_peppers(gateway)]
        for operation in OPERATIONS:
            if operation.method == "GET":
                shown += admin("GET", operation.path.format(team="audited", key_id=kid)).text
        admin.session.close()
        metrics = requests.get(f"{gateway.operations_url}/metrics", timeout=30).text
        assert "tollgate_" in metrics
        files = files_in(gateway.data_dir, but=frozenset({"admin_token", "peppers.json"}))
        assert any("sqlite3" in name for name in files)
    places = {"an answer": shown, "stdout": gateway.stdout, "stderr": gateway.stderr, "metrics": metrics} | files
    assert leaks(places, {f"secret {number}": secret for number, secret in enumerate(secrets)}) == set()
    assert "Traceback" not in gateway.stderr


def _peppers(gateway):
    return json.loads((gateway.data_dir / "peppers.json").read_text())["peppers"].values()


def test_two_administrators_at_once_lose_nothing(gateway, admin):
    admin.told("POST", "/teams", {"name": "shared", "tier": "free"}, 201)
    kid = admin.told("POST", "/keys", {"team": "shared"}, 201)["id"]
    rounds = range(1, 16)

    def change(path, field):
        mine = Admin(gateway)
        for number in rounds:
            value = f"label {number}" if field == "label" else number
            mine.told("PATCH", path, {field: value})
        mine.session.close()

    fields = ["requests_per_minute", "tokens_per_minute", "max_parallel", "weight"]
    with ThreadPoolExecutor(6) as pool:
        done = [pool.submit(change, "/teams/shared", field) for field in fields]
        done += [pool.submit(change, f"/keys/{kid}", field) for field in ("label", *fields[:2])]
        for each in done:
            each.result()
    team, key = admin.told("GET", "/teams/shared"), admin.told("GET", f"/keys/{kid}")
    last = rounds[-1]
    assert (team["own_limits"]["requests_per_minute"], team["own_limits"]["tokens_per_minute"]) == (last, last)
    assert (team["max_parallel"], team["weight"]) == (last, last)
    assert (key["label"], key["requests_per_minute"], key["tokens_per_minute"]) == (f"label {last}", last, last)


def test_one_of_many_who_make_the_same_team_has_made_it(gateway):
    def make(_):
        mine = Admin(gateway)
        try:
            return mine("POST", "/teams", {"name": "raced"}).status_code
        finally:
            mine.session.close()

    with ThreadPoolExecutor(6) as pool:
        assert sorted(pool.map(make, range(6))) == [201, *[409] * 5]


ODD = [
    "'; DROP TABLE teams; --",
    "x' OR '1'='1",
    "../../etc/passwd",
    "GROWTH",
    "a b",
    "\x00",
    "é",
    "\u202e",
    "a" * 64,
    "😀",
    "",
]


@pytest.mark.parametrize("name", ODD)
def test_odd_names_are_refused_and_do_nothing(admin, name):
    before = admin.told("GET", "/teams?limit=1000")
    assert admin.refused(422, "POST", "/teams", {"name": name})["param"] == "name"
    for body in ({"team": name}, {"team": name, "keys": [IMPORTED + name]}):
        path = "/keys/import" if "keys" in body else "/keys"
        assert admin.refused(422, "POST", path, body)["param"] == "team"
    quoted = requests.utils.quote(name, safe="")
    for path in (f"/usage?team={quoted}", f"/audit?team={quoted}", f"/keys?team={quoted}", f"/cache?team={quoted}"):
        assert admin.refused(422, "GET", path)["param"] == "team"
    if name not in {"", "../../etc/passwd"}:
        assert admin("GET", f"/teams/{quoted}").status_code == 422
        assert admin("GET", f"/keys/{quoted}").status_code == 422
        assert admin("POST", f"/keys/{quoted}/revoke").status_code == 422
    assert admin.told("GET", "/teams?limit=1000") == before


@pytest.mark.parametrize("label", ["\u202eevil", "line\nbreak", "\x1b[31m", "\x00", "a" * 201])
def test_labels_that_could_steer_a_terminal_are_refused(admin, label):
    admin("POST", "/teams", {"name": "labelled"})
    assert admin.refused(422, "POST", "/keys", {"team": "labelled", "label": label})["param"] == "label"


WRONG = [
    ("POST", "/teams", {"name": "x1", "tiers": "free"}, "tiers"),
    ("POST", "/teams", {"name": "x1", "tier": "gold"}, "tier"),
    ("POST", "/teams", {"name": "x1", "shadow_tier": "gold"}, "shadow_tier"),
    ("POST", "/teams", {"tier": "free"}, "name"),
    ("POST", "/teams", {"name": "x1", "max_parallel": 0}, "max_parallel"),
    ("POST", "/teams", {"name": "x1", "max_parallel": 10**11}, "max_parallel"),
    ("POST", "/teams", {"name": "x1", "max_parallel": True}, "max_parallel"),
    ("POST", "/teams", {"name": "x1", "max_parallel": "5"}, "max_parallel"),
    ("POST", "/teams", {"name": "x1", "max_parallel": 1.5}, "max_parallel"),
    ("POST", "/teams", {"name": "x1", "weight": 0}, "weight"),
    ("POST", "/teams", {"name": "x1", "weight": 101}, "weight"),
    ("POST", "/teams", {"name": "x1", "weight": None}, "weight"),
    ("POST", "/keys", {"team": "wrong", "max_wait_ms": 0}, "max_wait_ms"),
    ("POST", "/keys", {"team": "wrong", "max_wait_ms": 3_600_001}, "max_wait_ms"),
    ("POST", "/keys", {"team": "wrong", "max_wait_ms": "20s"}, "max_wait_ms"),
    ("POST", "/teams", {"name": "x1", "models": ["a", ""]}, "models[1]"),
    ("POST", "/teams", {"name": "x1", "cache": "some"}, "cache"),
    ("PATCH", "/teams/wrong", {"name": "y"}, "name"),
    ("PATCH", "/teams/wrong", {"tier": None}, "tier"),
    ("PATCH", "/teams/wrong", {"tier": "free\n"}, "tier"),
    ("PATCH", "/teams/wrong", {"budgets": {"day": {"limit_usd": "5\n"}}}, "budgets"),
    ("PATCH", "/teams/wrong", {"budgets": {"day": {"limit_usd": 5}}}, "budgets.day.limit_usd"),
    ("PATCH", "/teams/wrong", {"budgets": {"day": {"limit_usd": "5", "warn_usd": "6"}}}, "budgets"),
    ("PATCH", "/teams/wrong", {"budgets": {"week": None}}, "budgets.week"),
    ("PUT", "/teams/wrong/model-limits/m", {}, "requests_per_minute"),
    ("POST", "/keys", {"team": "wrong", "expires": "2027-01-01T00:00:00"}, "expires"),
    ("POST", "/keys", {"team": "wrong", "expires": "2001-01-01T00:00:00Z"}, "expires"),
    (
        "POST",
        "/keys",
        {"team": "wrong", "expires": "2999-01-01T00:00:00Z", "expires_in_seconds": 5},
        "expires_in_seconds",
    ),
    ("POST", "/keys", {"team": "wrong", "expires_in_seconds": 0}, "expires_in_seconds"),
    ("POST", "/keys/import", {"team": "wrong", "keys": []}, "keys"),
    ("POST", "/cache/purge", {"team": "wrong", "model": "\u0000"}, "model"),
    ("POST", "/prices/import", {"content": "{}", "format": "xml"}, "format"),
    ("POST", "/prices/import", {"content": "{"}, "content"),
    ("POST", "/prices/import", {"content": '{"models": {"m": {"prices": {}}}}'}, "content"),
    ("GET", "/usage?by=team,team", None, "by"),
    ("GET", "/usage?by=zodiac", None, "by[0]"),
    ("GET", "/usage?since=2026-13-01", None, "since"),
    ("GET", "/usage?since=2026-11-02&until=2026-11-01", None, "until"),
    ("GET", "/usage?sort=cost", None, "sort"),
    ("GET", "/audit?since=yesterday", None, "since"),
    ("GET", "/audit?since=2026-11-02T00:00:00Z&until=2026-11-01T00:00:00Z", None, "until"),
    ("GET", "/prices?model=made-up", None, "model"),
    ("POST", "/peppers/99/retire", None, "version"),
    ("POST", "/peppers/one/retire", None, "version"),
]


@pytest.mark.parametrize(("method", "path", "body", "param"), WRONG, ids=[f"{each[1]}-{each[3]}" for each in WRONG])
def test_what_is_wrong_is_named_and_changes_nothing(admin, method, path, body, param):
    admin("POST", "/teams", {"name": "wrong"})
    before = admin.told("GET", "/audit?limit=1000")
    error = admin.refused(422, method, path, body)
    assert (error["param"], error["code"]) == (param, "invalid_value")
    assert admin.told("GET", "/audit?limit=1000") == before


MISSING = [
    ("GET", "/teams/nobody", None, "team_not_found"),
    ("PATCH", "/teams/nobody", {}, "team_not_found"),
    ("PUT", "/teams/nobody/model-limits/m", {"requests_per_minute": 1}, "team_not_found"),
    ("DELETE", "/teams/nobody/model-limits/m", None, "team_not_found"),
    ("POST", "/keys", {"team": "nobody"}, "team_not_found"),
    ("POST", "/keys/import", {"team": "nobody", "keys": [IMPORTED + "x"]}, "team_not_found"),
    ("GET", "/keys?team=nobody", None, "team_not_found"),
    ("GET", "/usage?team=nobody", None, "team_not_found"),
    ("GET", "/usage.csv?team=nobody", None, "team_not_found"),
    ("GET", "/cache?team=nobody", None, "team_not_found"),
    ("GET", "/audit?team=nobody", None, "team_not_found"),
    ("POST", "/cache/purge", {"team": "nobody"}, "team_not_found"),
    ("GET", "/teams/nobody%0A", None, "team_not_found"),
    ("GET", "/usage?team=nobody%0A", None, "team_not_found"),
    ("GET", "/keys/000000000000", None, "key_not_found"),
    ("GET", "/keys/000000000000%0A", None, "key_not_found"),
    ("PATCH", "/keys/000000000000", {}, "key_not_found"),
    ("POST", "/keys/000000000000/rotate", {}, "key_not_found"),
    ("POST", "/keys/000000000000/revoke", None, "key_not_found"),
    ("GET", "/nothing", None, "not_found"),
    ("GET", "", None, "not_found"),
]


@pytest.mark.parametrize(("method", "path", "body", "code"), MISSING, ids=[f"{each[0]}-{each[1]}" for each in MISSING])
def test_what_is_not_there_is_said_so(admin, method, path, body, code):
    assert admin.refused(404, method, path, body)["code"] == code


def test_bodies_are_json_and_bounded(gateway, admin):
    url, headers = f"{admin.url}/teams", admin.session.headers

    def post(data, content_type="application/json", path="/teams", **more):
        sent = {"Content-Type": content_type, **more} if content_type else more
        return admin.session.post(f"{admin.url}{path}", data=data, headers=sent, timeout=30).status_code

    for content_type in (
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data",
        "",
        "application/jsonx",
    ):
        assert post(b'{"name": "forged"}', content_type) == 415
    assert admin.refused(404, "GET", "/teams/forged")
    for data in (
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"name": "a", "name": "b"}',
        b'{"name": NaN}',
        b"\xff",
        b'{"name": "\\ud800"}',
    ):
        assert post(data) == 400, data
    assert post(b'{"name": "utf"}', "application/json; charset=utf-8") == 201
    large = b'{"name": "' + b"a" * (1024 * 1024) + b'"}'
    assert post(large) == 413
    assert post(iter([large])) == 413, "in chunks, without a length"
    assert post(gzip.compress(b" " * (9 * 1024 * 1024)), **{"Content-Encoding": "gzip"}) == 413
    keys = json.dumps(
        {"team": "utf", "keys": [f"long-key-{number:07}-{'x' * 200}" for number in range(6_000)]}
    ).encode()
    assert len(keys) > 1024 * 1024
    assert post(keys, path="/keys/import") == 201
    assert post(keys + b" " * (8 * 1024 * 1024), path="/keys/import") == 413
    assert admin.session.post(f"{admin.url}/ledger/rebuild", data=b"{}", timeout=30).status_code == 400
    assert (
        "Access-Control-Allow-Origin"
        not in requests.options(url, headers={**headers, "Origin": "http://x"}, timeout=30).headers
    )


def test_methods_that_are_not_there_are_named(gateway, admin):
    answer = admin("PUT", "/teams/growth", {})
    assert (answer.status_code, answer.headers["Allow"]) == (405, "GET, PATCH")
    assert answer.json()["error"]["code"] == "method_not_allowed"
    assert admin("OPTIONS", "/teams").status_code == 405
    for path, status in (("/metrics", 405), ("/healthz", 405), ("/admin", 404), ("/", 405)):
        with requests.Session() as stranger:
            stranger.trust_env = False
            answer = stranger.post(f"{gateway.operations_url}{path}", timeout=30)
        assert answer.status_code == status
        assert answer.json()["error"]["message"]


def test_a_stranger_learns_nothing(gateway, admin):
    token = admin.session.headers["Authorization"].split()[1]
    with requests.Session() as stranger:
        stranger.trust_env = False
        answers = {
            (method, path): stranger.request(method, f"{admin.url}{path}", headers=headers, timeout=30)
            for method, path in (
                ("GET", "/teams"),
                ("GET", "/nothing"),
                ("PATCH", "/teams"),
                ("GET", ""),
                ("GET", "/openapi.json"),
            )
            for headers in (
                {},
                {"Authorization": f"Bearer {token[:-1]}"},
                {"Authorization": f"Basic {token}"},
                {"api-key": token},
            )
        }
    assert {answer.status_code for answer in answers.values()} == {401}
    assert len({answer.text for answer in answers.values()}) == 1
    assert {answer.headers["WWW-Authenticate"] for answer in answers.values()} == {"Bearer"}
    for path in ("/healthz", "/readyz", "/metrics"):
        assert requests.get(f"{gateway.operations_url}{path}", timeout=30).status_code == 200
    assert (
        requests.get(f"{gateway.root}{PREFIX}/teams", headers=admin.session.headers, timeout=30).status_code == 404
    ), "the public listener has none of it"


POST_TEAMS = (
    f"POST {PREFIX}/teams HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {{token}}\r\nContent-Type: application/json\r\n"
)


@pytest.mark.parametrize(
    "sent",
    [
        "GET /healthz HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\x00\r\n\r\n",
        "GET /healthz HTTP/1.1\r\nHost: x\r\nAuthorization Bearer {token}\r\n\r\n",
        "GET /admin/v1/teams?{token}\xff HTTP/1.1\r\nHost: x\r\n\r\n",
        "BR EW {token} HTTP/1.1\r\n\r\n",
        f"{POST_TEAMS}Content-Encoding: gzip\r\nContent-Length: 80\r\n\r\n{{token}}0123456789ab",
        f"{POST_TEAMS}Transfer-Encoding: chunked\r\n\r\n{{token}}\r\n",
    ],
)
def test_what_is_not_http_is_quoted_nowhere(gateway, admin, sent):
    token = admin.session.headers["Authorization"].split()[1]
    place = urlsplit(gateway.operations_url)
    with socket.create_connection((place.hostname, place.port), timeout=30) as connection:
        connection.sendall(sent.format(token=token).encode("latin-1"))
        answer = b""
        while not _is_whole(answer):
            more = connection.recv(65_536)
            assert more, answer
            answer += more
    assert re.match(rb"HTTP/1\.[01] 4\d\d ", answer)
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["message"]
    assert token.encode() not in answer
    assert token not in gateway.stderr


def _is_whole(answer):
    head, end, body = answer.partition(b"\r\n\r\n")
    return end and len(body) >= int(re.search(rb"(?i)\r\ncontent-length: (\d+)", head)[1])


def test_the_token_is_rotated_without_a_restart(simulator, tmp_path):
    with run_tollgate(tmp_path, simulator.base_url, simulator.key) as gateway:
        file = gateway.data_dir / "admin_token"
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        old = gateway.cli("admin", "token").strip()
        assert cli(gateway, "admin", "token") == {"token": old, "file": str(file)}
        before = Admin(gateway, old)
        assert before.told("GET", "/teams")["data"] == []
        new = gateway.cli("admin", "token", "--rotate").strip()
        assert new != old
        assert before("GET", "/teams").status_code == 401
        after = Admin(gateway, new)
        (line,) = after.told("GET", "/audit")["data"]
        assert line["action"] == "admin_token.rotate"
        assert line["actor"].startswith("cli:")
        assert new not in json.dumps(line)
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        file.write_text("nonsense")
        assert after("GET", "/teams").status_code == 401
        gateway.cli("admin", "token", "--rotate")
        assert Admin(gateway).told("GET", "/teams")["data"] == []
        for session in (before.session, after.session):
            session.close()
    for text in (gateway.stdout, gateway.stderr):
        assert old not in text
        assert new not in text
