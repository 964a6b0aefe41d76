"""Budgets as clients and operators meet them: a real server, the official SDK, a real webhook."""

from __future__ import annotations

import hashlib
import hmac
import json
import random
import re
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import openai
import pytest
import requests
from openai import OpenAI

from proxy.core.budget import Period, nano_usd
from proxy.core.caps import usd_of
from tests.support.days import day_that_lasts
from tests.support.tollgate_process import eventually, run_tollgate

MODEL = "gpt-4o-mini"
SECRET = "a-shared-secret-0123456789"
SOON_SECONDS = 8.0
"""Less than the ten for which what is known of a key is trusted when nobody tells of a change."""


def asked(text="echo:x", **more):
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": 50, **more}


def monthly(limit_nano_usd=None, warn_nano_usd=None):
    return {Period.MONTH: {"limit_nano_usd": limit_nano_usd, "warn_nano_usd": warn_nano_usd}}


def count_of(metrics, name, **labels):
    """The sum of a counter over the children that have these labels."""
    found = re.findall(rf"^{name}{{(.*)}} (\S+)$", metrics, re.MULTILINE)
    return sum(
        float(value) for inside, value in found if all(f'{key}="{text}"' in inside for key, text in labels.items())
    )


def test_the_sdk_is_told_at_once_and_does_not_come_back(gateway, new_team, upstream):
    team = new_team(budgets=monthly(1))
    with (
        OpenAI(base_url=gateway.base_url, api_key=team.key, max_retries=2, timeout=30) as client,
        pytest.raises(openai.RateLimitError) as caught,
    ):
        client.chat.completions.create(**asked())
    error = caught.value
    assert (error.status_code, error.code, error.type) == (429, "insufficient_quota", "insufficient_quota")
    assert f"team {team.name} may spend 0.000000001 USD a month" in error.message
    assert "It opens again at " in error.message
    assert error.response.headers["x-should-retry"] == "false"
    assert "Retry-After" not in error.response.headers
    assert upstream.stats()["requests"] == 0
    limited = {"team": team.name, "outcome": "limited"}
    eventually(lambda: count_of(gateway.metrics(), "tollgate_requests_total", **limited), what="its count")
    metrics = gateway.metrics()
    assert count_of(metrics, "tollgate_requests_total", **limited) == 1
    assert count_of(metrics, "tollgate_rate_limited_total", team=team.name, limit="budget") == 1
    line = gateway.logged(error.response.headers["x-request-id"])
    assert (line["outcome"], line["limited"], line["error_code"]) == ("limited", "budget", "insufficient_quota")


def test_a_budget_that_is_set_while_all_runs_holds_within_a_second(gateway, call, team):
    assert call(asked()).status_code == 200
    gateway.cli("teams", "set", team.name, "--budget", "0usd/month")
    eventually(
        lambda: call(asked(f"echo:{random.random()}")).status_code == 429, seconds=SOON_SECONDS, what="the budget"
    )
    assert call(asked("echo:another")).json()["error"]["code"] == "insufficient_quota"
    gateway.cli("teams", "set", team.name, "--budget", "none/month")
    eventually(lambda: call(asked("echo:a third")).status_code == 200, seconds=SOON_SECONDS)


def test_what_was_kept_is_answered_though_nothing_is_left(gateway, call, new_team):
    day_that_lasts()
    team = new_team(budgets=monthly(10**9), cache_mode="all")
    first = call(asked(temperature=0), by=team)
    assert first.status_code == 200
    gateway.cli("teams", "set", team.name, "--budget", "0usd/month")
    eventually(
        lambda: call(asked(temperature=0, seed=random.randrange(10**9)), by=team).status_code == 429,
        seconds=SOON_SECONDS,
    )
    again = call(asked(temperature=0), by=team)
    assert (again.status_code, again.json()) == (200, first.json())


def test_after_all_sorts_of_requests_the_budget_has_what_the_ledger_has_to_the_nano_dollar(
    gateway, call, new_team, upstream
):
    day_that_lasts()
    team = new_team(budgets=monthly(10**12))
    dice, sent = random.Random(3), 24
    for number in range(sent):
        text = f"echo:{number} " + "word " * dice.randrange(40)
        match number % 6:
            case 0:
                assert call(asked(text), by=team).status_code == 200
            case 1:
                with call(asked(text, stream=True), by=team, stream=True) as answer:
                    assert answer.content.endswith(b"data: [DONE]\n\n")
            case 2:
                # Gone after the first bytes.
                with call(asked(text, stream=True), {"x-simulate-chunk-ms": "20"}, by=team, stream=True) as answer:
                    next(answer.iter_content(1))
            case 3:
                # Cut by upstream, usage untold.
                with (
                    call(asked(text, stream=True), {"x-simulate-cut-after": "3"}, by=team, stream=True) as answer,
                    pytest.raises(requests.RequestException),
                ):
                    list(answer.iter_content(64))
            case 4:
                assert call(asked(text), {"x-simulate-status": "400"}, by=team).status_code == 400
            case _:
                with call(asked(text, stream=True), {"x-simulate-no-usage": "1"}, by=team, stream=True) as answer:
                    assert answer.status_code == 200
                    list(answer.iter_content(64))
    upstream.idle_stats()
    events = gateway.events(team.name, sent)
    spent = sum(nano_usd(event["cost_pico_usd"]) for event in events)
    assert spent > 0
    gateway.cli("teams", "set", team.name, "--budget", "0usd/month")

    def used():
        answer = call(asked(f"echo:{random.random()}"), by=team)
        if answer.status_code == 200:
            return None
        return re.search(r"has used (\S+) USD", answer.json()["error"]["message"])[1]

    told = eventually(used, seconds=SOON_SECONDS)
    # What passed before the change was heard of is in the ledger too.
    events = eventually(lambda: _settled(gateway, team, told), what="the same sum")
    (row,) = [row for row in json.loads(gateway.cli("teams", "list", "--json")) if row["name"] == team.name]
    assert row["budgets"][0]["spent_nano_usd"] == sum(nano_usd(event["cost_pico_usd"]) for event in events)


def _settled(gateway, team, told):
    events = gateway.events(team.name, 1)
    return events if usd_of(sum(nano_usd(event["cost_pico_usd"]) for event in events)) == told else None


@contextmanager
def receiver():
    """A server that takes notices, and keeps them."""
    got = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            got.append((self.headers["x-tollgate-signature"], body))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/hook/token-in-the-path", got
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_warning_is_posted_once_signed_and_not_again_after_a_restart(tmp_path, simulator, session):
    day_that_lasts()
    secret = tmp_path / "webhook.secret"
    secret.write_text(SECRET)
    with receiver() as (url, got):
        settings = f'[budgets]\nwebhook_url = "{url}"\nwebhook_secret_file = "{secret}"\n'
        place = tmp_path / "gateway"

        def ask(gateway, team):
            answer = session.post(
                f"{gateway.base_url}/chat/completions", json=asked(), headers=team.headers, timeout=30
            )
            assert answer.status_code == 200

        with run_tollgate(place, simulator.base_url, simulator.key, settings=settings) as gateway:
            team = gateway.add_team("growth", budgets=monthly(10**12, 1))
            for _ in range(3):
                ask(gateway, team)
            eventually(lambda: got, what="the notice")
            gateway.events("growth", 3)
            eventually(lambda: count_of(gateway.metrics(), "tollgate_budget_notices_total", result="delivered") == 1)
            metrics = gateway.metrics()
            assert count_of(metrics, "tollgate_budget_warnings_total", team="growth", period="month") == 1
        said = gateway.stderr
        with run_tollgate(place, simulator.base_url, simulator.key, settings=settings) as gateway:
            for _ in range(2):
                ask(gateway, team)
            gateway.events("growth", 5)
            shown = eventually(
                lambda: re.search(r'tollgate_budget_limit_usd{.*team="growth".*} (\S+)', gateway.metrics()),
                what="the gauge",
            )
            assert float(shown[1]) == 1_000
        said += gateway.stderr
        assert said.count("team growth has reached the warning of its budget") == 1
        assert "token-in-the-path" not in said
        assert SECRET not in said
    ((signed, body),) = got
    parts = dict(part.split("=") for part in signed.split(","))
    assert abs(time.time() - int(parts["t"])) < 300
    assert parts["v1"] == hmac.new(SECRET.encode(), f"{parts['t']}.".encode() + body, hashlib.sha256).hexdigest()
    notice = json.loads(body)
    assert re.fullmatch(r"evt_[0-9a-f]{32}", notice.pop("id"))
    assert isinstance(notice.pop("spent_nano_usd"), int)
    assert notice.pop("spent_usd")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", notice.pop("at"))
    assert re.fullmatch(r"\d{4}-\d\d", notice.pop("span"))
    assert notice == {
        "event": "budget.warning",
        "team": "growth",
        "key_id": None,
        "period": "month",
        "warn_usd": "0.000000001",
        "warn_nano_usd": 1,
        "limit_usd": "1000.00",
        "limit_nano_usd": 10**12,
    }


def test_the_admin_api_sets_and_shows_budgets_as_the_command_line_does(gateway, session, team):
    session.headers["Authorization"] = f"Bearer {gateway.cli('admin', 'token').strip()}"
    at_team, at_key = (
        f"{gateway.operations_url}/admin/v1/{path}" for path in (f"teams/{team.name}", f"keys/{team.kid}")
    )

    def patch(url, budgets):
        return session.patch(url, json={"budgets": budgets}, timeout=30)

    changed = patch(at_team, {"month": {"limit_usd": "500", "warn_usd": "400.5"}, "day": {"limit_usd": "20"}}).json()
    assert [(each["period"], each["limit_usd"], each["warn_usd"]) for each in changed["budgets"]] == [
        ("day", "20.00", None),
        ("month", "500.00", "400.50"),
    ]
    (row,) = [row for row in json.loads(gateway.cli("teams", "list", "--json")) if row["name"] == team.name]
    assert row["budgets"] == changed["budgets"] == session.get(at_team, timeout=30).json()["budgets"]
    taken = patch(at_team, {"day": None, "month": {"warn_usd": None}}).json()["budgets"]
    assert [(each["period"], each["limit_usd"], each["warn_usd"]) for each in taken] == [("month", "500.00", None)]
    of_key = patch(at_key, {"total": {"limit_usd": "0.000000001"}}).json()["budgets"]
    assert [(each["limit_nano_usd"], each["left_nano_usd"], each["ends"]) for each in of_key] == [(1, 1, None)]
    for wrong in ({"week": {}}, {"day": {"limit_usd": 5}}, {"day": {"limit_usd": "1e3"}}, {"day": {"warn_usd": "0"}}):
        assert patch(at_team, wrong).status_code == 422, wrong
    assert session.get(at_team, timeout=30).json()["budgets"] == taken


def test_a_model_without_a_price_is_refused_plainly_and_counted(tmp_path, simulator, session):
    settings = '[models]\nextra = ["house-model"]\n'
    body = asked() | {"model": "house-model"}
    with run_tollgate(tmp_path / "gateway", simulator.base_url, simulator.key, settings=settings) as gateway:
        team = gateway.add_team("growth", budgets=monthly(10**12))
        with (
            OpenAI(base_url=gateway.base_url, api_key=team.key, max_retries=2, timeout=30) as client,
            pytest.raises(openai.PermissionDeniedError) as caught,
        ):
            client.chat.completions.create(**body)
        assert (caught.value.code, caught.value.param) == ("model_not_priced", "model")
        assert "`house-model` has no price" in caught.value.message
        assert count_of(gateway.metrics(), "tollgate_unpriced_requests_total", model="house-model") == 1
        assert count_of(gateway.metrics(), "tollgate_requests_total", outcome="rejected") == 1
