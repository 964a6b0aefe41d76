"""A team's page in a real browser: signing in, what it says of the team and of nobody else, signing out."""

from __future__ import annotations

import http.client
import json
import re
import ssl
import subprocess
import sys
from collections import Counter
from contextlib import ExitStack, closing
from decimal import Decimal
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import pytest

from tests.pages.conftest import USD, without
from tests.support.certificates import Authority
from tests.support.tollgate_process import clean_environment, eventually, run_tollgate

COOKIE = "tollgate_session"
LABEL = "<img src=x onerror=alert(1)>" + "y" * 120
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


def ask(gateway, method="GET", path="/tollgate", body=None, tls=None, **headers):
    """One request as no browser makes it: its status, headers and body."""
    at = urlsplit(gateway.root)
    with closing(
        http.client.HTTPSConnection(at.hostname, at.port, timeout=20, context=tls)
        if tls
        else http.client.HTTPConnection(at.hostname, at.port, timeout=20)
    ) as connection:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read().decode()


def sign_in(gateway, key, **headers):
    return ask(gateway, "POST", "/tollgate/sign-in", urlencode({"key": key}), **FORM, **headers)


def cookie_of(headers):
    return headers["Set-Cookie"].partition(";")[0]


def signed_in(page, gateway, key):
    """Sign in as people do."""
    page.go(f"{gateway.root}/tollgate")
    page.run("await page.fill('#key', given.key);", key=key)
    page.run("await Promise.all([page.waitForNavigation(), page.keyboard.press('Enter')]);")


@pytest.fixture
def named(place):
    """A team whose key has a name that could do harm, models of its own and an end."""
    gateway = place.gateway
    name = f"named-{len(json.loads(gateway.cli('teams', 'list', '--json')))}"
    gateway.cli("teams", "add", name, "--tier", "free")
    made = ("--team", name, "--label", LABEL, "--expires", "90d", "--models", "gpt-4o", "--rpm", "7")
    issued = json.loads(gateway.cli("keys", "issue", *made, "--budget", "5usd/day", "--json"))
    return name, issued["key"], issued["id"]


@pytest.mark.parametrize("scripts", [True, False])
def test_a_team_sees_its_own(place, browser, scripts):
    with browser.page(scripts=scripts) as page:
        signed_in(page, place.gateway, place.growth.key)
        assert page.run("return page.url();") == f"{place.gateway.root}/tollgate"
        assert page.text("h1") == "growth"
        month = page.run("return page.locator('#money .big').nth(1).innerText();")
        models, limits, budgets = page.rows("#models"), page.rows("#limits"), page.rows("#budgets")
        everything = page.text("body")
    days = place.today.day
    assert Decimal(month[1:].replace(",", "")) == round(Decimal(20 * USD * days + sum(range(days))) / USD, 2)
    assert [row[0] for row in models] == ["gpt-4o"]
    assert limits == [["the team", "no limit", "no limit", "no limit"]]
    assert [(row[0], row[3], row[4]) for row in budgets] == [("the team", "$500.00", "$100.00")]
    assert "search" not in everything
    assert place.growth.key not in everything


def test_its_key_and_how_to_use_it(place, browser, named, tmp_path):
    name, key, kid = named
    with browser.page(width=390) as page:
        signed_in(page, place.gateway, key)
        assert page.text("h1") == name
        assert page.value("document.documentElement.scrollWidth") == 390
        shown = page.text("#key").split("\n")
        limits, budgets = page.rows("#limits"), page.rows("#budgets")
        snippets = page.run("return page.locator('#use pre').allInnerTexts();")
        assert page.value("document.querySelectorAll('main img').length") == 0
        assert page.barriers() == []
        assert page.said() == []
    facts = dict(zip(shown[::2], shown[1::2], strict=True))
    assert (facts["Label"], facts["Id"], facts["Models"]) == (LABEL, kid, "gpt-4o")
    assert re.fullmatch(r"20\d\d-\d\d-\d\d \d\d:\d\d UTC", facts["Expires"])
    assert [row[:2] for row in limits] == [["the team", "0 of 20"], ["this key", "0 of 7"]]
    assert [(row[0], row[3]) for row in budgets] == [("this key", "$5.00")]
    assert not [text for text in snippets if key in text]
    python, node, curl = snippets
    assert f'base_url="{place.gateway.base_url}"' in python
    assert f'baseURL: "{place.gateway.base_url}"' in node
    assert '"gpt-4o"' in node
    environment = clean_environment(TEAM_KEY=key)
    for command in (
        [sys.executable, "-c", python],
        ["sh", "-c", curl.replace("curl ", "curl --silent --noproxy '*' ", 1)],
    ):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
        assert "error" not in done.stdout
        assert done.stdout.strip()


def test_a_wrong_key_opens_nothing(place, browser):
    wrong = "sk-tg_" + "a" * 61
    with browser.page() as page:
        signed_in(page, place.gateway, wrong)
        assert "No key of this server" in page.text("[role=alert]")
        assert page.value("document.activeElement.id") == "key"
        assert page.barriers() == []
        assert page.run("return context.cookies();") == []
    for body in (b"", b"\xff\xfe", b"key=" + b"a" * 5_000, b"&".join([b"key=a"] * 9)):
        status, headers, _ = ask(place.gateway, "POST", "/tollgate/sign-in", body, **FORM)
        assert (status, headers["Set-Cookie"]) == (401, None), body[:20]
    assert wrong not in place.gateway.stdout + place.gateway.stderr


def test_who_fails_time_after_time_has_to_wait(simulator, tmp_path):
    with run_tollgate(tmp_path, simulator.base_url, simulator.key) as gateway:
        team = gateway.add_team("patient")
        statuses = [sign_in(gateway, f"nobody-{number}-{'x' * 20}")[0] for number in range(12)]
        assert statuses == [401] * 10 + [429] * 2
        status, headers, body = sign_in(gateway, team.key)
        assert (status, headers["Set-Cookie"]) == (429, None)
        assert 1 <= int(headers["Retry-After"]) <= 60
        assert "Try again in" in body
    # All lines are written when it has ended.
    codes = [line["error_code"] for line in gateway.log_lines() if line["status"] in {401, 429}]
    assert set(codes) == {"invalid_api_key", "too_many_sign_ins"}


def test_keys_that_come_at_once_are_no_more_than_those_that_come_one_by_one(simulator, tmp_path):
    with run_tollgate(tmp_path, simulator.base_url, simulator.key) as gateway, ExitStack() as stack:
        at = urlsplit(gateway.root)
        bodies = [urlencode({"key": f"nobody-{number}-{'x' * 20}"}).encode() for number in range(40)]
        asked = []
        for body in bodies:
            connection = stack.enter_context(closing(http.client.HTTPConnection(at.hostname, at.port, timeout=20)))
            headers = FORM | {"Content-Length": str(len(body)), "Expect": "100-continue"}
            connection.putrequest("POST", "/tollgate/sign-in")
            for header in headers.items():
                connection.putheader(*header)
            connection.endheaders()
            # It is asked for its body, so whoever looks before reading has looked.
            assert connection.sock.recv(12) == b"HTTP/1.1 100"
            while connection.sock.recv(1) != b"\n" or connection.sock.recv(2) != b"\r\n":
                pass
            asked.append(connection)
        for connection, body in zip(asked, bodies, strict=True):
            connection.send(body)
        statuses = Counter(connection.getresponse().status for connection in asked)
    assert statuses == {401: 10, 429: 30}


def test_the_cookie_holds_no_key_and_goes_nowhere_else(place):
    status, headers, _ = sign_in(place.gateway, f" {place.growth.key}\n")
    assert (status, headers["Location"]) == (303, "/tollgate")
    token, *attributes = (part.strip() for part in headers["Set-Cookie"].split(";"))
    assert set(attributes) == {"Path=/tollgate", "Max-Age=3600", "HttpOnly", "SameSite=Strict"}
    assert place.growth.key[20:] not in headers["Set-Cookie"]
    assert ask(place.gateway, Cookie=token)[0] == 200
    assert ask(place.gateway, Cookie=f"other=1; {token}; more=2")[0] == 200
    name, _, value = token.partition("=")
    signature = value.rpartition(".")[2]
    for other in (
        value.replace(place.growth.kid, place.search.kid),
        value[: -len(signature)] + "0" * 64,
        re.sub(r"\.(\d{13})\.", lambda found: f".{int(found[1]) + 1}.", value),
        value.replace("1.", "2.", 1),
        "",
        "x" * 3_000,
    ):
        status, headers, body = ask(place.gateway, Cookie=f"{name}={other}")
        assert status == 401, other
        assert "growth" not in body
        assert headers["Set-Cookie"] is None
    assert ask(place.gateway, path="/v1/models", Cookie=token)[0] == 401


def test_the_cookie_is_secure_where_the_page_is(simulator, browser, tmp_path, place):
    status, headers, _ = sign_in(place.gateway, place.growth.key, **{"X-Forwarded-Proto": "https"})
    assert status == 303
    assert headers["Set-Cookie"].endswith("; Secure")
    # Who stands before us ends TLS and does not say so.
    origin = {"Sec-Fetch-Site": "same-origin", "Origin": "https://llm.example.com"}
    assert sign_in(place.gateway, place.growth.key, **origin)[1]["Set-Cookie"].endswith("; Secure")
    authority = Authority(tmp_path)
    files = authority.issue("listener")
    settings = f'[server]\ntls_cert_file = "{files[0]}"\ntls_key_file = "{files[1]}"\n'
    with run_tollgate(tmp_path / "tls", simulator.base_url, simulator.key, settings=settings) as gateway:
        team = gateway.add_team("sealed")
        with browser.page() as page:
            signed_in(page, gateway, team.key)
            assert page.text("h1") == "sealed"
            (cookie,) = page.run("return context.cookies();")
            assert (cookie["secure"], cookie["httpOnly"], cookie["sameSite"]) == (True, True, "Strict")
            assert f'base_url="{gateway.base_url}"' in page.text("#use pre")
        context = ssl.create_default_context(cafile=str(authority.file))
        _, _, me = ask(gateway, path="/v1/tollgate/me", tls=context, **team.headers)
        assert json.loads(me)["base_url"] == gateway.base_url


def test_forms_of_other_pages_do_nothing(place):
    for headers in (
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "https://elsewhere.example.com"},
        {"Origin": "null"},
        {"Origin": "http://["},
        {"Origin": f"{place.gateway.root}.example.com"},
    ):
        status, answered, _ = sign_in(place.gateway, place.growth.key, **headers)
        assert (status, answered["Set-Cookie"]) == (403, None), headers
        status, answered, _ = ask(place.gateway, "POST", "/tollgate/sign-out", **headers)
        assert (status, answered["Set-Cookie"]) == (403, None), headers
    assert sign_in(place.gateway, place.growth.key, Origin=place.gateway.root)[0] == 303
    behind_a_proxy = {"Sec-Fetch-Site": "same-origin", "Origin": "https://llm.example.com"}
    assert sign_in(place.gateway, place.growth.key, **behind_a_proxy)[0] == 303
    assert place.growth.key not in place.gateway.stdout + place.gateway.stderr


def test_signing_out(place, browser):
    with browser.page() as page:
        signed_in(page, place.gateway, place.growth.key)
        page.run(
            "await Promise.all([page.waitForNavigation(), page.getByRole('button', { name: 'Sign out' }).click()]);"
        )
        assert page.text("h1") == "Sign in to Tollgate"
        assert page.run("return context.cookies();") == []
        assert page.go(f"{place.gateway.root}/tollgate") == 200
        assert page.text("h1") == "Sign in to Tollgate"


@pytest.mark.parametrize("end", ["revoke", "rotate"])
def test_a_key_that_has_ended_ends_its_sign_ins(place, browser, named, end):
    name, key, kid = named
    with browser.page() as page:
        page.run("await page.clock.install();")
        signed_in(page, place.gateway, key)
        assert page.text("h1") == name
        _, headers, _ = sign_in(place.gateway, key)
        place.gateway.cli("keys", end, kid)

        def is_out():
            page.go_on(5)
            return page.run("return page.locator('#key[type=password]').count();")

        eventually(is_out, seconds=60, what="that the page, left open, asks for a key")
        assert "not signed in any more" in page.text("[role=alert]")
        assert name not in page.text("body")
    assert ask(place.gateway, Cookie=cookie_of(headers))[0] == 401
    # A page is looked up anew each time; a key is trusted until its change is seen, as for any request.
    eventually(lambda: sign_in(place.gateway, key)[0] == 401, what="that the key is refused")


def test_a_sign_in_is_good_for_every_worker_and_after_a_restart(simulator, tmp_path):
    first = run_tollgate(tmp_path, simulator.base_url, simulator.key)
    with first as gateway:
        team = gateway.add_team("lasting")
        _, headers, _ = sign_in(gateway, team.key)
    with run_tollgate(tmp_path, simulator.base_url, simulator.key) as gateway:
        status, _, body = ask(gateway, Cookie=cookie_of(headers))
        assert status == 200
        assert "<h1>lasting</h1>" in body
        with without(gateway, "api_keys"):
            status, answered, body = ask(gateway, Cookie=cookie_of(headers))
            assert (status, answered["Set-Cookie"]) == (503, None)
            assert "cannot look keys up" in body
            assert "lasting" not in body
            assert sign_in(gateway, team.key)[0] == 503
        gateway.cli("keys", "pepper", "rotate")
        assert ask(gateway, Cookie=cookie_of(headers))[0] == 200, "an old pepper goes on until it is retired"


def test_the_same_guards_as_the_operators_page(place):
    for path, headers in (
        ("/tollgate", {}),
        ("/tollgate", {"Cookie": cookie_of(sign_in(place.gateway, place.growth.key)[1])}),
    ):
        status, answered, body = ask(place.gateway, path=path, **headers)
        assert status == 200
        assert answered["Content-Security-Policy"].startswith(
            "default-src 'none'; script-src 'self'; style-src 'self';"
        )
        assert (answered["Cache-Control"], answered["X-Content-Type-Options"]) == ("no-store", "nosniff")
        assert answered["x-request-id"].startswith("req_")
        assert not re.search(r"<style|\sstyle=|\son\w+=|<script>|javascript:", body)
        for address in re.findall(r'(?:href|src)="(/[^"]+)"', body):
            assert ask(place.gateway, path=address)[0] == 200, address
    status, answered, _ = ask(place.gateway, "POST", "/tollgate", b"")
    assert (status, answered["Allow"]) == (405, "GET")
    status, answered, _ = ask(place.gateway, path="/tollgate/sign-in")
    assert (status, answered["Allow"]) == (405, "POST")
    assert ask(place.gateway, path="/tollgate/uplot-LICENSE")[0] == 404
    assert ask(place.gateway, path="/tollgate/")[0] == 404
    assert ask(place.gateway, path="/")[0] == 404, "the operator's page is not here"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_everybody_can_read_it(place, browser, tmp_path, scheme, width):
    with browser.page(scheme=scheme, width=width) as page:
        page.go(f"{place.gateway.root}/tollgate")
        assert page.barriers() == []
        assert page.value("document.documentElement.scrollWidth") == width
        signed_in(page, place.gateway, place.search.key)
        page.run("await page.locator('.chart canvas').waitFor();")
        page.run("await page.locator('summary').click();")
        assert page.barriers() == []
        assert page.value("document.documentElement.scrollWidth") == width
        page.picture(tmp_path / "page.png")
        assert Path(tmp_path / "page.png").stat().st_size > 10_000
        assert page.said() == []


def test_the_keyboard_signs_in_and_out(place, browser):
    with browser.page() as page:
        page.go(f"{place.gateway.root}/tollgate")
        assert page.value("document.activeElement.id") == "key", "one can type at once"
        page.run("await page.keyboard.type(given.key);", key=place.growth.key)
        page.run("await page.keyboard.press('Tab');")
        assert page.value("document.activeElement.textContent") == "Sign in"
        page.run("await Promise.all([page.waitForNavigation(), page.keyboard.press('Enter')]);")
        assert page.text("h1") == "growth"
        page.run("for (let tab = 0; tab < 3; tab += 1) await page.keyboard.press('Tab');")
        assert page.value("document.activeElement.textContent") == "Sign out"
        page.run("await Promise.all([page.waitForNavigation(), page.keyboard.press('Enter')]);")
        assert page.text("h1") == "Sign in to Tollgate"


def test_it_can_be_switched_off(simulator, tmp_path):
    with run_tollgate(tmp_path, simulator.base_url, simulator.key, settings="[server]\npages = false\n") as gateway:
        assert ask(gateway)[0] == 404
        assert sign_in(gateway, "x")[0] == 404
