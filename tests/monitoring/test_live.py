"""A real Prometheus scrapes a real Tollgate: every expression has data, alerts fire in a fault and clear after it."""

from __future__ import annotations

import collections
import itertools
import json
import math
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

import pytest
import requests
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from ruamel.yaml import YAML

from proxy.adapters.prometheus_declared import declared
from tests.support.days import day_that_lasts
from tests.support.prometheus_server import ALERT_RULES, RECORDING_RULES, Prometheus, promtool, run_prometheus, tool
from tests.support.redis_server import RedisServer
from tests.support.tollgate_process import ROOT, Simulator, Team, Tollgate, eventually, run_simulator, run_tollgate
from tests.support.workers import figure

UPSTREAM_KEY = "sk-upstream-monitored-1f7a"
SETTINGS = """
redis_url = "{redis}"

[upstream]
first_backoff_ms = 1
max_backoff_ms = 5
breaker_failures = 10
breaker_rest_seconds = 0.2
retry_budget_percent = 100
retry_budget_floor = 1_000

[models]
extra = ["homegrown"]
unknown = "allow"

[cache]
l1_seconds = 1.0
"""
SPANS = {"$__rate_interval": "2m", "$__range": "10m"}
"""Both longer than the test: what happened in it is seen to its end."""
SECONDS = 60
"""In which what is waited for comes on a machine however busy."""
EMPTY_WHILE_ALL_IS_WELL = {'absent(up{job="tollgate"})': "there is a target"}
"""Expressions whose answer is no series, and why."""


@dataclass
class Scene:
    """Everything that runs."""

    gateway: Tollgate
    prometheus: Prometheus
    redis: RedisServer
    simulator: Simulator
    teams: dict[str, Team]

    def ask(self, team: str, *, headers: dict[str, str] | None = None, path: str = "chat/completions", **body: object):
        """One request; its status."""
        sent = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "How deep?"}], "max_tokens": 8, **body}
        with requests.Session() as session:
            session.trust_env = False
            url = f"{self.gateway.base_url}/{path}"
            everything = {**self.teams[team].headers, **(headers or {})}
            return session.post(url, json=sent, headers=everything, timeout=30).status_code

    def firing(self) -> set[str]:
        return set(self.prometheus.firing())

    def have_fired(self) -> set[str]:
        """Those that fired at any time: what was rare clears soon where spans are seconds."""
        series = self.prometheus.query('max by (alertname) (max_over_time(ALERTS{alertstate="firing"}[10m]))')
        return {each["metric"]["alertname"] for each in series}

    def until_fired(self, some: Callable[[int], object], *names: str) -> None:
        """Ask for some more, each with a number of its own, until they have all fired."""
        numbers = itertools.count(1)

        def more() -> bool:
            with ThreadPoolExecutor(4) as pool:
                collections.deque(pool.map(some, itertools.islice(numbers, 16)), maxlen=0)
            return set(names) <= self.have_fired()

        try:
            eventually(more, seconds=SECONDS)
        except AssertionError:
            pytest.fail(f"did not fire: {set(names) - self.have_fired()}")

    def until_clear(self, *names: str) -> None:
        eventually(lambda: not set(names) & self.firing(), seconds=SECONDS, what=f"{names} clear")


def quick(rules: str) -> str:
    """Rules with spans of seconds, for a test that has no hours; thresholds and all else as they are."""
    rules = re.sub(r"\[7d\] offset 1h", "[1m] offset 5s", rules)
    return re.sub(r"^( +for: )\w+$", r"\g<1>1s", re.sub(r"\[\d+[mhd]\]", "[6s]", rules), flags=re.MULTILINE)


def rule_files(place):
    place.mkdir()
    for path in (RECORDING_RULES, ALERT_RULES):
        (place / path.name).write_text(quick(path.read_text()))
    return [str(place / path.name) for path in (RECORDING_RULES, ALERT_RULES)]


def make_teams(gateway):
    """A team with a budget, one with narrow limits that is tried on another tier, and one without anything."""
    teams = {name: gateway.add_team(name) for name in ("growth", "plain")}
    teams["search"] = gateway.add_team("search", requests_per_minute=30, request_capacity=3)
    gateway.cli("teams", "set", "search", "--shadow-tier", "free")
    return teams


@contextmanager
def on_scene(place) -> Iterator[Scene]:
    with ExitStack() as stack:
        redis = stack.enter_context(RedisServer())
        limits = ("--rpm", "100000", "--tpm", "100000000")
        simulator = stack.enter_context(run_simulator(place / "simulator", UPSTREAM_KEY, *limits))
        upstream = (place / "tollgate", simulator.base_url, simulator.key)
        settings = SETTINGS.format(redis=redis.url)
        with run_tollgate(*upstream, settings=settings) as before:
            # What is spent before a restart is in the ledger after it.
            scene = Scene(before, None, redis, simulator, make_teams(before))
            assert {scene.ask("growth", model=model) for model in ("gpt-4o", "gpt-4o-mini")} == {200}
            rows = before.events("growth", 2)
            before.cli("teams", "set", "growth", "--budget", f"{budget_of(rows)}usd/day")
        scene.gateway = stack.enter_context(run_tollgate(*upstream, settings=settings))
        config = json.loads(json.dumps(YAML(typ="safe").load((ROOT / "deploy/prometheus/prometheus.yml").read_text())))
        config["global"] = {"scrape_interval": "500ms", "evaluation_interval": "500ms"}
        config["rule_files"] = rule_files(place / "rules")
        config["scrape_configs"][0]["static_configs"][0]["targets"] = [urlsplit(scene.gateway.operations_url).netloc]
        scene.prometheus = stack.enter_context(run_prometheus(place / "prometheus", config))
        known = 'tollgate_spend_usd_total{team=~"plain|search", model=~"gpt-4o|gpt-4o-mini"}'
        eventually(lambda: len(scene.prometheus.query(known)) == 4, seconds=SECONDS, what="a first scrape, of nothing")
        yield scene


def budget_of(events) -> str:
    """A budget that is used to five sixths by what was spent, in dollars."""
    spent_pico_usd = sum(row["cost_pico_usd"] for row in events)
    assert spent_pico_usd > 0
    return f"{spent_pico_usd * 1.2 / 1e12:.9f}"


def mixed_load(scene):
    """Hits, misses, streams, refusals, queues, an error that a second call mends, what has no price or no usage."""
    kept = {"temperature": 0}
    assert [scene.ask("plain", **kept) for _ in range(3)] == [200, 200, 200]
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(scene.ask, "plain", model=model) for model in ("gpt-4o", "gpt-4o-mini", "o3-mini") * 4]
        asked += [pool.submit(scene.ask, "plain", stream=True, model=model) for model in ("gpt-4o", "gpt-4o-mini") * 4]
        slow = {
            "headers": {"x-simulate-delay-ms": "300"},
            "messages": [{"role": "user", "content": "At once?"}],
            **kept,
        }
        asked += [pool.submit(scene.ask, "plain", **slow) for _ in range(3)]
        assert {each.result() for each in asked} == {200}
        mended = {"x-simulate-id": "mended", "x-simulate-times": "1", "x-simulate-status": "503"}
        assert scene.ask("plain", headers=mended) == 200
        assert scene.ask("plain", model="homegrown") == 404, "sent on, and upstream has no such model"
        assert scene.ask("plain", headers={"x-simulate-no-usage": "1"}) == 200
        assert scene.ask("plain", path="embeddings", model="text-embedding-3-small", input="deep", messages=None) in {
            200,
            400,
        }
        assert set(pool.map(lambda _: scene.ask("search"), range(8))) == {200, 429}
        waiting = {"x-tollgate-max-wait": "20s"}
        assert scene.ask("search", headers=waiting) == 200
        assert scene.ask("growth", max_tokens=4_000) == 429


def data_of(scene, expression):
    """The figures of an expression now, those that are none left out."""
    shown = expression
    for variable, value in SPANS.items():
        shown = shown.replace(variable, value)
    figures = [float(series["value"][1]) for series in scene.prometheus.query(shown)]
    return [figure for figure in figures if not math.isnan(figure)]


def expressions_of_panels():
    for path in sorted((ROOT / "deploy/grafana/dashboards").glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel.get("targets", ()):
                # No team has a figure in every panel.
                shown = target["expr"].replace('team="$team"', 'team=~"plain|search|growth"')
                yield f"{path.stem}: {panel['title']}", shown.replace("$team", ".*").replace("$model", ".*")


def expressions_of_rules():
    for path in (RECORDING_RULES, ALERT_RULES):
        for group in YAML(typ="safe").load(quick(path.read_text()))["groups"]:
            for rule in group["rules"]:
                if "record" in rule:
                    yield rule["record"], rule["expr"]
                    yield rule["record"], rule["record"]
                else:
                    # What is compared, each side of it: that it is below the threshold is no want of data.
                    for part in rule["expr"].split(" and "):
                        for side in re.split(r" (?:>=|<|>|==) (?!0\))", part):
                            if not re.fullmatch(r"[\d. *]+", side):
                                yield rule["alert"], side


@pytest.mark.timeout(400)
def test_every_expression_has_data_and_alerts_fire_in_a_fault_and_clear_after_it(tmp_path):
    tool("prometheus")
    day_that_lasts(60)
    with on_scene(tmp_path) as scene:
        mixed_load(scene)
        assert_every_expression_has_data(scene)
        assert_figures(scene)
        assert_exemplars(scene)
        assert_scraped_text(scene)
        refused_and_unpriced(scene)
        upstream_fails(scene)
        redis_is_away(scene)
        scene.until_clear("TollgateRetriesHigh", *FAULTS)
        key_is_refused_and_the_server_gone(scene)


def assert_every_expression_has_data(scene):
    everything = [*expressions_of_panels(), *expressions_of_rules()]
    assert len(everything) > 120
    missing = dict.fromkeys(everything)

    def look():
        # A ratio is one only while there are requests.
        assert scene.ask("plain") == 200
        for each in list(missing):
            if data_of(scene, each[1]):
                missing.pop(each)
        return {expression for _, expression in missing} <= set(EMPTY_WHILE_ALL_IS_WELL)

    try:
        eventually(look, seconds=SECONDS)
    except AssertionError:
        pytest.fail("no data:\n" + "\n".join(f"{name}: {expression}" for name, expression in missing))
    assert {expression for _, expression in missing} == set(EMPTY_WHILE_ALL_IS_WELL)
    for expression in EMPTY_WHILE_ALL_IS_WELL:
        # Before Prometheus was there, no target was.
        assert scene.prometheus.ask("query", query=expression, time="1000000000")["result"]


def assert_figures(scene):
    """What Prometheus has is what the ledger has: of teams that were new at this start to the last trillionth."""

    def agree():
        rows = json.loads(scene.gateway.cli("usage", "--by", "team", "--json"))
        paid = {row["team"]: float(row["cost_usd"]) for row in rows}
        assert paid.keys() == {"growth", "plain", "search"}
        shown = [data_of(scene, f'sum(tollgate_spend_usd_total{{team="{team}"}})') for team in ("plain", "search")]
        if shown != [[pytest.approx(paid["plain"], rel=1e-9)], [pytest.approx(paid["search"], rel=1e-9)]]:
            return None
        return paid

    # The last records may still be on their way, to either.
    paid = eventually(agree, seconds=SECONDS, what="Prometheus and the ledger to agree")
    for team in ("plain", "search"):
        risen = data_of(scene, f'sum(increase(tollgate_spend_usd_total{{team="{team}"}}[10m]))')
        assert risen == [pytest.approx(paid[team], rel=0.5)], "extrapolated by a scrape or two, and nothing is missing"
    of_day = data_of(scene, 'tollgate_ledger_spend_usd{team="growth", period="day"}')
    assert of_day == [pytest.approx(paid["growth"], rel=1e-9)]


def assert_exemplars(scene):
    """A figure leads to a line of the log."""
    asked = {"query": "tollgate_request_duration_seconds_bucket", "start": "0", "end": "9999999999"}
    series = scene.prometheus.ask("query_exemplars", **asked)
    told = {each["labels"]["request_id"] for one in series for each in one["exemplars"]}
    assert told
    eventually(
        lambda: told <= {line["request_id"] for line in scene.gateway.log_lines()},
        seconds=SECONDS,
        what="lines of exemplars",
    )


def assert_scraped_text(scene):
    """promtool finds nothing to say, and every metric that is declared is there."""
    text = scene.gateway.metrics()
    checked = promtool("check", "metrics", text=text)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")
    there = set(re.findall(r"^# TYPE (\w+) ", text, re.MULTILINE))
    assert there == {metric.name for metric in declared()}
    with requests.Session() as session:
        session.trust_env = False
        accept = {"Accept": "application/openmetrics-text;version=1.0.0"}
        answer = session.get(f"{scene.gateway.operations_url}/metrics", headers=accept, timeout=10)
    assert answer.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    assert len(list(text_string_to_metric_families(answer.text))) == len(there)


def refused_and_unpriced(scene):
    def ask(number):
        return scene.ask("growth", max_tokens=4_000) if number % 2 else scene.ask("plain", model="homegrown")

    scene.until_fired(ask, "TollgateBudgetNearlyUsed", "TollgateBudgetRefusals", "TollgateUnpricedRequests")


FAULTS = ("TollgateUpstreamErrors", "TollgateBreakerOpen", "TollgateRequestsFailing")


def upstream_fails(scene):
    def stumble(number):
        fault = {"x-simulate-id": str(number), "x-simulate-times": "1", "x-simulate-status": "503"}
        return scene.ask("plain", headers={} if number % 3 else fault)

    def fail(_):
        return scene.ask("plain", headers={"x-simulate-status": "500"})

    assert not set(FAULTS) & scene.have_fired()
    scene.until_fired(stumble, "TollgateRetriesHigh")
    scene.until_fired(fail, *FAULTS)
    # The breaker lets one through when it has rested.
    eventually(lambda: scene.ask("plain") == 200, seconds=SECONDS, what="an upstream that is called again")


def redis_is_away(scene):
    def away():
        scene.ask("plain")
        return "TollgateStoreDegraded" in scene.firing() and sum(
            data_of(scene, "sum(tollgate_degraded_decisions_total)")
        )

    def back():
        return scene.ask("plain") == 200 and "TollgateStoreDegraded" not in scene.firing()

    with scene.redis.frozen():
        eventually(away, seconds=SECONDS, what="a store that is away")
    eventually(back, seconds=SECONDS, what="a store that is back")


def key_is_refused_and_the_server_gone(scene):
    scene.until_fired(lambda _: scene.ask("plain", headers={"x-simulate-status": "401"}), "TollgateUpstreamKeyRefused")
    scene.gateway.end()
    scene.until_fired(lambda _: None, "TollgateDown")


def test_several_workers_tell_one_text_that_promtool_takes(tmp_path):
    tool("promtool")
    with (
        RedisServer() as redis,
        run_simulator(tmp_path / "simulator", UPSTREAM_KEY) as simulator,
        run_tollgate(
            tmp_path / "tollgate",
            simulator.base_url,
            simulator.key,
            settings=f'redis_url = "{redis.url}"\n',
            options=("--workers", "2"),
        ) as gateway,
    ):
        scene = Scene(gateway, None, redis, simulator, {"plain": gateway.add_team("plain")})
        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(lambda _: scene.ask("plain"), range(16))) == {200}
        ok = {"outcome": "ok", "team": "plain"}
        eventually(lambda: figure(gateway, "tollgate_requests_total", **ok) == 16, what="what all workers have counted")
        text = gateway.metrics()
        checked = promtool("check", "metrics", text=text)
        assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")
        assert set(re.findall(r"^# TYPE (\w+) ", text, re.MULTILINE)) <= {metric.name for metric in declared()}
