"""The ledger against the upstream's own counts, over a mixed run, a restart and a crash."""

from __future__ import annotations

import json
import signal
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.client import HTTPConnection
from urllib.parse import urlsplit

import pytest

from tests.support.days import day_that_lasts
from tests.support.tollgate_process import eventually, run_tollgate

MODEL = "gpt-4o-mini"
INPUT_PICO_USD, OUTPUT_PICO_USD = 150_000, 600_000
"""Prices of the model per token, as the table in the package has them."""


def ask(text="Say something.", **more):
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], **more}


def fault(**wishes):
    return {f"x-simulate-{name.replace('_', '-')}": str(value) for name, value in wishes.items()}


def leave_after(call, events, *arguments, **more):
    """Read so many events of a stream, then hang up."""
    with call(*arguments, stream=True, **more) as answer:
        assert answer.status_code == 200
        lines = answer.iter_lines()
        for _ in range(events):
            while next(lines):
                pass


def usage_of(gateway, team, requests_made):
    """`tollgate usage --json`, once all of it is there."""

    def look():
        rows = json.loads(gateway.cli("usage", "--by", "team,model", "--team", team.name, "--json"))
        return rows if sum(row["requests"] for row in rows) >= requests_made else None

    (row,) = eventually(look, what="the whole account")
    return row


def test_a_mixed_run_ties_out(gateway, call, team, upstream):
    for number in range(12):
        assert call(ask(f"echo:{'word ' * number}")).status_code == 200
        assert call(ask(stream=True, max_tokens=number + 1, n=2)).status_code == 200
    kept = ask("Keep this.", temperature=0)
    for _ in range(5):
        assert call(kept).status_code == 200
    for status in (400, 404, 500):
        assert call(ask(), fault(status=status)).status_code == status
    for refused in (b"{", ask(model="gpt-none")):
        assert call(refused).status_code in {400, 404}

    stats = upstream.idle_stats()
    records = [record for record in stats["records"] if record["status"] == 200]
    assert len(records) == 25
    row = usage_of(gateway, team, 32)
    assert row["requests"] == 25 + 4 + 3
    assert row["cached"] == 4
    assert row["estimated"] == 0
    hit = next(event for event in gateway.events(team.name, 32) if event["outcome"] == "cached")
    assert (row["input_tokens"], row["output_tokens"]) == (stats["input_tokens"], stats["output_tokens"])
    assert row["saved_input_tokens"] == 4 * hit["input_tokens"] > 0
    assert row["saved_output_tokens"] == 4 * hit["output_tokens"] > 0
    paid = stats["input_tokens"] * INPUT_PICO_USD + stats["output_tokens"] * OUTPUT_PICO_USD
    saved = 4 * (hit["input_tokens"] * INPUT_PICO_USD + hit["output_tokens"] * OUTPUT_PICO_USD)
    assert (pico(row["cost_usd"]), pico(row["saved_usd"])) == (paid, saved)


def pico(usd):
    whole, _, digits = usd.partition(".")
    return int(whole) * 10**12 + int(digits.ljust(12, "0"))


def test_a_stream_that_is_left_is_charged_for_what_ran(gateway, call, team, upstream):
    # In pieces of four characters, so that a count by characters is the count of pieces; it would take a minute.
    pieces = 1_200
    leave_after(call, 6, ask(f"echo:{'abcd' * pieces}", stream=True), fault(chunk_ms=50))
    stats = upstream.idle_stats()
    assert stats["cut_by_client"] == 1
    (event,) = gateway.events(team.name, 1)
    assert (event["outcome"], event["status"], event["estimated"]) == ("client_gone", 200, 1)
    # The first event carries the role: five words were read, and no more than were sent are charged.
    assert 5 <= event["output_tokens"] <= stats["output_tokens_sent"] < pieces
    assert event["cost_pico_usd"] == (event["input_tokens"] * INPUT_PICO_USD + event["output_tokens"] * OUTPUT_PICO_USD)


def test_many_at_once_tie_out(gateway, call, team, upstream):
    """Plain, streamed, left and failing side by side: one event each, and no token more or less."""
    long = f"echo:{'abcd' * 3_000}"  # a minute of it
    kinds = {
        "plain": lambda number: call(ask(max_tokens=number % 9 + 1)),
        "stream": lambda number: call(ask(stream=True, max_tokens=number % 9 + 1)),
        "left": lambda number: leave_after(call, 3, ask(long, stream=True), fault(chunk_ms=20)),
        "failing": lambda number: call(ask(), fault(status=422)),
    }
    order = [name for name in kinds for _ in range(15)]
    with ThreadPoolExecutor(8) as crowd:
        for done in [crowd.submit(kinds[name], number) for number, name in enumerate(order)]:
            done.result()
    stats = upstream.idle_stats()
    events = gateway.events(team.name, len(order))
    assert len(events) == len({event["event_id"] for event in events}) == len(order) == stats["requests"]
    assert Counter(event["outcome"] for event in events) == {"ok": 30, "client_gone": 15, "upstream_error": 15}
    whole = [event for event in events if event["outcome"] == "ok"]
    completed = [record for record in stats["records"] if record["status"] == 200 and record["completed"]]
    assert sum(event["output_tokens"] for event in whole) == sum(record["output_tokens"] for record in completed)
    assert sum(event["input_tokens"] for event in whole) == sum(record["input_tokens"] for record in completed)


def test_a_plain_request_that_is_left_has_one_event(gateway, team, upstream):
    place = urlsplit(gateway.base_url)
    with closing(HTTPConnection(place.hostname, place.port, timeout=30)) as client:
        headers = {**team.headers, **fault(delay_ms=600_000), "Content-Type": "application/json"}
        client.request("POST", "/v1/chat/completions", json.dumps(ask(max_tokens=7)), headers)
        eventually(lambda: upstream.stats()["in_flight"], what="the call upstream")
    (event,) = gateway.events(team.name, 1)
    assert (event["outcome"], event["status"], event["estimated"]) == ("client_gone", 499, 1)
    assert event["output_tokens"] == 7
    upstream.idle_stats()


def test_a_restart_keeps_teams_keys_and_ledger(simulator, tmp_path, session):
    day_that_lasts()
    place = (tmp_path, simulator.base_url, simulator.key)
    with run_tollgate(*place) as before:
        team = before.add_team("growth", requests_per_minute=1_000)
        for _ in range(3):
            assert _post(session, before, team, ask()).status_code == 200
        before.signal(signal.SIGTERM)
        assert before.wait() == 0
    with run_tollgate(*place) as after:
        # Counters begin anew, the ledger does not.
        (spent,) = json.loads(after.cli("usage", "--json"))
        month = 'tollgate_ledger_spend_usd{period="month",team="growth"} '
        (shown,) = eventually(
            lambda: [line.removeprefix(month) for line in after.metrics().splitlines() if line.startswith(month)],
            what="the ledger's figure",
        )
        assert float(shown) == pytest.approx(float(spent["cost_usd"]), rel=1e-12)
        assert float(shown) > 0
        answer = _post(session, after, team, ask())
        assert answer.status_code == 200
        assert answer.headers["x-ratelimit-limit-requests"] == "1000"
        assert len(after.events("growth", 4)) == 4
        (row,) = json.loads(after.cli("usage", "--json"))
        assert (row["team"], row["requests"]) == ("growth", 4)


def test_a_kill_in_mid_stream_leaves_exactly_one_event(simulator, tmp_path, session):
    place = (tmp_path, simulator.base_url, simulator.key)
    with run_tollgate(*place) as before:
        team = before.add_team("growth")
        assert _post(session, before, team, ask()).status_code == 200
        body = ask("How long?", stream=True, max_tokens=50)
        with _post(session, before, team, body, fault(chunk_ms=60_000), stream=True) as answer:
            lines = answer.iter_lines()  # held on to: letting go of it would hang up
            assert next(lines).startswith(b"data: ")
            request_id = answer.headers["x-request-id"]
            before.signal(signal.SIGKILL)
            before.wait()
    with run_tollgate(*place) as after:
        finished, killed = after.events("growth", 2)
        assert (finished["outcome"], finished["estimated"]) == ("ok", 0)
        assert killed["request_id"] == request_id
        assert (killed["outcome"], killed["estimated"], killed["output_tokens"]) == ("interrupted", 1, 50)
        assert killed["cost_pico_usd"] == killed["input_tokens"] * INPUT_PICO_USD + 50 * OUTPUT_PICO_USD
        assert _post(session, after, team, ask()).status_code == 200
        assert [event["request_id"] for event in after.events("growth", 3)].count(request_id) == 1
    with run_tollgate(*place) as again:
        assert len(again.events("growth", 3)) == 3


def _post(session, gateway, team, body, headers=None, **more):
    return session.post(
        f"{gateway.base_url}/chat/completions",
        json=body,
        headers={**team.headers, **(headers or {})},
        timeout=30,
        **more,
    )
