"""Several upstreams: who is asked, who is asked next, what is told of it, and what a client never gets to see."""

from __future__ import annotations

import asyncio
import contextlib
import io
import itertools
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from proxy.adapters.secrets import load_or_create_pepper
from proxy.adapters.sql.registry import SqlRegistry
from proxy.app import open_database
from proxy.app.worker import serving
from proxy.settings import load
from proxy.simulator import Behaviour, RunningSimulator, start
from tests.faults.conftest import CHAT, LIMITS, PATIENCE_SECONDS, TEAM, Gateway, ScriptedUpstream, nobody, until

KEY, OTHER_KEY = "sk-first-key-of-the-house", "sk-other-key-of-the-house"
FRAME = """
[server]
port = 0
admin_port = 0
drain_seconds = 1.0
[upstream]
first_backoff_ms = 1
max_backoff_ms = 50
"""
ANSWER = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "deep"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10},
    }
).encode()

Opened = Callable[..., Awaitable[Gateway]]
Simulate = Callable[..., Awaitable[RunningSimulator]]


@pytest_asyncio.fixture
async def simulate() -> AsyncIterator[Simulate]:
    """Start simulated upstreams; `status="500"` and the like befall each of their requests."""
    async with contextlib.AsyncExitStack() as stack:

        async def go(api_key: str = KEY, **faults: str) -> RunningSimulator:
            named = tuple((name.replace("_", "-"), value) for name, value in faults.items())
            return await stack.enter_async_context(await start(Behaviour(api_key=api_key, faults=named)))

        yield go


@pytest_asyncio.fixture
async def opened(tmp_path: Path, nothing_forgotten: None) -> AsyncIterator[Opened]:
    """Start a worker before what a settings file says; its keys are in the environment."""
    numbers = itertools.count()
    async with contextlib.AsyncExitStack() as stack:

        async def go(
            text: str, simulator: RunningSimulator | None = None, of_key: frozenset[str] | None = None, **team: object
        ) -> Gateway:
            place = tmp_path / f"gateway-{next(numbers)}"
            place.mkdir()
            file = place / "tollgate.toml"
            file.write_text(FRAME + text)
            environ = {"KEY": KEY, "OTHER_KEY": OTHER_KEY, "BOTH_KEYS": f"{OTHER_KEY}\n {KEY}\n"}
            settings = load(file, environ, {"data_dir": str(place)})
            engine = stack.enter_context(open_database(settings))
            log = io.StringIO()
            running = await stack.enter_async_context(contextlib.AsyncExitStack())
            with contextlib.redirect_stdout(log):
                worker = await running.enter_async_context(serving(settings, engine))
            registry = SqlRegistry(engine, worker.services.clock, load_or_create_pepper(place))
            registry.add_team(TEAM, "free", **LIMITS, **team)
            key = registry.issue_key(TEAM, label="test", models=of_key).key
            session = await stack.enter_async_context(
                aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True))
            )
            return Gateway(worker, engine, simulator, session, key, settings, log, running.aclose)

        yield go


def site(name: str, base_url: str, *more: str, key: str = "KEY") -> str:
    return "\n".join([f"[upstreams.{name}]", f'base_url = "{base_url}"', f'api_key_variable = "{key}"', *more, ""])


def says(body: bytes, status: str = "200 OK", headers: str = ""):
    """A script: one answer, then the end of the connection."""

    async def script(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        length = f"Content-Length: {len(body)}\r\nConnection: close\r\n"
        head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n{length}{headers}\r\n"
        writer.write(head.encode() + body)
        await writer.drain()

    return script


def error(code: str | None) -> bytes:
    return json.dumps(
        {"error": {"message": "no", "type": "invalid_request_error", "param": None, "code": code}}
    ).encode()


async def asked(gateway: Gateway, body: object = CHAT, **headers: str) -> tuple[int, dict, Mapping[str, str]]:
    async with gateway.post(body, headers={name.replace("_", "-"): value for name, value in headers.items()}) as came:
        return came.status, await came.json(), came.headers


async def idle(gateway: Gateway) -> None:
    await until(lambda: gateway.in_flight == 0)


async def the_event(gateway: Gateway) -> dict:
    await idle(gateway)
    await gateway.worker.ledger.ship_once()
    events = await asyncio.to_thread(gateway._events)
    assert await gateway.mismatches() == []
    return events[-1]


def shown(gateway: Gateway) -> str:
    """Everything anybody can see of a gateway."""
    gateway.worker.equipment.sample()
    return gateway.worker.metrics.render()[0].decode() + gateway.log.getvalue()


@pytest.fixture
def nowhere() -> Iterator[str]:
    """The URL of an upstream that is away."""
    with nobody() as url:
        yield url


async def test_load_is_spread_by_weight(opened: Opened, simulate: Simulate) -> None:
    much, little, spare = await simulate(), await simulate(), await simulate()
    gateway = await opened(
        site("much", much.base_url, "weight = 3")
        + site("little", little.base_url)
        + site("spare", spare.base_url, "priority = 1", "weight = 1000")
    )
    for _ in range(400):
        assert (await asked(gateway))[0] == 200
    assert much.stats.requests + little.stats.requests == 400
    assert 248 <= much.stats.requests <= 352, "300 on average; six standard deviations are 52"
    assert spare.stats.requests == 0
    assert gateway.total("tollgate_upstream_duration_seconds_count", upstream="much") == much.stats.requests


FAILURES = {
    "status_500": {"status": "500"},
    "status_503": {"status": "503"},
    "status_408": {"status": "408"},
    "status_429": {"status": "429"},
    "broken": {"reset": "1"},
    "unreachable": None,
    "status_401": {},
}


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("reason", FAILURES)
async def test_another_is_asked_at_once(
    opened: Opened, simulate: Simulate, nowhere: str, reason: str, stream: bool
) -> None:
    faults, other = FAILURES[reason], await simulate()
    first_url, first = nowhere, None
    if faults is not None:
        first = await simulate(OTHER_KEY if reason == "status_401" else KEY, **faults)
        first_url = first.base_url
    gateway = await opened(site("first", first_url) + site("other", other.base_url, "priority = 1"), other)
    async with gateway.post({**CHAT, "stream": stream}) as came:
        assert came.status == 200
        body = await came.read()
    assert body.endswith(b"data: [DONE]\n\n") is stream
    event = await the_event(gateway)
    assert (event["upstream"], event["attempts"], event["outcome"], event["status"]) == ("other", 2, "ok", 200)
    assert event["output_tokens"] == 16
    assert await gateway.charged() == (1, event["input_tokens"] + event["output_tokens"])
    assert first is None or first.stats.requests == 1
    assert other.stats.requests == 1
    assert gateway.total("tollgate_upstream_errors_total") == 1
    assert gateway.metric("tollgate_upstream_errors_total", upstream="first", kind=reason) == 1
    assert gateway.total("tollgate_retries_total") == 1
    assert gateway.metric("tollgate_retries_total", upstream="first", reason=reason) == 1
    (record,) = gateway.records()
    assert (record["upstream"], record["attempts"], record["tried"]) == ("other", 2, ["first", "other"])
    assert KEY not in shown(gateway)


async def test_a_quota_that_is_used_up_leads_elsewhere(opened: Opened, simulate: Simulate) -> None:
    other = await simulate()
    broke = ScriptedUpstream(says(error("insufficient_quota"), "429 Too Many Requests"))
    async with broke as url:
        gateway = await opened(site("first", url) + site("other", other.base_url, "priority = 1"))
        assert (await asked(gateway))[0] == 200
        assert (await asked(gateway))[0] == 200
    assert broke.calls == 1, "its only key rests, and the other is asked first"
    assert gateway.metric("tollgate_upstream_key_refusals_total", upstream="first", key="1", reason="quota") == 1


@pytest.mark.parametrize(("status", "code"), [(400, 400), (403, 403), (404, 404), (409, 409), (413, 413), (422, 422)])
async def test_what_is_wrong_with_a_request_is_wrong_everywhere(
    opened: Opened, simulate: Simulate, status: int, code: int
) -> None:
    first, other = await simulate(status=str(status)), await simulate()
    gateway = await opened(site("first", first.base_url) + site("other", other.base_url, "priority = 1"))
    assert (await asked(gateway))[0] == code
    assert (first.stats.requests, other.stats.requests) == (1, 0)
    event = await the_event(gateway)
    assert (event["upstream"], event["attempts"]) == ("first", 1)


@pytest.mark.parametrize("status", ["429 Too Many Requests", "503 Away", "401 Unauthorized"])
async def test_what_must_not_be_tried_again_is_not_tried_elsewhere(
    opened: Opened, simulate: Simulate, status: str
) -> None:
    other = await simulate()
    async with ScriptedUpstream(says(error(None), status, "x-should-retry: false\r\n")) as url:
        gateway = await opened(site("first", url) + site("other", other.base_url, "priority = 1"))
        assert (await asked(gateway))[0] == (502 if status.startswith("401") else int(status[:3]))
    assert other.stats.requests == 0


async def test_silence_is_not_asked_about_elsewhere(opened: Opened, simulate: Simulate) -> None:
    first, other = await simulate(hang="1"), await simulate()
    gateway = await opened(
        site("first", first.base_url, "read_timeout_seconds = 0.2") + site("other", other.base_url, "priority = 1")
    )
    status, body, _ = await asked(gateway)
    assert (status, body["error"]["code"]) == (504, "upstream_timeout")
    assert other.stats.requests == 0
    event = await the_event(gateway)
    assert (event["upstream"], event["attempts"], event["estimated"]) == ("first", 1, True)


async def test_all_fail_and_calls_are_bounded(opened: Opened, simulate: Simulate) -> None:
    first, other = await simulate(status="503"), await simulate(status="500")
    gateway = await opened(site("first", first.base_url) + site("other", other.base_url, "priority = 1"))
    status, _, _ = await asked(gateway)
    assert (first.stats.requests, other.stats.requests) == (2, 1), "each once, then the first again, after a wait"
    assert status == 503
    event = await the_event(gateway)
    assert (event["upstream"], event["attempts"], event["status"]) == ("first", 3, 503)
    assert gateway.metric("tollgate_retries_total", upstream="first", reason="status_503") == 1
    assert gateway.metric("tollgate_retries_total", upstream="other", reason="status_500") == 1


async def test_one_upstream_rests_after_a_run_of_failures_and_is_tried_by_a_request(opened: Opened) -> None:
    upstream = ScriptedUpstream(says(error(None), "500 Oops"))
    async with upstream as url:
        gateway = await opened(
            "max_attempts = 1\nbreaker_failures = 3\nbreaker_rest_seconds = 2.0\n" + site("only", url)
        )
        for _ in range(3):
            assert (await asked(gateway))[0] == 500
        status, body, headers = await asked(gateway)
        assert (status, body["error"]["code"]) == (503, "server_is_overloaded")
        assert 1 <= int(headers["retry-after-ms"]) <= 2_000
        assert headers["Retry-After"] in {"1", "2"}
        assert upstream.calls == 3, "it is left alone"
        event = await the_event(gateway)
        assert (event["status"], event["attempts"], event["outcome"]) == (503, 0, "unavailable")
        assert 'tollgate_breaker_state{upstream="only"} 2.0' in shown(gateway)
        assert gateway.metric("tollgate_breaker_openings_total", upstream="only") == 1
        charged = await gateway.charged()
        upstream._script = says(ANSWER)

        async with asyncio.timeout(PATIENCE_SECONDS):
            while (await asked(gateway))[0] != 200:  # noqa: ASYNC110 - the end of a rest has no event
                await asyncio.sleep(0.05)
        assert upstream.calls == 4
        assert await gateway.charged() == (charged[0] + 1, charged[1] + 10), "what was refused cost nothing"
        assert (await asked(gateway))[0] == 200
        assert 'tollgate_breaker_state{upstream="only"} 0.0' in shown(gateway)


async def test_who_rests_is_passed_over(opened: Opened, simulate: Simulate) -> None:
    first, other = await simulate(status="500"), await simulate()
    gateway = await opened(
        "breaker_failures = 2\nbreaker_rest_seconds = 3600\n"
        + site("first", first.base_url)
        + site("other", other.base_url, "priority = 1")
    )
    for _ in range(5):
        assert (await asked(gateway))[0] == 200
    assert (first.stats.requests, other.stats.requests) == (2, 5)
    assert (await the_event(gateway))["attempts"] == 1


async def test_no_breaker_at_all(opened: Opened, simulate: Simulate) -> None:
    first = await simulate(status="500")
    gateway = await opened("max_attempts = 1\nbreaker_failures = 0\n" + site("only", first.base_url))
    for _ in range(40):
        assert (await asked(gateway))[0] == 500
    assert first.stats.requests == 40


async def test_retries_are_held_to_a_budget(opened: Opened, simulate: Simulate) -> None:
    upstream = await simulate(status="500")
    gateway = await opened(
        "retry_budget_percent = 50\nretry_budget_floor = 0\nbreaker_failures = 0\n" + site("only", upstream.base_url)
    )
    for _ in range(10):
        assert (await asked(gateway))[0] == 500
    assert upstream.stats.requests == 15
    assert gateway.total("tollgate_retries_total") == 5
    assert gateway.metric("tollgate_retries_refused_total", upstream="only") == 10


async def test_a_budget_does_not_stand_between_upstreams(opened: Opened, simulate: Simulate) -> None:
    first, other = await simulate(status="500"), await simulate()
    gateway = await opened(
        "retry_budget_percent = 0\nretry_budget_floor = 0\nbreaker_failures = 0\n"
        + site("first", first.base_url)
        + site("other", other.base_url, "priority = 1")
    )
    for _ in range(5):
        assert (await asked(gateway))[0] == 200
    assert (first.stats.requests, other.stats.requests) == (5, 5)


async def test_a_key_that_is_refused_rests_while_another_serves(opened: Opened, simulate: Simulate) -> None:
    upstream = await simulate(KEY)
    gateway = await opened(site("only", upstream.base_url, key="BOTH_KEYS"))
    for _ in range(6):
        assert (await asked(gateway))[0] == 200
    assert upstream.stats.by_status == {401: 1, 200: 6}
    assert gateway.metric("tollgate_upstream_key_refusals_total", upstream="only", key="1", reason="refused") == 1
    text = shown(gateway)
    assert 'tollgate_upstream_keys_resting{upstream="only"} 1.0' in text
    assert KEY not in text
    assert OTHER_KEY not in text


async def test_keys_take_turns(opened: Opened) -> None:
    upstream = ScriptedUpstream(says(ANSWER))
    async with upstream as url:
        gateway = await opened(site("only", url, key="BOTH_KEYS"))
        for _ in range(6):
            assert (await asked(gateway))[0] == 200
    assert [KEY.encode() in head for head in upstream.heads].count(True) == 3
    assert [OTHER_KEY.encode() in head for head in upstream.heads].count(True) == 3


async def test_all_keys_refused_is_told_as_it_is_of_one(opened: Opened, simulate: Simulate) -> None:
    upstream = await simulate("sk-neither-of-them")
    gateway = await opened(site("only", upstream.base_url, key="BOTH_KEYS"))
    for _ in range(2):
        status, body, headers = await asked(gateway)
        assert (status, body["error"]["code"], headers["x-should-retry"]) == (502, "upstream_key_refused", "false")
    assert upstream.stats.requests == 3, "both at first, then one, in case it is mended"


async def test_keys_out_of_their_rate(opened: Opened) -> None:
    upstream = ScriptedUpstream(says(error("rate_limit_exceeded"), "429 Too Many Requests", "retry-after: 30\r\n"))
    async with upstream as url:
        gateway = await opened(site("only", url, key="BOTH_KEYS"))
        status, _, headers = await asked(gateway)
        assert (status, headers["Retry-After"]) == (429, "30")
    assert upstream.calls == 2
    for number in ("1", "2"):
        assert gateway.metric("tollgate_upstream_key_refusals_total", upstream="only", key=number, reason="rate") == 1


async def test_what_is_left_of_upstreams_own_limits_is_shown(opened: Opened) -> None:
    headers = "x-ratelimit-remaining-requests: 41\r\nx-ratelimit-remaining-tokens: -7\r\n"
    async with ScriptedUpstream(says(ANSWER, headers=headers)) as url:
        gateway = await opened(site("only", url))
        assert (await asked(gateway))[0] == 200
    labels = {"upstream": "only", "key": "1"}
    assert gateway.metric("tollgate_upstream_remaining", **labels, dimension="requests") == 41
    assert "tollgate_upstream_remaining" in shown(gateway)
    assert gateway.worker.metrics.registry.get_sample_value(
        "tollgate_upstream_remaining", {**labels, "dimension": "tokens"}
    ) is None  # fmt: skip


RAW = b' { "messages" : [{"role":"user","content":"gpt-4o-mini \\u00e9 1.0"}],\n"model":"%s" , "temperature" : 0.50 } '


async def test_a_model_goes_by_the_name_it_has_there(opened: Opened, simulate: Simulate) -> None:
    upstream, other = await simulate(), await simulate()
    gateway = await opened(
        site("mapped", upstream.base_url, 'models = { "gpt-4o-mini" = "gpt-4o", "gpt-4o" = "gpt-4o" }')
        + site("other", other.base_url, "priority = 1")
    )
    assert (await asked(gateway, RAW % b"gpt-4o-mini"))[0] == 200
    assert upstream.stats.last_body == RAW % b"gpt-4o"
    assert (await asked(gateway, RAW % b"gpt-4o"))[0] == 200
    assert upstream.stats.last_body == RAW % b"gpt-4o"
    assert other.stats.requests == 0
    assert (await asked(gateway, {**CHAT, "model": "gpt-4.1"}))[0] == 200
    assert (upstream.stats.requests, other.stats.requests) == (2, 1), "what the map does not name is asked elsewhere"
    await idle(gateway)
    assert [record["model"] for record in gateway.records()] == ["gpt-4o-mini", "gpt-4o", "gpt-4.1"]


async def test_a_model_nobody_serves_is_none(opened: Opened, simulate: Simulate) -> None:
    upstream = await simulate()
    gateway = await opened(site("mapped", upstream.base_url, 'models = { "gpt-4o" = "gpt-4o" }'))
    status, body, _ = await asked(gateway)
    assert (status, body["error"]["code"]) == (404, "model_not_found")
    assert upstream.stats.requests == 0
    assert await gateway.charged() == (0, 0)


async def test_usage_is_asked_of_those_that_can_tell_it(opened: Opened, simulate: Simulate) -> None:
    upstream = await simulate()
    for more, asks in (
        (['kind = "compatible"'], False),
        (['kind = "compatible"', "ask_for_usage = true"], True),
        ([], True),
        (["ask_for_usage = false"], False),
    ):
        gateway = await opened(site("only", upstream.base_url, *more))
        async with gateway.stream() as came:
            assert (await came.read()).endswith(b"data: [DONE]\n\n")
        assert (b"include_usage" in upstream.stats.last_body) is asks
        assert (await the_event(gateway))["estimated"] is not asks


async def test_another_api_is_told_nothing_of_openais(opened: Opened) -> None:
    sent = {"OpenAI-Beta": "x=v1", "x-stainless-lang": "python", "x-own": "kept"}
    for kind, told in (("compatible", False), ("openai", True)):
        upstream = ScriptedUpstream(says(ANSWER))
        async with upstream as url:
            gateway = await opened(site(f"of-{kind}", url, f'kind = "{kind}"'))
            async with gateway.post(headers=sent) as came:
                assert came.status == 200
        (head,) = upstream.heads
        assert (b"openai-beta" in head.lower()) is told
        assert (b"x-stainless-lang" in head.lower()) is told
        assert b"x-own: kept" in head
        assert f"Authorization: Bearer {KEY}".encode() in head


ALIASES = '\n[models.aliases]\nfast = "gpt-4o-mini"\n'


async def test_an_alias_is_another_name_and_nothing_else(opened: Opened, simulate: Simulate) -> None:
    upstream = await simulate()
    gateway = await opened(site("only", upstream.base_url) + ALIASES)
    body = json.loads(RAW % b"fast") | {"temperature": 0}
    raw = json.dumps(body, indent=1).encode()
    assert (await asked(gateway, raw, Content_Type="application/json"))[0] == 200
    assert upstream.stats.last_body == raw.replace(b'"fast"', b'"gpt-4o-mini"')
    event = await the_event(gateway)
    assert (event["model"], event["cost_pico_usd"] > 0) == ("gpt-4o-mini", True)
    _, _, headers = await asked(gateway, {**body, "model": "gpt-4o-mini"})
    assert "hit" in headers["Cache-Status"], "one model has one answer, by whatever name"
    assert gateway.total("tollgate_requests_total", model="fast") == 0
    assert gateway.total("tollgate_requests_total", model="gpt-4o-mini") == 2


@pytest.mark.parametrize(
    ("models", "of_key", "open_names"),
    [
        (None, None, {"fast", "gpt-4o-mini", "gpt-4o"}),
        ({"fast"}, None, {"fast"}),
        ({"gpt-4o-mini"}, None, {"fast", "gpt-4o-mini"}),
        ({"gpt-4o"}, None, {"gpt-4o"}),
        ({"gpt-4o-mini", "gpt-4o"}, {"fast"}, {"fast"}),
        ({"fast"}, {"gpt-4o-mini"}, {"fast"}),
        ({"fast"}, {"gpt-4o"}, set()),
    ],
)
async def test_an_alias_is_open_to_whom_it_or_its_model_is(
    opened: Opened, simulate: Simulate, models: set[str] | None, of_key: set[str] | None, open_names: set[str]
) -> None:
    upstream = await simulate()
    team = {} if models is None else {"models": frozenset(models)}
    gateway = await opened(
        site("only", upstream.base_url) + ALIASES, of_key=None if of_key is None else frozenset(of_key), **team
    )
    headers = {"Authorization": f"Bearer {gateway.key}"}
    async with gateway.session.get(f"{gateway.worker.base_url}/models", headers=headers) as came:
        listed = {model["id"] for model in (await came.json())["data"]}
    for name in ("fast", "gpt-4o-mini", "gpt-4o"):
        status, body, _ = await asked(gateway, {**CHAT, "model": name})
        assert status == (200 if name in open_names else 404)
        assert status == 200 or name in body["error"]["message"]
        assert (name in listed) is (name in open_names)
        async with gateway.session.get(f"{gateway.worker.base_url}/models/{name}", headers=headers) as came:
            assert came.status == status
            assert status != 200 or (await came.json())["id"] == name


async def test_models_of_all_upstreams_are_listed_and_one_that_is_away_is_left_out(
    opened: Opened, simulate: Simulate, nowhere: str
) -> None:
    upstream = await simulate()
    gateway = await opened(
        site("mapped", "http://127.0.0.1:9/v1", 'models = { "homegrown" = "a-deployment" }')
        + site("away", nowhere)
        + site("there", upstream.base_url)
        + '[models]\nextra = ["homegrown"]\n'
    )
    headers = {"Authorization": f"Bearer {gateway.key}"}
    async with gateway.session.get(f"{gateway.worker.base_url}/models", headers=headers) as came:
        assert came.status == 200
        names = [model["id"] for model in (await came.json())["data"]]
    assert {"homegrown", "gpt-4o-mini"} <= set(names)
    assert "a-deployment" not in names
    assert len(names) == len(set(names))
    assert gateway.metric("tollgate_upstream_errors_total", upstream="away", kind="unreachable") == 1


@pytest.mark.parametrize(
    ("version", "target"),
    [
        ("", "POST /openai/v1/chat/completions HTTP/1.1"),
        ('api_version = "preview"', "POST /openai/v1/chat/completions?api-version=preview HTTP/1.1"),
        (
            'api_version = "2024-10-21"',
            "POST /openai/deployments/my%20mini%2F1/chat/completions?api-version=2024-10-21 HTTP/1.1",
        ),
    ],
)
async def test_azure_is_called_as_azure_wants_it(opened: Opened, version: str, target: str) -> None:
    upstream = ScriptedUpstream(says(ANSWER))
    async with upstream as url:
        gateway = await opened(
            site(
                "azure", url.removesuffix("/v1"), 'kind = "azure"', version, 'models = { "gpt-4o-mini" = "my mini/1" }'
            )
        )
        status, _, _ = await asked(gateway, api_key="sk-of-the-client")
        assert status == 200
    (head,) = upstream.heads
    lines = head.decode().split("\r\n")
    assert lines[0] == target
    assert f"api-key: {KEY}" in lines
    assert not [line for line in lines if line.lower().startswith("authorization")]
    assert b"sk-of-the-client" not in head
    event = await the_event(gateway)
    assert (event["upstream"], event["model"], event["outcome"]) == ("azure", "gpt-4o-mini", "ok")


async def test_other_upstreams_do_not_answer_from_the_cache(opened: Opened, simulate: Simulate) -> None:
    """What is configured now decides what may answer."""
    one, two = await simulate(), await simulate()
    body = {**CHAT, "temperature": 0}
    gateway = await opened(site("one", one.base_url))
    assert "hit" not in (await asked(gateway, body))[2]["Cache-Status"]
    identity = gateway.worker.services.upstreams.identity
    assert "hit" in (await asked(gateway, body))[2]["Cache-Status"]
    assert identity("gpt-4o-mini") == one.base_url
    both = await opened(site("one", one.base_url) + site("two", two.base_url))
    assert both.worker.services.upstreams.identity("gpt-4o-mini") not in {one.base_url, two.base_url}
    assert "hit" not in (await asked(both, body))[2]["Cache-Status"]
    assert "hit" in (await asked(both, body))[2]["Cache-Status"], "whichever of them is drawn"


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_an_answer_names_who_gave_it_and_an_error_who_was_asked_last(
    opened: Opened, simulate: Simulate, nowhere: str, stream: bool
) -> None:
    other = await simulate()
    first = site("first", nowhere)
    gateway = await opened(first + site("other", other.base_url, "priority = 1"), other)
    async with gateway.post({**CHAT, "stream": stream}) as came:
        told = came.headers
        assert (came.status, told["x-tollgate-upstream"], told["x-tollgate-attempts"]) == (200, "other", "2")
    alone = await opened(first)
    status, _, told = await asked(alone, {**CHAT, "stream": stream})
    assert (status, told["x-tollgate-upstream"]) == (502, "first")
    assert told["x-tollgate-attempts"] == str((await the_event(alone))["attempts"])


async def test_a_form_goes_by_the_name_the_model_has_there(opened: Opened, simulate: Simulate) -> None:
    upstream = await simulate()
    gateway = await opened(
        site("only", upstream.base_url, 'models = { "whisper-1" = "gpt-4o-transcribe" }')
        + '\n[models.aliases]\nhear = "whisper-1"\n'
    )
    form = aiohttp.FormData()
    form.add_field("model", "hear")
    form.add_field("file", b"RIFF model hear", filename="hear.wav", content_type="audio/wav")
    headers = {"Authorization": f"Bearer {gateway.key}"}
    url = f"{gateway.worker.base_url}/audio/transcriptions"
    async with gateway.session.post(url, data=form, headers=headers) as came:
        assert came.status == 200
    assert b"gpt-4o-transcribe" in upstream.stats.last_body
    assert b"whisper-1" not in upstream.stats.last_body
    assert b"RIFF model hear" in upstream.stats.last_body
    assert (await the_event(gateway))["model"] == "whisper-1"


async def test_what_is_kept_upstream_is_asked_of_one_alone(opened: Opened, simulate: Simulate) -> None:
    mapped, late, keeper = await simulate(), await simulate(), await simulate(status="503")
    gateway = await opened(
        site("mapped", mapped.base_url, 'models = { "gpt-4o" = "gpt-4o" }')
        + site("late", late.base_url, "priority = 9")
        + site("keeper", keeper.base_url, "priority = 1"),
        allow_stateful=True,
    )
    headers = {"Authorization": f"Bearer {gateway.key}"}
    for _ in range(3):
        async with gateway.session.get(f"{gateway.worker.base_url}/files", headers=headers) as came:
            assert came.status == 503
    assert (mapped.stats.requests, late.stats.requests) == (0, 0)
    assert keeper.stats.requests == 9, "the same one again, after a wait"
