import itertools
import json
from dataclasses import replace
from datetime import date
from importlib import resources

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from proxy.core.price_table import day_ms
from proxy.core.pricing import (
    LongContext,
    PriceBook,
    Rates,
    ServiceTier,
    Unpriced,
    cost_pico_usd,
    may_go_unpriced,
    service_tier_of,
    worst_case,
)
from proxy.core.usage import NO_USAGE, Usage

SHIPPED = json.loads(resources.files("proxy").joinpath("data/openai_prices.json").read_text())
BOOK = PriceBook.from_mapping(SHIPPED)
DAY_MS = 86_400_000
AS_OF_MS = 1_795_219_200_000  # 2026-11-21T00:00:00Z

prices = st.sampled_from(BOOK.models()).map(lambda model: BOOK.price(model, AS_OF_MS))
tiers = st.sampled_from([None, "auto", "default", "flex", "priority", "batch", "ultrafast"])
counts = st.integers(0, 2_000_000)


@st.composite
def usages(draw, most=2_000_000):
    input_tokens, output_tokens = draw(st.integers(0, most)), draw(st.integers(0, most))
    cached = draw(st.integers(0, input_tokens))
    written = draw(st.integers(0, input_tokens - cached))
    heard = draw(st.integers(0, input_tokens - cached - written))
    return Usage(
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        cached_input_tokens=cached,
        cache_write_tokens=written,
        reasoning_tokens=draw(st.integers(0, output_tokens)),
        audio_input_tokens=heard,
        audio_output_tokens=draw(st.integers(0, output_tokens)),
    )


def row(**prices_by_kind):
    return {"prices": {"default": {"input": 10, "output": 20} | prices_by_kind}}


def test_the_shipped_table_is_whole_and_dated():
    assert len(BOOK.models()) == 119
    for model in BOOK.models():
        price = BOOK.price(model, AS_OF_MS)
        assert price.price_id == f"{model}@2026-11-21"
        assert price.valid_from_ms == AS_OF_MS
        assert BOOK.by_id(price.price_id) is price
        sheets = [price.rates] + ([price.long_context.rates] if price.long_context else [])
        for rates in (sheet[tier] for sheet in sheets for tier in ServiceTier):
            assert all(type(getattr(rates, kind)) is int for kind in Rates.__slots__)
            assert rates.cached_input <= rates.input


def test_a_known_request_costs_what_the_price_page_says():
    # 1,000 input (400 of them cached) and 500 output tokens at $0.15, $0.075 and $0.60 per million.
    usage = Usage(input_tokens=1_000, output_tokens=500, cached_input_tokens=400)
    assert cost_pico_usd(BOOK.price("gpt-4o-mini", AS_OF_MS), usage) == 600 * 150_000 + 400 * 75_000 + 500 * 600_000


def test_a_service_tier_has_prices_of_its_own():
    price = BOOK.price("gpt-4o-mini", AS_OF_MS)
    usage = Usage(input_tokens=10, output_tokens=10)
    assert cost_pico_usd(price, usage, "priority") == 10 * 250_000 + 10 * 1_000_000
    assert cost_pico_usd(price, usage, "batch") == 10 * 75_000 + 10 * 300_000
    for base in (None, "auto", "default", "scale", ""):
        assert cost_pico_usd(price, usage, base) == 10 * 150_000 + 10 * 600_000


def test_long_context_rates_hold_for_the_whole_request():
    price = BOOK.price("gpt-5.4", AS_OF_MS)
    assert cost_pico_usd(price, Usage(input_tokens=272_000, output_tokens=1)) == 272_000 * 2_500_000 + 15_000_000
    assert cost_pico_usd(price, Usage(input_tokens=272_001, output_tokens=1)) == 272_001 * 5_000_000 + 22_500_000
    cached = Usage(input_tokens=300_000, cached_input_tokens=300_000)
    assert cost_pico_usd(price, cached, "flex") == 300_000 * 250_000


def test_a_missing_kind_has_the_price_of_its_base_kind():
    book = PriceBook.from_mapping({"as_of": "2026-01-01", "models": {"m": row() | {}}})
    rates = book.price("m", 0).rates[ServiceTier.DEFAULT]
    assert rates == Rates(input=10, cached_input=10, cache_write=10, output=20, audio_input=10, audio_output=20)


def test_a_missing_kind_of_a_tier_falls_back_within_the_tier_first():
    sheets = {"default": {"input": 10, "output": 20, "cached_input": 1}, "flex": {"input": 5}}
    rates = PriceBook.from_mapping({"models": {"m": {"prices": sheets}}}).price("m", 0).rates[ServiceTier.FLEX]
    assert (rates.input, rates.cached_input, rates.output) == (5, 5, 20)


@given(prices, usages(), tiers)
def test_the_cost_is_the_sum_of_its_parts(price, usage, tier):
    rates = price.rates_for(usage.input_tokens, tier)
    plain = usage.input_tokens - usage.cached_input_tokens - usage.cache_write_tokens - usage.audio_input_tokens
    assert cost_pico_usd(price, usage, tier) == (
        plain * rates.input
        + usage.cached_input_tokens * rates.cached_input
        + usage.cache_write_tokens * rates.cache_write
        + usage.audio_input_tokens * rates.audio_input
        + (usage.output_tokens - usage.audio_output_tokens) * rates.output
        + usage.audio_output_tokens * rates.audio_output
    )


@given(prices, usages(most=20_000), st.integers(1, 10), tiers)
def test_the_cost_is_linear_below_the_long_context(price, usage, times, tier):
    multiple = Usage(*(getattr(usage, kind) * times for kind in Usage.__struct_fields__))
    assert cost_pico_usd(price, multiple, tier) == times * cost_pico_usd(price, usage, tier)


@given(prices, st.builds(Usage, *[counts] * 7), tiers)
def test_the_cost_is_never_negative_and_never_above_the_worst_case(price, usage, tier):
    worst = worst_case(price, usage.input_tokens, usage.output_tokens, tier)
    assert 0 <= cost_pico_usd(price, usage, tier) <= worst


@given(prices, usages(), counts, counts, tiers)
def test_the_worst_case_is_that_of_every_smaller_request_too(price, usage, more_input, more_output, tier):
    worst = worst_case(price, usage.input_tokens + more_input, usage.output_tokens + more_output, tier)
    assert cost_pico_usd(price, usage, tier) <= worst


@pytest.mark.parametrize("size", [1_000, 2_000_000])
@pytest.mark.parametrize("output", ["output_tokens", "audio_output_tokens"])
@pytest.mark.parametrize("read", ["input_tokens", "cached_input_tokens", "cache_write_tokens", "audio_input_tokens"])
def test_the_worst_case_is_never_passed_whatever_kind_all_of_it_is(read, output, size):
    usage = structs.replace(Usage(size, size), **{read: size, output: size})
    for model, tier in itertools.product(BOOK.models(), ServiceTier):
        price = BOOK.price(model, AS_OF_MS)
        assert cost_pico_usd(price, usage, tier) <= worst_case(price, size, size, tier)


@given(prices, tiers)
def test_nothing_costs_nothing(price, tier):
    assert cost_pico_usd(price, NO_USAGE, tier) == 0


KINDS_AT_ONE = Usage(12, 2, 1, 1, 0, 1, 1)
"""Some of every kind that has a price."""


@given(prices)
def test_what_is_free_costs_nothing_and_the_rest_something(price):
    costs = [cost_pico_usd(price, KINDS_AT_ONE, tier) for tier in ServiceTier]
    assert price.is_free == (not any(costs))


@pytest.mark.parametrize("tier", ServiceTier)
@pytest.mark.parametrize("kind", Rates.__slots__)
def test_one_rate_anywhere_is_not_free(tier, kind):
    free = BOOK.price("omni-moderation-latest", AS_OF_MS)
    assert free.is_free
    rates = free.rates | {tier: replace(free.rates[tier], **{kind: 1})}
    assert not replace(free, rates=rates).is_free
    assert not replace(free, long_context=LongContext(1_000, rates)).is_free


def test_a_row_holds_from_its_date_and_the_oldest_before():
    book = PriceBook.from_mapping(
        {"models": {"m": [row(input=2) | {"valid_from": "1970-01-03"}, row(input=1) | {"valid_from": "1970-01-02"}]}}
    )

    def id_at(at_ms):
        return book.price("m", at_ms).price_id

    assert id_at(0) == "m@1970-01-02"
    assert id_at(2 * DAY_MS - 1) == "m@1970-01-02"
    assert id_at(2 * DAY_MS) == "m@1970-01-03"
    assert cost_pico_usd(book.by_id("m@1970-01-02"), Usage(input_tokens=5)) == 5


def test_an_operators_row_holds_alone_from_its_day_on_and_this_book_before():
    later = BOOK.with_overrides({"as_of": "2027-01-01", "models": {"gpt-4o-mini": row(), "own": row()}})
    assert later.price("gpt-4o-mini", AS_OF_MS).price_id == "gpt-4o-mini@2026-11-21"
    assert later.price("gpt-4o-mini", AS_OF_MS + 60 * DAY_MS).price_id == "gpt-4o-mini@2027-01-01"
    assert len(later.models()) == 120
    earlier = BOOK.with_overrides({"as_of": "2026-06-01", "models": {"gpt-4o-mini": row()}})
    assert earlier.price("gpt-4o-mini", AS_OF_MS).price_id == "gpt-4o-mini@2026-06-01"
    assert earlier.rows("gpt-4o") == BOOK.rows("gpt-4o")
    always = BOOK.with_overrides({"models": {"gpt-4o-mini": row()}})
    assert always.price("gpt-4o-mini", AS_OF_MS).rates[ServiceTier.DEFAULT].input == 10
    same_day = BOOK.with_overrides({"as_of": "2026-11-21", "models": {"gpt-4o-mini": row(input=7)}})
    assert same_day.price("gpt-4o-mini", AS_OF_MS).rates[ServiceTier.DEFAULT].input == 7
    assert BOOK.price("gpt-4o-mini", AS_OF_MS).rates[ServiceTier.DEFAULT].input == 150_000


def test_a_row_that_holds_no_more_is_still_found_by_its_id():
    # A request begun under it may have to be charged by it after a restart with another table.
    book = BOOK.with_overrides({"models": {"gpt-4o-mini": row()}}).with_overrides({"models": {"gpt-4o-mini": row()}})
    assert book.by_id("gpt-4o-mini@2026-11-21") == BOOK.price("gpt-4o-mini", AS_OF_MS)
    assert [each.price_id for each in book.rows("gpt-4o-mini")] == ["gpt-4o-mini@undated"]


@given(
    st.dictionaries(st.integers(0, 40), st.integers(1, 9), min_size=1),
    st.dictionaries(st.integers(0, 40), st.integers(1, 9), min_size=1),
    st.integers(0, 45),
)
def test_laying_over_leaves_the_past_and_takes_the_rest(theirs, own, day):
    def table(days):
        return {"models": {"m": [row(input=price) | {"valid_from": at(start)} for start, price in days.items()]}}

    def at(number):
        return date.fromordinal(date(2026, 1, 1).toordinal() + number).isoformat()

    base, mine = PriceBook.from_mapping(table(theirs)), PriceBook.from_mapping(table(own))
    now_ms = day_ms(date(2026, 1, 1)) + day * DAY_MS
    expected = mine if day >= min(own) or min(theirs) >= min(own) else base
    assert base.with_overrides(table(own)).price("m", now_ms) == expected.price("m", now_ms)


def test_a_tier_without_long_prices_has_the_dearer_of_its_own_and_the_defaults_long_ones():
    # gpt-5.4: priority $5 and $30, default above 272,000 tokens $5 and $22.50, each per million.
    rates = BOOK.price("gpt-5.4", AS_OF_MS).long_context.rates[ServiceTier.PRIORITY]
    assert (rates.input, rates.output) == (5_000_000, 30_000_000)


WORKED = {
    # input, of which cached, written and audio; output, of which audio -> picodollars, worked out by hand
    ("gpt-5", None, (1_000_000, 1_000_000, 200_000, 0, 0, 0)): 1_000_000_000_000 + 25_000_000_000 + 10_000_000_000_000,
    ("gpt-5", "flex", (1_000, 1_000, 1_000, 0, 0, 0)): 62_500_000 + 5_000_000_000,
    ("gpt-5", "batch", (1_000, 1_000, 1_000, 0, 0, 0)): 625_000_000 + 5_000_000_000,
    ("gpt-4.1", "priority", (10, 10, 4, 0, 0, 0)): 6 * 3_500_000 + 4 * 875_000 + 10 * 14_000_000,
    ("gpt-audio", None, (500, 300, 0, 0, 200, 250)): 750_000_000 + 6_400_000_000 + 500_000_000 + 16_000_000_000,
    ("gpt-5.6", None, (1_000, 10, 300, 200, 0, 0)): 500 * 4_000_000 + 300 * 400_000 + 200 * 5_000_000 + 10 * 20_000_000,
    ("gpt-5.6", "priority", (272_001, 1, 0, 272_001, 0, 0)): 272_001 * 20_000_000 + 60_000_000,
    ("text-embedding-3-small", None, (8_191, 0, 0, 0, 0, 0)): 8_191 * 20_000,
    ("omni-moderation-latest", None, (32_768, 0, 0, 0, 0, 0)): 0,
}  # fmt: skip


@pytest.mark.parametrize(("case", "pico_usd"), WORKED.items(), ids=str)
def test_worked_examples(case, pico_usd):
    model, tier, (read, said, cached, written, heard, spoken) = case
    usage = Usage(read, said, cached_input_tokens=cached, cache_write_tokens=written,
                  reasoning_tokens=said, audio_input_tokens=heard, audio_output_tokens=spoken)  # fmt: skip
    assert cost_pico_usd(BOOK.price(model, AS_OF_MS), usage, tier) == pico_usd


def test_every_shipped_tier_has_a_price_for_what_is_read_and_for_what_is_said():
    for model, record in SHIPPED["models"].items():
        for sheets in (record["prices"], record.get("long_context", {}).get("prices", {})):
            assert all({"input", "output"} <= sheet.keys() for sheet in sheets.values()), model


@given(prices, usages(), tiers)
def test_a_cost_is_an_integer_and_reasoning_changes_none(price, usage, tier):
    cost = cost_pico_usd(price, usage, tier)
    assert type(cost) is int
    assert cost_pico_usd(price, structs.replace(usage, reasoning_tokens=0), tier) == cost


@pytest.mark.parametrize(
    ("policy", "has_budget", "may"),
    [
        (Unpriced.REFUSE, True, False),
        (Unpriced.REFUSE, False, True),
        (Unpriced.ALLOW, True, True),
        (Unpriced.ALLOW, False, True),
    ],
)
def test_what_has_no_price_is_kept_from_a_budget(policy, has_budget, may):
    assert may_go_unpriced(policy, has_budget=has_budget) is may


def test_no_price_for_an_unknown_model():
    assert BOOK.price("no-such-model", AS_OF_MS) is None
    assert BOOK.by_id("no-such-model@2026-11-21") is None
    assert BOOK.by_id(None) is None
    assert service_tier_of("no-such-tier") is ServiceTier.DEFAULT
    assert service_tier_of("fast") is service_tier_of("priority") is ServiceTier.PRIORITY


def test_the_age_of_the_prices_is_that_of_the_newest_row_in_force():
    table = {"models": {"a": row(input=1, output=1) | {"valid_from": "2026-01-01"}, "b": row(input=1, output=1)}}
    later = {"models": {"a": row(input=2, output=2) | {"valid_from": "2026-03-01"}}}
    first_ms, second_ms = 1_767_225_600_000, 1_772_323_200_000
    book = PriceBook.from_mapping(table).with_overrides(later)
    asked = (first_ms - 1, first_ms, second_ms - 1, second_ms, second_ms + DAY_MS)
    assert [book.newest_ms(at_ms) for at_ms in asked] == [0, first_ms, first_ms, second_ms, second_ms]
    assert BOOK.newest_ms(AS_OF_MS) == AS_OF_MS
    assert PriceBook([]).newest_ms(AS_OF_MS) == 0
