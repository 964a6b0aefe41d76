"""Answers that are forgotten while a server runs."""

from __future__ import annotations

import itertools
import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from proxy.app import open_registry
from proxy.settings import load
from tests.support.tollgate_process import eventually

MODEL = "gpt-4o-mini"
_numbers = itertools.count()


@pytest.fixture
def question():
    text = f"echo:to be forgotten {next(_numbers)}"
    return {"model": MODEL, "temperature": 0, "messages": [{"role": "user", "content": text}]}


@pytest.fixture
def state(call):
    """What the cache says of a request: `hit`, or why not."""
    return lambda *arguments, **more: call(*arguments, **more).headers["Cache-Status"].split(";")[1].strip()


@pytest.mark.parametrize("model", [(), ("--model", MODEL)], ids=["all", "model"])
def test_a_purge_is_gone_by_in_a_moment(gateway, state, new_team, question, model):
    team, other = new_team(), new_team()
    elsewhere = {**question, "model": "gpt-4o"}
    for by, body in ((team, question), (team, elsewhere), (other, question)):
        assert (state(body, by=by), state(body, by=by)) == ("fwd=uri-miss", "hit")
    gateway.cli("cache", "purge", "--team", team.name, *model)
    # The bound is ten seconds.
    eventually(lambda: state(question, by=team) == "fwd=uri-miss", seconds=10, what="a miss")
    assert state(question, by=team) == "hit"
    assert state(elsewhere, by=team) == ("hit" if model else "fwd=uri-miss")
    assert state(question, by=other) == "hit"


def test_a_purge_beats_a_fill_in_flight(gateway, upstream, state, team, question):
    slow = {"x-simulate-ttft-ms": "500"}
    settings = load(None, {}, {"data_dir": str(gateway.data_dir)})
    assert (state(question), state(question)) == ("fwd=uri-miss", "hit")
    with ThreadPoolExecutor(1) as pool:
        # It answers nobody before the purge is known.
        with upstream.standing_still():
            filling = pool.submit(state, question, slow)
            in_flight = "\ntollgate_in_flight_requests 1.0\n"
            # Each of these answers is given after what was ready before it: the question is on its way by then.
            for _ in range(5):
                eventually(lambda: in_flight in gateway.metrics(), what="the call upstream")
            with open_registry(settings) as registry:
                registry.purge_cache(team.name)
            assert not filling.done()
        assert filling.result(timeout=60) == "fwd=uri-miss"
    # What was asked in other words was kept before: once that is gone, the purge is known.
    eventually(lambda: state(question) == "fwd=uri-miss", seconds=10, what="the purge")
    assert state(question, slow) == "fwd=uri-miss"
    assert state(question, slow) == "hit"


def test_stats_of_a_running_server(gateway, state, team, question):
    for _ in range(4):
        state(question)
    paid, *hits = gateway.events(team.name, 4)
    (row,) = json.loads(gateway.cli("cache", "stats", "--team", team.name, "--json"))["usage"]
    assert (row["model"], row["requests"], row["cached"], row["cached_percent"]) == (MODEL, 4, 3, 75.0)
    assert row["saved_input_tokens"] == 3 * paid["input_tokens"] == sum(hit["input_tokens"] for hit in hits)
    assert row["saved_output_tokens"] == 3 * paid["output_tokens"]
    assert row["saved_usd"] == f"{3 * paid['cost_pico_usd'] / 1e12:.12f}"
