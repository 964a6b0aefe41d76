"""What was understood of late changes no answer, is each team's own, and is bounded."""

import dataclasses
import json
from itertools import chain

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import structs
from multidict import CIMultiDict

from proxy.core.asked import Asked
from proxy.core.chat import parse_chat
from proxy.core.errors import LimitReached, ModelNotFound
from proxy.core.principal import CacheMode
from proxy.core.strict_json import parse_object
from proxy.core.tiers import Limits
from proxy.pipeline.admit import admit
from proxy.pipeline.interpret import interpret, takes_long
from proxy.pipeline.lookup import look_up
from proxy.pipeline.recent import Recent, Understood
from proxy.ports import CacheAddress, CachedAnswer

COMPLETION = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1_700_000_000,
    "model": "gpt-4o-mini",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
}
BASE = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}], "temperature": 0}


def raw(**changes):
    return json.dumps({**BASE, **changes}).encode()


async def understood(bench, body, services=None, *, headers=(), query="", **team):
    """A request that was interpreted and looked up, of a team with these fields."""
    services = services or bench.services
    exchange = await bench.exchange(raw())
    principal = exchange.principal
    exchange.principal = structs.replace(principal, team=structs.replace(principal.team, **team))
    exchange.headers, exchange.query = CIMultiDict(headers), query
    await interpret(exchange, body, services)
    await look_up(exchange, services)
    return exchange


async def answered(bench, *of, **kind):
    """The same, whose answer is there from then on; when this returns, it has been a hit once."""
    exchange = await understood(bench, *of, **kind)
    if exchange.address is not None and exchange.hit is None:
        answer = CachedAnswer(200, (), json.dumps(COMPLETION).encode(), "gpt-4o-mini", bench.clock.ms, 60_000, 1, 2, 3)
        assert await (await bench.services.cache.claim(exchange.address)).store(answer)
        exchange = await understood(bench, *of, **kind)
        assert exchange.hit is not None
    return exchange


async def test_what_comes_again_is_not_read_again(bench):
    first, again = [await answered(bench, raw()) for _ in range(2)]
    assert again.asked is first.asked
    assert again.address is first.address
    assert len(bench.services.recent) == 1


async def test_what_took_long_to_estimate_is_not_estimated_again(bench):
    schema = {"type": "json_schema", "json_schema": {"name": "f", "schema": {"enum": [{}] * 10_000}}}
    body = raw(response_format=schema)
    assert takes_long(body)
    first, again = [await answered(bench, body) for _ in range(2)]
    assert again.asked is first.asked, "it is remembered"
    assert first.prompt_tokens == again.prompt_tokens == first.kind.estimate(first.asked)


async def test_what_comes_once_is_not_remembered(bench):
    for number in range(3):
        await understood(bench, raw(seed=number))
    assert len(bench.services.recent) == 0


async def refused(bench, body, **team):
    """A request that its limits refuse."""
    exchange = await understood(bench, body, **team, limits=Limits(1, 100_000))
    await admit(exchange, bench.services)
    exchange = await understood(bench, body, **team, limits=Limits(1, 100_000))
    with pytest.raises(LimitReached):
        await admit(exchange, bench.services)
    return exchange


async def test_what_is_refused_is_not_read_again_when_it_comes_again(bench):
    first, again = await refused(bench, raw()), await understood(bench, raw())
    assert again.asked is first.asked
    assert again.address is first.address
    assert again.prompt_tokens == again.kind.estimate(again.asked)
    assert len(bench.services.recent) == 1


@pytest.mark.parametrize("team", [{"cache_mode": CacheMode.OFF}, {"cache_mode": CacheMode.DETERMINISTIC}])
async def test_what_is_refused_and_may_not_be_kept_is_not_remembered(bench, team):
    await refused(bench, raw(temperature=1), **team)
    assert len(bench.services.recent) == 0


@pytest.mark.parametrize(
    "other",
    [
        {"name": "another"},
        {"cache_secret": b"another secret of 32 bytes......"},
        {"cache_salts": {"gpt-4o-mini": b"purged"}},
        {"headers": (("X-Experiment", "b"),)},
        {"query": "beta=true"},
    ],
    ids=str,
)
async def test_the_answer_is_another_ones_where_anything_beside_the_body_is(bench, other):
    one, two = await answered(bench, raw()), await answered(bench, raw(), **other)
    assert two.address != one.address
    assert (await understood(bench, raw())).address == one.address


async def test_no_team_learns_what_another_asked(bench):
    one = await answered(bench, raw())
    assert (await understood(bench, raw(), name="another")).asked is not one.asked


@pytest.mark.parametrize(
    ("body", "team"),
    [
        (raw(temperature=1), {}),
        (raw(store=True), {"cache_mode": CacheMode.ALL}),
        (raw(), {"cache_mode": CacheMode.OFF}),
    ],
)
async def test_what_may_not_be_kept_is_not_remembered(bench, body, team):
    for _ in range(2):
        assert (await answered(bench, body, **team)).address is None
    assert len(bench.services.recent) == 0


async def test_a_reason_that_one_mode_waives_holds_under_the_other(bench):
    waived = await answered(bench, raw(temperature=1), cache_mode=CacheMode.ALL)
    assert waived.address is not None
    held = await understood(bench, raw(temperature=1))
    assert (held.address, held.cache_reason) == (None, "temperature")


async def test_what_was_understood_opens_no_model_that_is_closed_since(bench):
    await answered(bench, raw())
    with pytest.raises(ModelNotFound):
        await understood(bench, raw(), models=frozenset({"gpt-4o"}))


values = st.fixed_dictionaries(
    {
        "body": st.sampled_from([raw(), raw(seed=1), raw(stream=True), raw(temperature=1), raw(user="u")]),
        "headers": st.lists(st.sampled_from([("OpenAI-Beta", "x"), ("X-A", "1"), ("x-a", "2"), ("Accept", "*/*")])),
        "query": st.sampled_from(["", "a=1"]),
        "cache_mode": st.sampled_from(list(CacheMode)),
        "cache_secret": st.sampled_from([b"s" * 32, b"t" * 32]),
        "cache_salts": st.sampled_from([{}, {"gpt-4o-mini": b"1"}]),
        "name": st.sampled_from(["growth", "another"]),
    }
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(values, min_size=2, max_size=8))
async def test_remembering_changes_nothing(bench, requests):
    remembering = dataclasses.replace(bench.services, recent=Recent())
    for each in requests:
        with_memory = await answered(bench, services=remembering, **each)
        without = await understood(bench, services=dataclasses.replace(bench.services, recent=Recent()), **each)
        assert with_memory.asked == without.asked
        assert with_memory.address == without.address
        assert (with_memory.cache, with_memory.cache_reason) == (without.cache, without.cache_reason)


def test_the_latest_are_kept_within_a_bound():
    recent = Recent()

    def one(number, size):
        body = raw(user=f"{number:06}" + "x" * size)
        return Understood(("growth", "chat", "", body), "gpt-4o-mini", parse_chat(parse_object(body), body))

    first = one(0, 60_000)
    recent.keep(first)
    for number in range(1, 200):
        assert recent.find(first.body) is first, "what is asked for goes last"
        recent.keep(one(number, 60_000))
    assert len(recent) * 60_000 <= 8 * 1024 * 1024 < (len(recent) + 2) * 61_500
    too_large = one(1_000, 70_000)
    recent.keep(too_large)
    assert recent.find(too_large.body) is None


async def test_heads_count_as_bodies_do(bench):
    recent = bench.services.recent

    def held():
        assert recent._bytes == sum(each.held_bytes for each in recent._kept.values())
        origins = [origin for each in recent._kept.values() for origin in each.addresses]
        return sum(len(path) + sum(map(len, chain(*headers))) for *_, path, _, headers in origins)

    await refused(bench, raw())
    for number in range(3):
        for copy in range(6):
            of = {"headers": (("X-A", f"{copy}" + "x" * 60_000),), "limits": Limits(1, 100_000)}
            exchange = await understood(bench, raw(seed=number), **of)
            with pytest.raises(LimitReached):
                await admit(exchange, bench.services)
    assert len(recent) == 4
    assert 3 * 6 * 60_000 < held() < recent._bytes < 3 * 6 * 61_000
    for number in range(40):
        await answered(bench, raw(seed=number))
        for copy in range(6):
            await understood(bench, raw(seed=number), query=f"{copy}" + "q" * 60_000)
            assert held() < recent._bytes <= 8 * 1024 * 1024
    assert raw(seed=39) in {body for *_, body in recent._kept}, "the latest stays"
    assert raw(seed=9) not in {body for *_, body in recent._kept}


def test_one_that_had_to_go_while_it_was_used_counts_when_it_is_kept_again():
    recent = Recent()
    asked = parse_chat(parse_object(raw()), raw())
    one = Understood(("growth", "chat", "", b"one"), "gpt-4o-mini", asked)

    def fill(name):
        for number in range(4_096):
            recent.keep(Understood(("growth", "chat", "", b"%s %04d" % (name, number)), "gpt-4o-mini", asked))

    recent.keep(one)
    fill(b"two")
    full_bytes = recent._bytes
    one.note((b"", b"", "POST", "p" * 50_000, "", ()), None)
    recent.look_again(one)
    assert recent._bytes == full_bytes, "it is not here"
    recent.keep(one)
    assert recent._bytes > full_bytes + 50_000 - 100
    fill(b"ten")
    assert recent._bytes == full_bytes


@pytest.mark.parametrize("value", ["[]", "{}", '"ab"', '[{"a":[]}]'])
def test_many_values_in_few_bytes_fill_no_memory_and_keep_no_collector_busy(value):
    recent = Recent()
    last = None
    for number in range(16):
        body = f'{{"model":"gpt-4o-mini","n{number}":[{",".join([value] * (60_000 // (len(value) + 1)))}]}}'.encode()
        last = Understood(("growth", "chat", "", body), "gpt-4o-mini", Asked(parse_object(body), body, "gpt-4o-mini"))
        recent.keep(last)
    assert recent.find(last.body) is last
    kept = [list(_values(each.asked.body)) for each in recent._kept.values()]
    assert sum(map(len, kept)) < 140_000
    assert sum(isinstance(each, (dict, list)) for values in kept for each in values) < 70_000


def _values(value):
    """A value and all in it."""
    yield value
    if isinstance(value, (dict, list)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _values(each)


def test_so_many_are_kept_at_most_however_small():
    recent = Recent()
    asked = parse_chat(parse_object(raw()), raw())
    for number in range(5_000):
        recent.keep(Understood(("growth", "chat", "", b"%d" % number), "gpt-4o-mini", asked))
    assert len(recent) == 4_096
    assert recent.find(("growth", "chat", "", b"4999")) is not None
    assert recent.find(("growth", "chat", "", b"0")) is None


def test_it_shows_nothing_of_what_was_asked():
    body = raw(user="secret")
    one = Understood(("growth", "chat", "", body), "gpt-4o-mini", parse_chat(parse_object(body), body))
    one.note((b"secret", b"", "POST", "", "", ()), CacheAddress("growth", b"secret", b"secret"))
    assert repr(one) == "Understood(named='gpt-4o-mini')"
    assert "secret" not in str(one.__rich_repr__())


def test_addresses_of_one_body_are_bounded():
    body = raw()
    one = Understood(("growth", "chat", "", body), "gpt-4o-mini", parse_chat(parse_object(body), body))
    for number in range(100):
        one.note((b"", b"", "POST", "", "", (("x-run", str(number)),)), None)
    assert len(one.addresses) <= 8
