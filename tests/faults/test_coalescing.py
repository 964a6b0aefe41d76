"""What a team asks for several times at once, over real connections: one call, and an account that ties out."""

import asyncio
import json
import random
from collections import Counter

import pytest

from proxy.adapters.secrets import load_or_create_pepper
from proxy.adapters.sql.registry import SqlRegistry
from proxy.core.replay import assemble
from tests.faults.conftest import (
    CHAT,
    PATIENCE_SECONDS,
    TEAM,
    Gateway,
    Open,
    ScriptedUpstream,
    at_rest,
    nobody,
    read_answer,
    until,
)

ASK = {**CHAT, "temperature": 0}
STREAM = {**ASK, "stream": True}
COUNTED = {**STREAM, "stream_options": {"include_usage": True}}
COLLAPSED = "tollgate; fwd=uri-miss; collapsed"
WHOLE = {
    "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "gpt-4o-mini",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "deep"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8},
}  # fmt: skip


def plain_answer(body=WHOLE, status="200 OK"):
    content = json.dumps(body).encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nConnection: close\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


def held(signal, answer):
    """An upstream that answers when it is told to."""

    async def script(reader, writer):
        left = asyncio.ensure_future(reader.read())
        told = asyncio.ensure_future(signal.wait())
        await asyncio.wait([left, told], return_when=asyncio.FIRST_COMPLETED)
        if not told.done():
            told.cancel()
            raise ConnectionResetError
        left.cancel()
        writer.write(answer)
        await writer.drain()

    return ScriptedUpstream(script)


def flights(gateway: Gateway):
    return list(gateway.worker.services.flights._under_way.values())


def leader_of(gateway: Gateway):
    """The exchange of the one call that is under way."""
    (flight,) = flights(gateway)
    return flight.leader


async def heard_by(gateway: Gateway, count: int, calls: int = 1) -> None:
    """Wait until so many clients listen to so many calls."""
    await until(lambda: [len(flights(gateway)), sum(len(each._seats) for each in flights(gateway))] == [calls, count])


async def asked(gateway: Gateway, body=ASK, **more):
    async with gateway.post(body, **more) as response:
        return response.status, response.headers, await response.read()


async def ties_out(gateway: Gateway, calls: int) -> Counter:
    """One event for each request that was sent, one line for each that came; returns the outcomes of the events."""
    events, records = await gateway.events(), gateway.records()
    outcomes = Counter(event["outcome"] for event in events)
    assert len({event["event_id"] for event in events}) == len(events)
    assert len(events) - outcomes["cached"] == calls == sum(event["attempts"] > 0 for event in events)
    assert len({record["request_id"] for record in records}) == len(records)
    assert gateway.total("tollgate_requests_total") == len(records)
    assert {event["request_id"] for event in events} <= {record["request_id"] for record in records}
    assert gateway.in_flight == 0
    assert len(gateway.worker.services.flights) == 0
    assert await gateway.mismatches() == []
    return outcomes


@pytest.mark.parametrize("form", [ASK, STREAM], ids=["plain", "stream"])
async def test_a_hundred_at_once_are_one_call(open_gateway: Open, form: dict) -> None:
    signal = asyncio.Event()
    events = [{**WHOLE, "object": "chat.completion.chunk", "usage": None,
               "choices": [{"index": 0, "delta": {"role": "assistant", "content": "deep"}, "finish_reason": "stop"}]},
              {**WHOLE, "object": "chat.completion.chunk", "choices": []}]  # fmt: skip
    stream = b"".join(b"data: " + json.dumps(each).encode() + b"\n\n" for each in events) + b"data: [DONE]\n\n"
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
    async with held(signal, plain_answer() if form is ASK else head + stream) as base_url:
        gateway = await open_gateway(**{"upstream.base_url": base_url})
        tasks = [asyncio.ensure_future(asked(gateway, form)) for _ in range(100)]
        await heard_by(gateway, 100)
        signal.set()
        answers = await asyncio.gather(*tasks)
        assert len({body for _, _, body in answers}) == 1
        assert {status for status, _, _ in answers} == {200}
        assert len({headers["x-request-id"] for _, headers, _ in answers}) == 100
        assert len({headers["x-ratelimit-remaining-requests"] for _, headers, _ in answers}) == 100
        said = Counter(headers["Cache-Status"] for _, headers, _ in answers)
        leader = "tollgate; fwd=uri-miss; stored" if form is ASK else "tollgate; fwd=uri-miss"
        assert said == {COLLAPSED: 99, leader: 1}
        assert await ties_out(gateway, 1) == {"ok": 1, "cached": 99}
        assert await gateway.charged() == (100, 8)
        paid, *saved = sorted(await gateway.events(), key=lambda event: event["outcome"] == "cached")
        assert {event["saved_pico_usd"] for event in saved} == {paid["cost_pico_usd"]}
        assert gateway.total("tollgate_cache_requests_total", result="collapsed", reason="uri-miss") == 99
        _, headers, _ = await asked(gateway, form)
        assert headers["Cache-Status"].startswith("tollgate; hit; ttl=")


async def test_all_have_a_piece_before_upstream_sends_the_next(open_gateway: Open) -> None:
    signals = [asyncio.Event() for _ in range(4)]
    ends = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'

    async def script(_, writer):
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
        for number, signal in enumerate(signals):
            await signal.wait()
            writer.write(b'data: {"choices":[{"index":0,"delta":{"content":"piece %d"}}]}\n\n' % number)
            await writer.drain()
        writer.write(ends)

    async with ScriptedUpstream(script) as base_url:
        gateway = await open_gateway(**{"upstream.base_url": base_url})
        request = gateway.request_bytes(STREAM)
        async with gateway.connection() as one, gateway.connection() as other, gateway.connection() as late:
            for _, writer in (one, other):
                writer.write(request)
            for number, signal in enumerate(signals):
                if number == 2:
                    late[1].write(request)
                    await heard_by(gateway, 3)
                signal.set()
                for reader, _ in (one, other):
                    await asyncio.wait_for(reader.readuntil(b"piece %d" % number), PATIENCE_SECONDS)
            rests = [
                await asyncio.wait_for(reader.readuntil(b"0\r\n\r\n"), PATIENCE_SECONDS)
                for reader, _ in (one, other, late)
            ]
        assert all(b"data: [DONE]" in rest for rest in rests)
        assert [b"piece 0" in rest for rest in rests] == [False, False, True], "from the beginning"
        # The usage did not come: nothing is kept, and two of three are still not charged for it.
        assert await ties_out(gateway, 1) == {"ok": 1, "cached": 2}


async def test_the_first_client_leaves_and_the_others_stay(open_gateway: Open) -> None:
    signal = asyncio.Event()
    async with held(signal, plain_answer()) as base_url:
        gateway = await open_gateway(**{"upstream.base_url": base_url})
        async with gateway.connection() as (_, writer):
            writer.write(gateway.request_bytes(ASK))
            await heard_by(gateway, 1)
            others = [asyncio.ensure_future(asked(gateway)) for _ in range(3)]
            await heard_by(gateway, 4)
        await until(lambda: leader_of(gateway).outlives)
        assert gateway.records() == [], "its call goes on"
        signal.set()
        assert {status for status, _, _ in await asyncio.gather(*others)} == {200}
        assert await ties_out(gateway, 1) == {"ok": 1, "cached": 3}
        assert await gateway.charged() == (4, 8)


async def test_all_clients_leave_and_upstream_is_stopped(open_gateway: Open) -> None:
    upstream = held(asyncio.Event(), b"")
    async with upstream as base_url:
        gateway = await open_gateway(**{"upstream.base_url": base_url})
        async with gateway.connection() as (_, one), gateway.connection() as (_, other):
            one.write(gateway.request_bytes(STREAM))
            await until(lambda: upstream.calls == 1)
            other.write(gateway.request_bytes(STREAM))
            await heard_by(gateway, 2)
            one.close()
            await until(lambda: leader_of(gateway).outlives)
            assert upstream.left == 0
        await until(lambda: upstream.left == 1)
        await until(lambda: gateway.in_flight == 0)
        (event,) = await gateway.events()
        assert (event["outcome"], event["status"], event["estimated"]) == ("client_gone", 499, True)
        assert [record["outcome"] for record in gateway.records()] == ["client_gone"] * 2
        requests, tokens = await gateway.charged()
        assert (requests, tokens) == (2, event["input_tokens"] + event["output_tokens"])


@pytest.mark.parametrize("status", [400, 500])
async def test_the_error_of_one_call_is_that_of_all(open_gateway: Open, status: int) -> None:
    signal = asyncio.Event()
    error = {"error": {"message": "no", "type": "server_error", "param": None, "code": "x"}}
    upstream = held(signal, plain_answer(error, f"{status} No"))
    async with upstream as base_url:
        gateway = await open_gateway(**{"upstream.base_url": base_url, "upstream.max_attempts": 2})
        tasks = [asyncio.ensure_future(asked(gateway)) for _ in range(10)]
        await heard_by(gateway, 10)
        signal.set()
        answers = await asyncio.gather(*tasks)
        assert [(found, json.loads(body)) for found, _, body in answers] == [(status, error)] * 10
        assert upstream.calls == (1 if status == 400 else 2)
        assert await ties_out(gateway, 1) == {"upstream_error": 1}
        assert gateway.total("tollgate_requests_total", outcome="upstream_error") == 10
        assert await gateway.charged() == (10, 0)


async def test_a_stream_that_breaks_is_whole_for_nobody(open_gateway: Open) -> None:
    signal = asyncio.Event()
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 100000\r\n\r\n"
    upstream = held(signal, head + b'data: {"choices":[{"index":0,"delta":{"content":"deep"}}]}\n\n' * 3)
    async with upstream as base_url:
        gateway = await open_gateway(**{"upstream.base_url": base_url})
        asking = [asyncio.ensure_future(gateway.raw(gateway.request_bytes(STREAM))) for _ in range(5)]
        await heard_by(gateway, 5)
        signal.set()
        answers = await asyncio.gather(*asking)
        assert not any(answer.clean for answer in answers)
        assert all(b'"code":"upstream_broken"' in answer.data for answer in answers)
        assert len({answer.body for answer in answers}) == 1
        assert await ties_out(gateway, 1) == {"upstream_error": 1}
        assert upstream.calls == 1


async def test_one_call_serves_every_form(open_gateway: Open) -> None:
    signal = asyncio.Event()
    async with held(signal, plain_answer()) as base_url:
        gateway = await open_gateway(**{"upstream.base_url": base_url})
        forms = [ASK, STREAM, COUNTED] * 4
        tasks = [asyncio.ensure_future(asked(gateway, ASK))]
        await heard_by(gateway, 1)
        tasks += [asyncio.ensure_future(asked(gateway, form)) for form in forms]
        await heard_by(gateway, 13)
        signal.set()
        (_, first, _), *others = await asyncio.gather(*tasks)
        assert first["Cache-Status"] == "tollgate; fwd=uri-miss; stored"
        for form, (status, headers, body) in zip(forms, others, strict=True):
            assert (status, headers["Cache-Status"]) == (200, COLLAPSED)
            if form is ASK:
                assert json.loads(body) == WHOLE
            else:
                chunks = [json.loads(event.removeprefix(b"data: ")) for event in body.split(b"\n\n")[:-2]]
                expected = WHOLE if form is COUNTED else {name: WHOLE[name] for name in WHOLE if name != "usage"}
                assert assemble(chunks) == expected
        assert await ties_out(gateway, 1) == {"ok": 1, "cached": 12}


async def test_keys_of_a_team_share_a_call_and_teams_do_not(open_gateway: Open, tmp_path) -> None:
    signal = asyncio.Event()
    upstream = held(signal, plain_answer())
    async with upstream as base_url:
        gateway = await open_gateway(**{"upstream.base_url": base_url})
        registry = SqlRegistry(gateway.engine, gateway.worker.services.clock, load_or_create_pepper(tmp_path))
        registry.add_team("others", "unlimited")
        keys = [gateway.key, registry.issue_key(TEAM, label="second").key, registry.issue_key("others", label="x").key]
        tasks = [
            asyncio.ensure_future(asked(gateway, headers={"Authorization": f"Bearer {key}"}))
            for key in keys
            for _ in "12"
        ]
        await heard_by(gateway, 6, calls=2)
        signal.set()
        await asyncio.gather(*tasks)
        assert await ties_out(gateway, 2) == {"ok": 2, "cached": 4}
        paid = [event["team"] for event in await gateway.events() if event["outcome"] == "ok"]
        assert sorted(paid) == [TEAM, "others"]
        assert upstream.calls == 2


async def test_a_client_that_does_not_read_holds_up_upstream_and_no_other_client(open_gateway: Open) -> None:
    sent = 0
    piece = b"data: " + b'{"choices":[{"index":0,"delta":{"content":"%s"}}]}' % (b"x" * 4_000) + b"\n\n"

    async def pour(_, writer):
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
        while sent < 400_000_000:
            writer.write(piece)
            await writer.drain()
            sent += len(piece)

    async with ScriptedUpstream(pour) as base_url:
        gateway = await open_gateway(**{"upstream.base_url": base_url})
        async with gateway.connection() as (deaf, writer), gateway.connection() as (reader, other):
            deaf._transport.pause_reading()
            reader._transport.pause_reading()
            writer.write(gateway.request_bytes(STREAM))
            await heard_by(gateway, 1)
            other.write(gateway.request_bytes(STREAM))
            await heard_by(gateway, 2)
            before = await at_rest(lambda: sent)
            assert before < 40_000_000, "buffers are full, and upstream waits"
            reader._transport.resume_reading()
            await asyncio.wait_for(reader.readexactly(sent + 30_000_000), PATIENCE_SECONDS)
            assert sent > before
        await until(lambda: gateway.in_flight == 0)
        outcomes = Counter(record["outcome"] for record in gateway.records())
        assert outcomes == {"client_gone": 2}


async def test_only_if_cached_on_the_wire(gateway: Gateway) -> None:
    only = {"Cache-Control": "only-if-cached"}
    status, headers, body = await asked(gateway, headers=only)
    assert (status, headers["Cache-Status"]) == (504, "tollgate; detail=only-if-cached")
    assert json.loads(body)["error"].keys() == {"message", "type", "param", "code"}
    assert json.loads(body)["error"]["code"] == "not_in_cache"
    assert (await gateway.events(), gateway.stats.requests) == ([], 0)
    assert await gateway.charged() == (0, 0)
    _, _, kept = await asked(gateway)
    status, headers, body = await asked(gateway, headers=only)
    assert (status, body, headers["Cache-Status"][:13]) == (200, kept, "tollgate; hit")
    for more in ("no-cache", "no-store", "max-age=0"):
        status, _, _ = await asked(gateway, headers={"Cache-Control": f"only-if-cached, {more}"})
        assert status == 504
    status, _, _ = await asked(gateway, {**CHAT, "temperature": 1}, headers=only)
    assert status == 504
    assert gateway.stats.requests == 1


async def test_several_lines_of_cache_control_are_one(gateway: Gateway) -> None:
    await asked(gateway)
    answer = await gateway.raw(gateway.request_bytes(ASK, "Cache-Control: max-age=60", "Cache-Control: no-cache"))
    assert answer.headers["cache-status"] == "tollgate; fwd=request; stored; detail=no-cache"


@pytest.mark.parametrize("seed", range(3))
async def test_clients_that_come_and_leave_as_they_like(gateway: Gateway, seed: int) -> None:
    chance = random.Random(seed)

    async def one(number: int) -> None:
        body = {**chance.choice([ASK, STREAM, COUNTED]), "seed": number % 4}
        data = gateway.request_bytes(body, "x-simulate-ttft-ms: 20", "x-simulate-chunk-ms: 3")
        patience = chance.choice([0, 0.01, 0.03, 0.06, PATIENCE_SECONDS, PATIENCE_SECONDS])
        await asyncio.sleep(chance.random() / 10)
        async with gateway.connection() as (_, writer):
            writer.write(data)
            try:
                async with asyncio.timeout(patience):
                    await read_answer(_)
            except TimeoutError:
                pass

    await asyncio.gather(*(one(number) for number in range(60)))
    await gateway.noticed()
    events = await gateway.events()
    sent = [event for event in events if event["outcome"] != "cached"]
    outcomes = await ties_out(gateway, len(sent))
    assert set(outcomes) <= {"ok", "cached", "client_gone"}
    assert outcomes["ok"] >= 4, "each question was answered once, at least"
    unread = sum(event["attempts"] for event in events) - gateway.stats.requests
    assert 0 <= unread <= outcomes["client_gone"]
    requests, tokens = await gateway.charged()
    assert len(events) <= requests <= len(gateway.records())
    assert tokens >= sum(event["input_tokens"] + event["output_tokens"] for event in sent)
    for form in (ASK, STREAM):
        _, headers, _ = await asked(gateway, {**form, "seed": 0}, ttft_ms=20, chunk_ms=3)
        assert headers["Cache-Status"].startswith("tollgate; hit")


async def test_an_error_says_what_the_cache_did_before_it(open_gateway: Open) -> None:
    with nobody() as base_url:
        await errors_say(await open_gateway(**{"upstream.base_url": base_url, "upstream.max_attempts": 1}))


async def errors_say(gateway: Gateway) -> None:
    other = {**ASK, "temperature": 1}
    for body, expected in ((ASK, "tollgate; fwd=uri-miss"), (other, "tollgate; fwd=bypass; detail=temperature")):
        status, headers, _ = await asked(gateway, body)
        assert (status, headers["Cache-Status"]) == (502, expected)
    huge = {"max_tokens": 16_000, "n": 100}
    for body, reason in ((ASK, "uri-miss"), (other, "temperature")):
        status, headers, _ = await asked(gateway, body | huge)
        assert (status, headers["Cache-Status"]) == (429, f"tollgate; detail={reason}")
    status, headers, _ = await asked(gateway, {"model": "nobody's"})
    assert status == 400
    assert "Cache-Status" not in headers, "the cache was not asked"


async def test_what_was_shared_saved_what_it_cost_though_its_tokens_are_counted_later(open_gateway: Open) -> None:
    """Upstream told no usage, and what was asked is too long to be counted at once."""
    long = {**ASK, "messages": [{"role": "user", "content": "word " * 15_000}]}
    signal = asyncio.Event()
    async with held(signal, plain_answer({name: WHOLE[name] for name in WHOLE if name != "usage"})) as base_url:
        gateway = await open_gateway(**{"upstream.base_url": base_url})
        asking = [asyncio.ensure_future(asked(gateway, long)) for _ in range(2)]
        await heard_by(gateway, 2)
        signal.set()
        told = await asyncio.gather(*asking)
        assert [status for status, _, _ in told] == [200, 200]
        leader, follower = sorted(await gateway.events(), key=lambda event: event["outcome"], reverse=True)
        assert (leader["outcome"], follower["outcome"]) == ("ok", "cached")
        assert leader["input_tokens"] == 15_008
        assert follower["saved_pico_usd"] == leader["cost_pico_usd"] > 0
        assert follower["input_tokens"] == leader["input_tokens"]
        assert not any("x-tollgate-saved-usd" in headers for _, headers, _ in told), "nothing that may yet change"
        assert gateway.total("tollgate_saved_usd_total") == pytest.approx(leader["cost_pico_usd"] / 1e12)
        assert await gateway.mismatches() == []
