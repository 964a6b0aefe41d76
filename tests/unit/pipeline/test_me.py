"""What a team sees of itself: its own, the truth, and at no cost."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import UTC, date, datetime

import pytest
from sqlalchemy import event, insert, text

from proxy.adapters.sql.tables import usage_daily
from proxy.adapters.sql.usage import SqlUsageReports
from proxy.core.bucket import Cost
from proxy.core.errors import InvalidKey
from proxy.pipeline.admit import scopes_of
from proxy.pipeline.me import show_caller
from proxy.pipeline.team_reads import KEPT_MS
from proxy.pipeline.team_usage import TeamUsage

BODY = b'{"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "x"}]}'


@pytest.fixture
def services(bench):
    usage = TeamUsage(SqlUsageReports(bench.database.engine), bench.clock, bench.services.telemetry)
    return replace(bench.services, team_usage=usage)


@pytest.fixture
def reads(bench):
    """Statements that read the daily totals."""
    found = []
    event.listen(
        bench.database.engine,
        "before_cursor_execute",
        lambda _c, _cursor, statement, *_: found.append(statement) if "FROM usage_daily" in statement else None,
    )
    return found


def used(bench, team, day, **measures):
    zeros = {column.name: 0 for column in usage_daily.c if not column.primary_key}
    key = {"day": day, "team": team, "key_id": "k", "model": "m", "upstream": "u", "endpoint": "chat"}
    with bench.database.engine.begin() as connection:
        connection.execute(insert(usage_daily).values({**zeros, **key, **measures}))


async def shown(bench, services, key=None, **headers):
    exchange = await bench.exchange(BODY, headers={"Authorization": f"Bearer {key or bench.key}", **headers})
    reply = await show_caller(exchange, services)
    assert reply.status == 200
    assert ("Cache-Control", "private, no-store") in reply.headers
    return json.loads(reply.body)


def today(bench):
    return datetime.fromtimestamp(bench.clock.ms / 1_000, UTC).date()


async def test_a_team_its_key_its_limits_and_what_is_left(bench, services, registry):
    registry.set_team("growth", max_parallel=9, models=frozenset({"gpt-4o-mini", "gpt-5"}))
    registry.set_model_limit("growth", "gpt-5", 7)
    registry.set_model_limit("growth", "not-for-this-team", 8)
    issued = registry.issue_key(
        "growth", "ci", bench.clock.ms + 5_000, frozenset({"gpt-5", "o9"}), tokens_per_minute=500, max_parallel=2
    )
    services.principals.invalidate()
    principal = await services.principals.of(issued.key)
    scopes = scopes_of(principal, "gpt-5", services.policy, bench.clock.ms)
    await services.limiter.reserve("growth", scopes, Cost(3, 120))
    told = await shown(bench, services, issued.key)
    assert told["object"] == "tollgate.me"
    assert (told["team"], told["tier"]["name"], told["tier"]["changes"]) == ("growth", "free", None)
    assert told["key"] == {
        "id": issued.record.kid,
        "label": "ci",
        "expires": datetime.fromtimestamp((bench.clock.ms + 5_000) // 1_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "secret_ends": None,
        "max_wait_ms": None,
    }
    team, key, model = told["limits"]
    assert (team["of"], team["model"], team["max_parallel"]) == ("team", None, 9)
    assert team["requests"] == {"limit": 100, "remaining": 97, "reset_ms": 1_800}
    assert team["tokens"] == {"limit": 10_000, "remaining": 9_880, "reset_ms": 720}
    assert (key["of"], key["requests"], key["max_parallel"]) == ("key", None, 2)
    assert key["tokens"]["remaining"] == 380
    assert (model["of"], model["model"], model["requests"]["remaining"], model["tokens"]) == ("model", "gpt-5", 4, None)
    assert told["models"] == ["gpt-5"], "what both are open to"


async def test_how_long_requests_of_the_key_wait(bench, services, registry):
    key = registry.issue_key("growth", max_wait_ms=20_000).key
    assert (await shown(bench, services, key))["key"]["max_wait_ms"] == 20_000


async def test_looking_costs_nothing(bench, services):
    for _ in range(250):
        await shown(bench, services)
    assert await bench.charged() == (0, 0)
    assert await bench.events() == []


async def test_the_next_phase_of_a_tier(bench, services, registry):
    registry.set_team("growth", tier="payg", requests_per_minute=None, tokens_per_minute=None)
    services.principals.invalidate()
    told = await shown(bench, services)
    assert told["tier"]["changes"] == datetime.fromtimestamp(bench.clock.ms / 1_000 + 172_800, UTC).strftime(
        "%Y-%m-%dT%H:%M:%SZ"
    )
    assert told["limits"][0]["requests"]["limit"] == 60
    bench.clock.ms += 172_800_000
    told = await shown(bench, services)
    assert (told["tier"]["changes"], told["limits"][0]["requests"]["limit"]) == (None, 3_500)
    assert told["models"] is None


async def test_usage_is_the_ledgers_to_the_pico_dollar_and_nobody_elses(bench, services, registry):
    registry.add_team("others", "free")
    day = today(bench)
    first = day.replace(day=1)
    assert first < day
    money = 10**12 + 1
    used(bench, "growth", day, requests=3, cached=1, input_tokens=40, output_tokens=7, cost_pico_usd=money,
         saved_pico_usd=5, saved_input_tokens=11, saved_output_tokens=2)  # fmt: skip
    used(bench, "growth", first, requests=2, cost_pico_usd=3 * money)
    used(bench, "growth", date.fromordinal(first.toordinal() - 1), requests=100, cost_pico_usd=10**15)
    used(bench, "others", day, requests=1_000, cost_pico_usd=10**15)
    told = (await shown(bench, services))["usage"]
    assert (told["today"]["requests"], told["month"]["requests"]) == (3, 5)
    assert (told["today"]["cost_pico_usd"], told["today"]["cost_usd"]) == (money, "1.000000000001")
    assert (told["month"]["cost_pico_usd"], told["month"]["cost_usd"]) == (4 * money, "4.000000000004")
    assert told["today"]["saved_usd"] == "0.000000000005"
    assert [told["today"][name] for name in ("cached", "input_tokens", "output_tokens")] == [1, 40, 7]
    assert [told["today"][f"saved_{name}_tokens"] for name in ("input", "output")] == [11, 2]


async def test_polling_does_not_reach_the_database(bench, services, reads):
    told = [await shown(bench, services) for _ in range(20)]
    assert len(reads) == 1
    used(bench, "growth", today(bench), requests=3)
    assert (await shown(bench, services))["usage"] == told[0]["usage"]
    bench.clock.ms += KEPT_MS
    assert (await shown(bench, services))["usage"]["today"]["requests"] == 3
    assert len(reads) == 2


async def test_those_who_ask_at_once_are_told_of_one_look(bench, services, reads):
    await asyncio.gather(*(services.team_usage.of("growth") for _ in range(50)))
    assert len(reads) == 1


async def test_teams_do_not_pile_up(bench, services):
    kept = services.team_usage._kept
    for number in range(999):
        kept[f"team-{number}"] = (0, None)
    for team in ("growth", "others"):
        await services.team_usage.of(team)
    assert len(kept) == 1_000
    assert {"growth", "others", "team-1"} <= kept.keys()
    assert "team-0" not in kept, "who asked longest ago went"


async def test_a_ledger_that_is_away_hides_usage_and_nothing_else(bench, services):
    with bench.database.engine.begin() as connection:
        connection.execute(text("ALTER TABLE usage_daily RENAME TO gone"))
    told = [await shown(bench, services) for _ in range(3)]
    assert [each["usage"] for each in told] == [None] * 3
    assert told[0]["limits"][0]["requests"]["remaining"] == 100
    labels = {"store": "ledger", "operation": "usage"}
    assert bench.metrics.registry.get_sample_value("tollgate_store_errors_total", labels) == 1, "not asked each time"
    with bench.database.engine.begin() as connection:
        connection.execute(text("ALTER TABLE gone RENAME TO usage_daily"))
    bench.clock.ms += KEPT_MS
    assert (await shown(bench, services))["usage"]["today"]["requests"] == 0


async def test_without_a_ledger_there_is_no_usage(bench):
    assert (await shown(bench, bench.services))["usage"] is None


@pytest.mark.parametrize(
    ("headers", "base_url"),
    [
        ({"Host": "gate.example:8443"}, "http://gate.example:8443/v1"),
        ({"Host": "gate.example", "X-Forwarded-Proto": "https"}, "https://gate.example/v1"),
        ({"Host": "[::1]:8080", "X-Forwarded-Proto": "javascript"}, "http://[::1]:8080/v1"),
        ({"Host": "a b"}, None),
        ({"Host": "x/../y"}, None),
        ({"Host": '"><script>'}, None),
        ({}, None),
    ],
)
async def test_the_base_url_is_where_the_client_came_by(bench, services, headers, base_url):
    assert (await shown(bench, services, **headers))["base_url"] == base_url


async def test_any_live_key_will_do_and_no_other(bench, services, registry):
    issued = registry.issue_key("growth", "second")
    assert (await shown(bench, services, issued.key))["key"]["label"] == "second"
    rotated = registry.rotate_key(issued.record.kid, 60_000)
    services.principals.invalidate()
    assert (await shown(bench, services, issued.key))["key"]["secret_ends"] is not None
    assert (await shown(bench, services, rotated.key))["key"]["secret_ends"] is None
    registry.revoke_key(issued.record.kid)
    services.principals.invalidate()
    for key in (issued.key, rotated.key, "sk-tg_nobody"):
        with pytest.raises(InvalidKey):
            await shown(bench, services, key)


async def test_no_key_is_shown(bench, services):
    text = json.dumps(await shown(bench, services))
    assert bench.key not in text
    assert bench.key.rsplit("_", 1)[1] not in text
