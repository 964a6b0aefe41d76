"""The operator's page in a real browser: what it says, to whom, and what it takes to read it."""

from __future__ import annotations

import http.client
import json
import re
from decimal import Decimal
from urllib.parse import urlsplit

import pytest

from tests.pages.conftest import USD, used, without
from tests.support.days import day_that_lasts
from tests.support.tollgate_process import eventually, run_tollgate

POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self' data:",
    "connect-src": "'self'",
    "form-action": "'self'",
    "base-uri": "'none'",
    "frame-ancestors": "'none'",
}

PAUSE_WHILE_ASKING = """
let letGo;
let asking = false;
const held = new Promise((resolve) => { letGo = resolve; });
await page.route("**/*", async (route) => {
  asking = true;
  await held;
  await route.continue();
});
for (let second = 0; !asking && second < 1000; second += 1) await page.clock.runFor(1000);
await page.locator("#pause").click();
const ended = Promise.race([page.waitForEvent("requestfinished"), page.waitForEvent("requestfailed")]);
letGo();
await ended;
await page.unroute("**/*");
"""


def get(url, path="/", method="GET", **headers):
    at = urlsplit(url)
    connection = http.client.HTTPConnection(at.hostname, at.port, timeout=20)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read().decode()
    finally:
        connection.close()


def dollars(text):
    return Decimal(text.replace("$", "").replace(",", ""))


@pytest.mark.parametrize("scripts", [True, False])
def test_money_is_exact_to_the_cent(place, browser, scripts):
    since = ("--since", f"{place.today:%Y-%m}-01")

    def agree():
        # A page is good for a while after it was made.
        assert page.go(place.gateway.operations_url) == 200
        month = dollars(page.run("return page.locator('#money .big').nth(1).innerText();"))
        everybody = json.loads(place.gateway.cli("usage", "--by", "team", *since, "--json"))
        return month == round(sum(Decimal(row["cost_usd"]) for row in everybody), 2)

    with browser.page(scripts=scripts) as page:
        eventually(agree, seconds=60, what="the sum of the month as the page has it and as the ledger has it")
        rows = {row[0]: row for row in page.rows("#teams")}
    days = place.today.day
    spent = 20 * USD * days + sum(range(days))
    assert dollars(rows["growth"][2]) == round(Decimal(spent) / USD, 2)
    assert dollars(rows["growth"][6]) == days
    assert rows["growth"][3] == str(40 * days)
    assert rows["growth"][5] == "25 %"


def test_limits_budgets_refusals_and_upstreams(place, browser):
    with browser.page() as page:
        page.go(place.gateway.operations_url)
        limits, budgets = (page.rows(f"#limits .wide:nth-of-type({number})") for number in (1, 2))
        refused = page.rows("#refusals")
        meter = "[...document.querySelectorAll('#limits [role=meter]')].map(m => [m.ariaLabel, m.ariaValueText])"
        meters = dict(page.value(meter))
        upstreams = page.rows("#upstreams")
    by_team = {row[0]: row for row in limits}
    assert by_team["growth"][2] == "no limit"
    assert re.fullmatch(r"2 of 2, 1 a minute none left|[01] of 2, 1 a minute", by_team["search"][2].strip())
    assert re.fullmatch("[0-2] of 2 used, 1 a minute", meters["search, requests a minute"])
    (budget,) = budgets
    assert budget[0] == "growth"
    assert budget[1].startswith("month until ")
    assert budget[3:5] == ["$500.00", "$100.00"]
    spent = 20 * place.today.day
    assert dollars(budget[2]) == spent
    assert dollars(budget[5]) == max(0, 500 - spent)
    assert ("warned" in budget[6]) == (100 <= spent < 500)
    assert meters["growth, budget a month"] == f"{100 * spent / 500:.0f} % spent, warned at $100.00"
    told = {(row[1], row[2], row[4]): (int(row[6]), int(row[7])) for row in refused}
    assert told["search", "gpt-4o-mini", "requests a minute of the team"] == (429, 2)
    assert told["growth", "<script>alert(1)</script>", "model not found"] == (404, 1)
    assert (401, 3) in [told[kind] for kind in told if kind[0] == "nobody known"]
    (upstream,) = upstreams
    assert upstream[:2] == ["openai", "called"]


def test_what_others_called_something_is_text(place, browser):
    with browser.page() as page:
        page.go(place.gateway.operations_url)
        assert "<script>alert(1)</script>" in page.text("#refusals")
        assert page.value("document.querySelectorAll('main script').length") == 0
        assert page.said() == []


def test_it_is_for_reading_alone_and_for_nobody_else(place):
    url = place.gateway.operations_url
    status, headers, body = get(url)
    assert status == 200
    policy = dict(part.strip().split(" ", 1) for part in headers["Content-Security-Policy"].split(";"))
    assert policy == POLICY
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"
    assert headers["Referrer-Policy"] == "same-origin"
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script>|javascript:", body)
    assert not [key for key in (place.growth.key, place.growth.kid, place.search.kid) if key in body]
    for address in re.findall(r'(?:href|src)="(/[^"]+)"', body):
        status, headers, _ = get(url, address)
        assert (status, headers["X-Content-Type-Options"]) == (200, "nosniff"), address
    assert get(url, method="POST")[0] == 405
    assert get(url, Host="rebound.example.com")[0] == 421
    assert get(url, "/page/../etc/passwd")[0] == get(url, "/page/uplot-LICENSE")[0] == get(url, "/page/")[0] == 404
    status, headers, body = get(url, method="HEAD")
    assert (status, body) == (200, "")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_everybody_can_read_it(place, browser, tmp_path, scheme, width):
    with browser.page(scheme=scheme, width=width) as page:
        page.go(place.gateway.operations_url)
        page.run("await page.locator('.chart canvas').waitFor();")
        page.run("await page.locator('summary').click();")
        assert page.barriers() == []
        assert page.value("document.documentElement.scrollWidth") == width
        page.picture(tmp_path / "page.png")
        ground = page.value("getComputedStyle(document.body).backgroundColor")
        lightness = sum(map(int, re.findall(r"\d+", ground)[:3]))
        assert (lightness > 382) == (scheme == "light")
        drawn = "(c => c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some(b => b))"
        assert page.value(f"{drawn}(document.querySelector('.chart canvas'))")
        assert page.said() == []


def test_without_scripts_it_is_tables(place, browser):
    with browser.page(scripts=False) as page:
        page.go(place.gateway.operations_url)
        shown = "return page.locator(given.at).isVisible();"
        assert page.run(shown, at="#days table")
        assert page.run(shown, at="noscript a")
        assert not page.run(shown, at=".chart")
        assert not page.run(shown, at="#pause")
        assert len(page.rows("#days")) == 30
        page.run("await Promise.all([page.waitForNavigation(), page.locator('noscript a').click()]);")
        assert page.text("h1") == "Tollgate"


def test_the_keyboard_is_enough(place, browser):
    with browser.page() as page:
        page.go(place.gateway.operations_url)
        page.run("await page.locator('.chart canvas').waitFor();")
        where = """
        const at = document.activeElement;
        return [at.className || at.id, getComputedStyle(at).outlineStyle];
        """
        walked = []
        for _ in range(4):
            page.run("await page.keyboard.press('Tab');")
            walked.append(page.value(f"(() => {{{where}}})()"))
        assert [name for name, _ in walked[:2]] == ["skip", "pause"]
        assert all(outline == "solid" for _, outline in walked), "what has the focus is seen to"
        page.run("await page.locator('.skip').focus(); await page.keyboard.press('Enter');")
        assert page.value("document.activeElement.id") == "main"
        page.run("await page.locator('summary').focus(); await page.keyboard.press('Enter');")
        assert page.run("return page.locator('#days table').isVisible();")


def test_it_shows_what_is_new_by_itself_until_it_is_told_to_wait(simulator, browser, tmp_path):
    today = day_that_lasts()
    with run_tollgate(tmp_path, simulator.base_url, simulator.key) as gateway, browser.page() as page:
        page.run("await page.clock.install(); state.asked = 0; page.on('request', () => { state.asked += 1; });")

        def asked_within(minutes, after=""):
            """How often the server is asked from now on, `after` something that is done in the page."""
            code = """
            state.asked = 0;
            await page.evaluate(given.after);
            """
            page.run(code, after=after)
            page.go_on(60 * minutes)
            return page.run("return state.asked;")

        page.go(gateway.operations_url)
        assert "no team yet" in page.text("#limits")
        assert "Nothing was used" in page.text("#teams")
        assert "Nothing was refused" in page.text("#refusals")
        assert page.barriers() == []
        used(gateway, gateway.add_team("late"), today, "gpt-4o", cost=3 * USD)
        row = ["late", "$3.00", "$3.00", "1", "1,000", "0 %", "$0.00"]

        def seen(look):
            page.go_on(5)
            return look()

        def tables():
            """How many tables of teams there are, in a page that loads itself again where there are others."""
            page.go_on(5)
            return page.run("return page.locator('#teams').count();")

        eventually(lambda: seen(lambda: page.rows("#teams") == [row]), seconds=60, what="the team, without a reload")
        page.run(PAUSE_WHILE_ASKING)
        assert page.run("return page.locator('#pause').getAttribute('aria-pressed');") == "true"
        assert asked_within(minutes=5) == 0
        assert asked_within(minutes=5, after="document.getElementById('pause').click()") > 0
        hidden = "Object.defineProperty(document, 'hidden', { value: true, configurable: true })"
        changed = "document.dispatchEvent(new Event('visibilitychange'))"
        assert asked_within(minutes=5, after=f"{hidden}, {changed}") == 0, "nobody sees it"
        assert asked_within(minutes=5, after=f"delete document.hidden, {changed}") > 0
        with without(gateway, "usage_daily"):
            eventually(lambda: tables() == 0, seconds=60, what="that nothing is shown that is not known")
            assert "ledger does not answer" in page.text("#money")
            assert page.rows("#limits")[0][0] == "late"
        eventually(lambda: tables() == 1, seconds=60, what="the table, once more")
        assert page.rows("#teams") == [row]
        # A clock that is ahead of the server's gives up on an answer now and then.
        assert {said for said in page.said() if not said.startswith("failed: ")} == set()
        gateway.end()
        eventually(lambda: seen(lambda: "does not answer" in page.text("#trouble")), seconds=60, what="that it is away")
        assert page.rows("#teams") == [row]


def test_a_table_that_somebody_reads_is_new_too(simulator, browser, tmp_path):
    today = day_that_lasts()
    with run_tollgate(tmp_path, simulator.base_url, simulator.key) as gateway, browser.page(width=390) as page:
        team = gateway.add_team("read")
        used(gateway, team, today, "gpt-4o", cost=3 * USD)
        page.run("await page.clock.install();")
        page.go(gateway.operations_url)
        page.run("await page.locator('#teams .wide').click();")
        held = "document.activeElement === document.querySelector('#teams .wide')"
        scrolled = "[...document.querySelectorAll('#teams .wide, #models .wide')].map(each => each.scrollLeft)"
        page.value(
            "document.querySelectorAll('#teams .wide, #models .wide').forEach(each => { each.scrollLeft = 60; })"
        )
        assert (page.value(held), page.value(scrolled)) == (True, [60, 60])
        used(gateway, team, today, "gpt-4o-mini", cost=4 * USD)

        def sums():
            page.go_on(5)
            return [row[1] for row in page.rows("#teams")], [row[1] for row in page.rows("#models")]

        told = (["$7.00"], ["$4.00", "$3.00"])
        eventually(lambda: sums() == told, seconds=60, what="what was used, where the focus is too")
        assert (page.value(held), page.value(scrolled)) == (True, [60, 60])


def test_it_can_be_switched_off(simulator, tmp_path):
    with run_tollgate(tmp_path, simulator.base_url, simulator.key, settings="[server]\npages = false\n") as gateway:
        assert get(gateway.operations_url)[0] == 404
        assert get(gateway.operations_url, "/page/pages.css")[0] == 404
        assert get(gateway.operations_url, "/healthz")[0] == 200
