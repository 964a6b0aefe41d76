import json

import pytest
from msgspec.structs import replace

from proxy.core.principal import CacheMode
from proxy.core.record import CacheResult
from proxy.core.replay import Form, explode
from proxy.pipeline.lookup import cache_status, look_up
from proxy.ports import CachedAnswer

BASE = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}], "temperature": 0}


def body(**changes: object) -> bytes:
    return json.dumps({**BASE, **changes}).encode()


def entry(clock, **changes) -> CachedAnswer:
    fields = {
        "status": 200,
        "headers": (("Content-Type", "application/json"),),
        "body": b"{}",
        "model": "gpt-4o-mini",
        "stored_at_ms": clock.ms,
        "ttl_ms": 60_000,
        "input_tokens": 1,
        "output_tokens": 2,
        "cost_pico_usd": 3,
    }
    return CachedAnswer(**fields | changes)


async def put(bench, exchange, answer: CachedAnswer) -> None:
    fill = await bench.services.cache.claim(exchange.address)
    assert await fill.store(answer)


async def looked_up(bench, raw: bytes, services=None, **options):
    exchange = await bench.exchange(raw, **options)
    await look_up(exchange, services or bench.services)
    return exchange


async def test_a_miss_and_then_a_hit(bench, clock):
    miss = await looked_up(bench, body())
    assert (miss.cache, miss.hit, cache_status(miss)) == (CacheResult.MISS, None, "tollgate; fwd=uri-miss")
    assert cache_status(miss, stored=True) == "tollgate; fwd=uri-miss; stored"
    await put(bench, miss, entry(clock))
    clock.ms += 10_500
    hit = await looked_up(bench, body())
    assert (hit.cache, cache_status(hit)) == (CacheResult.HIT, "tollgate; hit; ttl=49")
    assert hit.hit == entry(clock, stored_at_ms=clock.ms - 10_500)
    clock.ms += 49_500
    assert (await looked_up(bench, body())).cache is CacheResult.MISS


async def test_another_order_spelling_or_form_is_the_same_question(bench):
    digests = {
        (await looked_up(bench, raw)).address
        for raw in (
            body(),
            json.dumps(dict(reversed(BASE.items()))).encode(),
            body(temperature=0.0),
            body().replace(b'"hi"', b'"\\u0068i"'),
            json.dumps(BASE, indent=4).encode(),
            body(metadata={"run": "1"}, prompt_cache_key="k"),
            body(stream=True),
            body(stream=True, stream_options={"include_usage": True}),
            body(stream=True, stream_options={"include_obfuscation": False}),
        )
    }
    assert len(digests) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "gpt-4o"},
        {"messages": [{"role": "user", "content": "hi "}]},
        {"messages": [{"role": "system", "content": "hi"}]},
        {"max_tokens": 5},
        {"n": 2},
        {"a field nobody knows": 1},
        {"seed": 7},
        {"top_p": 0.5},
        {"user": "somebody"},
        {"safety_identifier": "somebody"},
        {"service_tier": "flex"},
    ],
    ids=str,
)
async def test_whatever_differs_is_another_question(bench, changes):
    assert (await looked_up(bench, body())).address != (await looked_up(bench, body(**changes))).address


async def test_headers_that_go_upstream_matter_and_those_that_do_not_go_there_do_not(bench):
    async def address(**headers: str):
        return (await looked_up(bench, body(), headers=headers)).address

    plain = await address()
    for headers in ({"OpenAI-Beta": "a=v1"}, {"x-new": "1"}):
        assert await address(**headers) not in (plain, await address(**dict.fromkeys(headers, "other")))
    for name in ("Authorization", "Cookie", "x-request-id", "X-Forwarded-For", "openai-organization", "User-Agent",
                 "Accept", "traceparent", "X-Stainless-Retry-Count"):  # fmt: skip
        assert await address(**{name: "1"}) == plain
    assert await address(**{"Connection": "x-hop", "x-hop": "1"}) == plain


@pytest.mark.parametrize("form", [{}, {"stream": True}], ids=["plain", "stream"])
@pytest.mark.parametrize("model", [None, BASE["model"]], ids=["all", "model"])
async def test_a_purge_forgets_and_beats_a_fill_in_flight(bench, registry, clock, form, model):
    kept = entry(clock, body=json.dumps(WHOLE).encode(), headers=HEADERS)
    await put(bench, await looked_up(bench, body(**form)), kept)
    other = await looked_up(bench, body(model="gpt-4o"))
    await put(bench, other, kept)
    filling = await looked_up(bench, body(seed=1, **form))
    registry.purge_cache("growth", model)
    bench.services.principals.invalidate()
    await put(bench, filling, kept)
    assert (await looked_up(bench, body(**form))).cache is CacheResult.MISS
    assert (await looked_up(bench, body(seed=1, **form))).cache is CacheResult.MISS
    kept_other = (await looked_up(bench, body(model="gpt-4o"))).cache is CacheResult.HIT
    assert kept_other is (model is not None)
    await put(bench, await looked_up(bench, body(**form)), kept)
    assert (await looked_up(bench, body(**form))).cache is CacheResult.HIT


async def test_a_purge_of_another_team_forgets_nothing(bench, registry, clock):
    registry.add_team("sales", "free")
    await put(bench, await looked_up(bench, body()), entry(clock))
    for model in (None, BASE["model"]):
        registry.purge_cache("sales", model)
        bench.services.principals.invalidate()
        assert (await looked_up(bench, body())).cache is CacheResult.HIT


async def test_the_query_matters_and_so_does_the_team(bench, registry, clock):
    one = await looked_up(bench, body())
    assert one.address != (await looked_up(bench, body(), query="beta=true")).address
    await put(bench, one, entry(clock))
    registry.add_team("sales", "free")
    bench.key = registry.issue_key("sales", label="x").key
    other = await looked_up(bench, body())
    assert other.address != one.address
    assert other.hit is None
    assert await bench.services.cache.get(replace(one.address, team="sales")) is None


@pytest.mark.parametrize(
    ("changes", "detail"),
    [
        ({"temperature": 1}, "temperature"),
        ({"temperature": None}, "temperature"),
        ({"store": True}, "store"),
        ({"web_search_options": {"a": 1}}, "web_search_options"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"modalities": ["text", "audio"]}, "audio"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "image_url"),
    ],
    ids=str,
)
async def test_what_cannot_be_repeated_is_not_looked_up(bench, changes, detail):
    exchange = await looked_up(bench, body(**changes))
    assert (exchange.cache, exchange.address) == (CacheResult.BYPASS, None)
    assert cache_status(exchange) == f"tollgate; fwd=bypass; detail={detail}"


async def test_a_team_that_wants_everything_kept(bench, registry):
    registry.set_team("growth", cache_mode=CacheMode.ALL)
    bench.services.principals.invalidate()
    part = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
    remote = [{"role": "user", "content": [part]}]
    for changes in ({"temperature": 1}, {"messages": remote}, {"temperature": None, "messages": remote}):
        assert (await looked_up(bench, body(**changes))).cache is CacheResult.MISS
    for changes in ({"temperature": 1}, {"messages": remote}):
        assert (await looked_up(bench, body(store=True, **changes))).cache_reason == "store"


async def test_a_team_that_wants_nothing_kept(bench, registry):
    registry.set_team("growth", cache_mode=CacheMode.OFF)
    bench.services.principals.invalidate()
    exchange = await looked_up(bench, body())
    assert (exchange.cache, exchange.cache_reason) == (CacheResult.BYPASS, "off")


async def test_a_cache_that_is_off(bench):
    exchange = await looked_up(bench, body(), bench.with_policy(cache_enabled=False))
    assert (exchange.cache, exchange.cache_reason, exchange.address) == (CacheResult.BYPASS, "disabled", None)


@pytest.mark.parametrize("directives", ["no-store", "No-Store", "max-age=0, no-store", " no-cache ,no-store"])
async def test_a_client_that_wants_nothing_kept(bench, directives):
    exchange = await looked_up(bench, body(), headers={"Cache-Control": directives})
    assert (exchange.cache, exchange.cache_reason, exchange.address) == (CacheResult.BYPASS, "no-store", None)


async def test_a_client_that_wants_it_fresh_renews_the_entry(bench, clock):
    first = await looked_up(bench, body())
    await put(bench, first, entry(clock))
    fresh = await looked_up(bench, body(), headers={"Cache-Control": "no-cache"})
    assert (fresh.cache, fresh.hit, fresh.address) == (CacheResult.MISS, None, first.address)
    assert cache_status(fresh) == "tollgate; fwd=request; detail=no-cache"


async def test_the_digest_is_told_to_nobody(bench):
    exchange = await looked_up(bench, body())
    assert exchange.address.digest.hex() not in cache_status(exchange, stored=True)


WHOLE = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1_741_570_283,
    "model": "gpt-4o-mini",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 2},
}
STRANGE = {**WHOLE, "a member of tomorrow": 1}
HEADERS = (("content-type", "application/json; charset=utf-8"), ("openai-version", "2020-10-01"))


def events(chunks) -> bytes:
    return b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks) + b"data: [DONE]\n\n"


def chunks_in(stream: bytes):
    return [json.loads(event.removeprefix(b"data: ")) for event in stream.split(b"\n\n")[:-2]]


STRANGE_CHUNKS = [{**chunk, "a member of tomorrow": 1} for chunk in explode(WHOLE, include_usage=True)]
STREAMED = {"stream": True}
STREAMED_WITH_USAGE = {"stream": True, "stream_options": {"include_usage": True, "include_obfuscation": True}}


@pytest.mark.parametrize("changes", [STREAMED, STREAMED_WITH_USAGE], ids=["bare", "usage"])
async def test_a_plain_entry_is_told_as_a_stream(bench, clock, changes):
    plain = await looked_up(bench, body())
    kept = entry(clock, body=json.dumps(WHOLE).encode(), headers=HEADERS)
    await put(bench, plain, kept)
    streamed = await looked_up(bench, body(**changes))
    assert streamed.cache is CacheResult.HIT
    assert streamed.hit.headers == (("Content-Type", "text/event-stream; charset=utf-8"), HEADERS[1])
    assert streamed.hit.body.endswith(b"data: [DONE]\n\n")
    assert chunks_in(streamed.hit.body) == explode(WHOLE, include_usage=changes is STREAMED_WITH_USAGE)
    assert (streamed.hit.cost_pico_usd, streamed.hit.stored_at_ms) == (kept.cost_pico_usd, kept.stored_at_ms)
    assert (await looked_up(bench, body())).hit == kept


async def test_a_plain_answer_that_no_stream_can_tell_is_never_one(bench, clock):
    plain = await looked_up(bench, body())
    kept = entry(clock, body=json.dumps(STRANGE).encode(), headers=HEADERS)
    await put(bench, plain, kept)
    streamed = await looked_up(bench, body(**STREAMED))
    assert (streamed.cache, streamed.hit, cache_status(streamed)) == (CacheResult.MISS, None, "tollgate; fwd=uri-miss")
    # What it is answered with has a place of its own, and takes none away.
    assert streamed.address != plain.address
    told = entry(clock, body=events(STRANGE_CHUNKS), form=Form.STREAM)
    await put(bench, streamed, told)
    assert (await looked_up(bench, body())).hit == kept
    again = await looked_up(bench, body(**STREAMED))
    assert chunks_in(again.hit.body) == [
        {name: value for name, value in chunk.items() if name != "usage"} for chunk in STRANGE_CHUNKS[:-1]
    ]
    assert chunks_in((await looked_up(bench, body(**STREAMED_WITH_USAGE))).hit.body) == STRANGE_CHUNKS


async def test_a_stream_that_no_plain_answer_can_tell_is_never_one(bench, clock):
    streamed = await looked_up(bench, body(**STREAMED_WITH_USAGE))
    told = entry(clock, body=events(STRANGE_CHUNKS), form=Form.STREAM)
    await put(bench, streamed, told)
    plain = await looked_up(bench, body())
    assert (plain.cache, plain.hit) == (CacheResult.MISS, None)
    assert plain.address != streamed.address
    kept = entry(clock, body=json.dumps(STRANGE).encode())
    await put(bench, plain, kept)
    assert (await looked_up(bench, body())).hit == kept
    assert chunks_in((await looked_up(bench, body(**STREAMED_WITH_USAGE))).hit.body) == STRANGE_CHUNKS


@pytest.mark.parametrize("form", Form)
async def test_an_entry_bound_to_a_form_does_not_serve_the_other_wherever_it_lies(bench, clock, form):
    """Even were it under the digest of the other form."""
    asked = body() if form is Form.STREAM else body(**STREAMED)
    strange = events(STRANGE_CHUNKS) if form is Form.STREAM else json.dumps(STRANGE).encode()
    bound = entry(clock, body=strange, form=form)
    for _ in range(2):
        exchange = await looked_up(bench, asked)
        assert exchange.hit is None
        await put(bench, exchange, bound)
    assert (await looked_up(bench, asked)).hit is None


async def test_garbage_is_a_miss_for_a_stream(bench, clock):
    plain = await looked_up(bench, body())
    for form in Form:
        await put(bench, plain, entry(clock, body=b"\xff{", form=form))
        assert (await looked_up(bench, body(**STREAMED))).cache is CacheResult.MISS


async def test_a_large_entry_is_told_all_the_same(bench, clock):
    content = "žluť" * 100_000
    choice = {**WHOLE["choices"][0], "message": {"role": "assistant", "content": content}}
    plain = await looked_up(bench, body())
    kept = entry(clock, body=json.dumps({**WHOLE, "choices": [choice]}, ensure_ascii=False).encode())
    await put(bench, plain, kept)
    told = chunks_in((await looked_up(bench, body(**STREAMED))).hit.body)
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in told) == content
