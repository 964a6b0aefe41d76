"""What answers say of themselves: each kind of answer, against the table, the log and the ledger."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count

import pytest
import requests

from proxy.core.money import format_usd
from proxy.core.own_headers import OWN_HEADERS, SWITCHABLE, Answer, left_out
from tests.support.tollgate_process import Team, Tollgate, eventually, run_tollgate

MODEL = "gpt-4o-mini"
REQUEST = {"model": MODEL, "messages": [{"role": "user", "content": "echo:as many words as that"}]}
ORDINARY = {"content-type", "content-length", "transfer-encoding", "connection", "date", "server", "cache-control",
            "x-accel-buffering", "openai-version", "openai-processing-ms", "openai-model"}  # fmt: skip
OWN = {name.lower(): header for header in OWN_HEADERS for name in (header.names or (header.name,))}
SOMETIMES = {"retry-after", "retry-after-ms", "x-should-retry"}
"""What says when to try again, where that is known."""
_questions = count()


@dataclass(frozen=True)
class Asker:
    """A team that asks a gateway in every way there is."""

    gateway: Tollgate
    team: Team
    session: requests.Session

    def ask(self, body: object = None, headers: Mapping[str, str] | None = None, **more: object) -> requests.Response:
        sent = {**self.team.headers, **(headers or {})}
        body = REQUEST if body is None else body
        return self.session.post(
            f"{self.gateway.base_url}/chat/completions", json=body, headers=sent, timeout=30, **more
        )

    def by(self, team: Team) -> Asker:
        return Asker(self.gateway, team, self.session)


def asker(gateway, session, name):
    limits = {"requests_per_minute": 1_000, "tokens_per_minute": 1_000_000, "shadow_tier": "free"}
    return Asker(gateway, gateway.add_team(name, **limits), session)


@pytest.fixture(scope="module")
def quiet(simulator, tmp_path_factory):
    """A gateway with every header left out that can be."""
    off = ", ".join(f'"{name}"' for name in SWITCHABLE)
    settings = f"[upstream]\nfirst_backoff_ms = 5\n[headers]\noff = [{off}]\n"
    with run_tollgate(
        tmp_path_factory.mktemp("quiet"), simulator.base_url, simulator.key, settings=settings
    ) as running:
        yield running


def question():
    """A request that is answered once, and from the cache after that."""
    return {**REQUEST, "temperature": 0, "messages": [{"role": "user", "content": f"echo:own {next(_questions)}"}]}


def together(asker, upstream, body):
    """Two answers to one question, the second asked while the first is being answered."""
    slow = {"x-simulate-delay-ms": "300"}

    def under_way(count):
        samples = dict(line.rsplit(" ", 1) for line in asker.gateway.metrics().splitlines() if line[:1] != "#")
        return float(samples["tollgate_in_flight_requests"]) == count

    with ThreadPoolExecutor(2) as pool, requests.Session() as other:
        other.trust_env = False
        # Upstream answers nobody before both have come.
        with upstream.standing_still():
            first = pool.submit(Asker(asker.gateway, asker.team, other).ask, body, slow)
            eventually(lambda: under_way(1), what="the first of two")
            second = pool.submit(asker.ask, body, slow)
            eventually(lambda: under_way(2), what="the second of two")
        return second.result(), first.result()


def kinds(asker, upstream, narrow):
    """One answer of each kind; `narrow` is a team that may ask once."""
    asked, shared = question(), question()
    asker.ask(asked)
    follower, _ = together(asker, upstream, shared)
    once = asker.by(narrow)
    once.ask()
    return {
        Answer.PLAIN: asker.ask(),
        Answer.STREAM: asker.ask({**REQUEST, "stream": True}),
        Answer.HIT: asker.ask(asked),
        Answer.COLLAPSED: follower,
        Answer.THEIRS: asker.ask(headers={"x-simulate-status": "400"}),
        Answer.FAILED: asker.ask(headers={"x-simulate-reset": "1"}),
        Answer.REFUSED: once.ask(),
        Answer.OTHER: asker.ask({**REQUEST, "model": "no-such-model"}),
    }


STATUSES = {Answer.THEIRS: 400, Answer.FAILED: 502, Answer.REFUSED: 429, Answer.OTHER: 404}


def test_each_kind_of_answer_has_the_headers_of_the_table_and_no_others(gateway, session, upstream):
    mine = asker(gateway, session, "told")
    narrow = gateway.add_team("told-once", requests_per_minute=1, tokens_per_minute=100_000)
    for kind, answer in kinds(mine, upstream, narrow).items():
        assert answer.status_code == STATUSES.get(kind, 200), kind
        found = [name.lower() for name in answer.raw.headers]
        assert len(found) == len(set(found)), f"{kind}: something is said twice"
        own = set(found) - ORDINARY
        expected = {name for name, header in OWN.items() if kind in header.on}
        may_miss = SOMETIMES if kind is not Answer.REFUSED else {"x-should-retry"}
        if kind is Answer.COLLAPSED:
            may_miss = may_miss | {"age"}  # it was told as it came, not out of the cache
        assert own <= expected, kind
        assert expected - own <= may_miss, kind


def test_what_is_left_out_is_on_no_answer(quiet, session, upstream):
    mine = asker(quiet, session, "untold")
    narrow = quiet.add_team("untold-once", requests_per_minute=1)
    gone = left_out(SWITCHABLE)
    assert gone >= {"x-tollgate-cost-usd", "cache-status", "age", "x-ratelimit-reset-tokens", "ratelimit"}
    for kind, answer in kinds(mine, upstream, narrow).items():
        assert answer.status_code == STATUSES.get(kind, 200), kind
        found = {name.lower() for name in answer.headers}
        assert not found & gone, kind
        assert answer.headers["x-request-id"].startswith("req_")
        assert ("retry-after" in found) == (kind is Answer.REFUSED)


def test_they_say_what_log_and_ledger_say(gateway, session, upstream):
    mine = asker(gateway, session, "same-everywhere")
    once_more = {"x-simulate-status": "500", "x-simulate-times": "1", "x-simulate-id": "own-headers"}
    asked = question()
    told = [
        mine.ask(),
        mine.ask({**REQUEST, "stream": True}),
        mine.ask(headers=once_more),
        mine.ask(asked),
        mine.ask(asked),
        mine.ask(headers={"x-simulate-status": "400"}),
        mine.ask(headers={"x-simulate-reset": "1"}),
    ]
    events = {event["request_id"]: event for event in gateway.events(mine.team.name, len(told))}
    assert len(events) == len(told)
    for answer in told:
        event, line = events[answer.headers["x-request-id"]], gateway.logged(answer.headers["x-request-id"])
        assert answer.status_code == event["status"] == line["status"]
        assert int(answer.headers.get("x-tollgate-attempts", 0)) == event["attempts"] == line["attempts"]
        assert answer.headers.get("x-tollgate-upstream", "") == event["upstream"]
        assert answer.headers["x-tollgate-cache"] == line["cache"]
        assert answer.headers["x-tollgate-queue-wait-ms"] == "0"
        if answer.headers["Content-Type"].startswith("text/event-stream"):
            assert "x-tollgate-cost-usd" not in answer.headers
        else:
            assert answer.headers["x-tollgate-cost-usd"] == format_usd(event["cost_pico_usd"], 12)
        saved = format_usd(event["saved_pico_usd"], 12) if event["outcome"] == "cached" else None
        assert answer.headers.get("x-tollgate-saved-usd") == saved
    assert [int(answer.headers.get("x-tollgate-attempts", 0)) for answer in told] == [1, 1, 2, 1, 0, 1, 3]
    assert [answer.headers["x-tollgate-cache"] for answer in told] == [*["bypass"] * 3, "miss", "hit", *["bypass"] * 2]
    assert float(told[0].headers["x-tollgate-cost-usd"]) > 0
    assert told[4].headers["x-tollgate-saved-usd"] == told[3].headers["x-tollgate-cost-usd"]
    assert told[4].headers["x-tollgate-cost-usd"] == "0.000000000000"


def test_a_wait_is_told_however_it_ends(gateway, session, upstream):
    """One request passes at once; the next one is let in a while later, if it waits for that."""
    # A second, and more for a machine that stood still for as long.
    for rate in (60, 6):
        team = gateway.add_team(f"waiting-{rate}", requests_per_minute=rate, request_capacity=1)
        key = gateway.cli("keys", "issue", "--team", team.name, "--max-wait", "30s").strip()
        patient = Asker(gateway, Team(team.name, key, ""), session)
        at_once = patient.ask()
        refused = patient.ask(headers={"x-tollgate-max-wait": "1ms"})
        served = patient.ask()
        told = [int(answer.headers["x-tollgate-queue-wait-ms"]) for answer in (at_once, refused, served)]
        if refused.status_code == 429 and told[2]:
            break
    assert [answer.status_code for answer in (at_once, refused, served)] == [200, 429, 200]
    assert told[:2] == [0, 0]
    assert 0 < told[2] <= served.elapsed.total_seconds() * 1_000


def test_one_who_shares_a_call_is_told_of_no_call_of_its_own(gateway, session, upstream):
    mine = asker(gateway, session, "together")
    follower, leader = together(mine, upstream, question())
    assert follower.content == leader.content
    assert (leader.headers["x-tollgate-cache"], leader.headers["x-tollgate-attempts"]) == ("miss", "1")
    assert follower.headers["x-tollgate-cache"] == "collapsed"
    assert not {"x-tollgate-attempts", "x-tollgate-upstream", "x-upstream-request-id"} & {
        name.lower() for name in follower.headers
    }
    assert follower.headers["x-tollgate-cost-usd"] == "0.000000000000"
    assert follower.headers["x-tollgate-saved-usd"] == leader.headers["x-tollgate-cost-usd"]
    assert follower.headers["x-request-id"] != leader.headers["x-request-id"]


def test_neither_way_does_anybody_elses_pass(gateway, simulator, session, upstream, tmp_path):
    """One gateway in front of another: both have something to say of themselves."""
    inner = asker(gateway, session, "inner")
    settings = '[upstream]\nname = "inner-gateway"\n'
    with run_tollgate(tmp_path, gateway.base_url, inner.team.key, settings=settings) as outer:
        client = Asker(outer, outer.add_team("outer"), session)
        for body in (REQUEST, {**REQUEST, "stream": True}):
            mine = {"x-tollgate-upstream": "client", "x-tollgate-max-wait": "1s", "X-Tollgate-Anything": "1"}
            answer = client.ask(body, mine)
            assert answer.status_code == 200
            assert answer.raw.headers.getlist("x-tollgate-upstream") == ["inner-gateway"]
            assert "x-tollgate-shadow" not in answer.headers, "that is the inner team's alone"
            assert "x-ratelimit-limit-requests" not in answer.headers
            theirs = gateway.logged(answer.headers["x-upstream-request-id"])
            assert theirs["team"] == "inner"
            assert not [name for name in upstream.last_headers() if name.startswith("x-tollgate")]
        refused = client.ask(headers={"x-simulate-status": "400"})
        assert refused.raw.headers.getlist("x-tollgate-upstream") == ["inner-gateway"]
        assert refused.raw.headers.getlist("Cache-Status") == ["tollgate; fwd=bypass; detail=temperature"]
        assert "x-tollgate-shadow" not in refused.headers
