import json
from datetime import date, datetime
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.price_table import KINDS, PricesInvalid, day_ms, read_table
from proxy.core.pricing import Rates, ServiceTier

DOLLARS = {"unit": "usd_per_million_tokens"}


def row(**prices_by_kind):
    return {"prices": {"default": {"input": 10, "output": 20} | prices_by_kind}}


def one(record, **table):
    (price,) = read_table({"models": {"m": record}} | table).prices
    return price


def refused(mapping):
    with pytest.raises(PricesInvalid) as caught:
        read_table(mapping)
    assert str(caught.value) == "\n".join(map(str, caught.value.problems))
    return [str(problem) for problem in caught.value.problems]


def test_dollars_per_million_tokens_are_understood_exactly():
    rates = one(row(input=Decimal("0.15"), output="2.50", cached_input=3), **DOLLARS).rates[ServiceTier.DEFAULT]
    assert (rates.input, rates.output, rates.cached_input) == (150_000, 2_500_000, 3_000_000)


def test_source_and_dates_are_kept():
    table = read_table({"as_of": "2026-11-21", "source": "the price page", "models": {"m": row()}})
    assert (table.as_of, table.source) == (date(2026, 11, 21), "the price page")
    assert [price.price_id for price in table.prices] == ["m@2026-11-21"]
    own = one([row() | {"valid_from": date(2027, 1, 1)}], as_of="2026-11-21")
    assert (own.price_id, own.valid_from_ms) == ("m@2027-01-01", day_ms(date(2027, 1, 1)))
    assert one(row()).price_id == "m@undated"
    assert day_ms(date(1970, 1, 2)) == 86_400_000


amounts = st.one_of(
    st.integers(0, 10**12),
    st.decimals(0, 10**12, places=6, allow_nan=False),
    st.decimals(allow_nan=False, allow_infinity=False),
    st.decimals(0, 10, places=20, allow_nan=False),
)


@given(amounts, st.sampled_from([({}, 1), (DOLLARS, 10**6)]))
def test_an_amount_is_kept_exactly_or_refused(amount, unit):
    table, scale = unit
    pico = Fraction(amount) * scale
    if amount < 0 or pico.denominator != 1 or pico > 10**12:
        (problem,) = refused({"models": {"m": row(cached_input=amount)}} | table)
        assert problem.startswith("models.m.prices.default.cached_input: ")
    else:
        assert one(row(cached_input=amount), **table).rates[ServiceTier.DEFAULT].cached_input == pico


leaves = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.decimals(), st.just("2026-01-01")
)
keys = st.sampled_from(
    ["models", "as_of", "unit", "prices", "default", "flex", "input", "output", "valid_from", "long_context", "x"]
)
anything = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(keys, inner, max_size=4), max_leaves=12
)


@given(st.dictionaries(keys, anything, max_size=4))
def test_any_object_is_a_table_or_is_refused(mapping):
    try:
        table = read_table(mapping)
    except PricesInvalid:
        return
    for price in table.prices:
        for rates in price.rates.values():
            assert all(type(getattr(rates, kind)) is int for kind in KINDS)
            assert isinstance(rates, Rates)


@pytest.mark.parametrize(
    ("mapping", "problem"),
    [
        ({}, "the table: models is missing"),
        ({"models": []}, "models: expected an object"),
        ({"modles": {}, "models": {}}, "modles: unknown field (did you mean models?)"),
        ({"models": {"m": {"prices": {"default": {"input": 1}}}}}, "models.m.prices: default needs input and output"),
        ({"models": {"m": {"prices": {"flex": {"input": 1, "output": 1}}}}}, "models.m.prices: default needs"),
        ({"models": {"m": {}}}, "models.m: prices is missing"),
        ({"models": {"m": []}}, "models.m: expected at least one row"),
        ({"models": {" m": row()}}, "models. m: a model's name"),
        ({"models": {"m": row(input=-1)}}, "models.m.prices.default.input: must be zero or more"),
        ({"models": {"m": row(input=Decimal("0.5"))}}, "a whole number of pico-dollars per token; dollars per"),
        ({"models": {"m": row(input=Decimal("0.0000001"))}} | DOLLARS, "input: is not a whole number"),
        ({"models": {"m": row(input=0.5)}}, "models.m.prices.default.input: expected an amount, not a binary fraction"),
        ({"models": {"m": row(input="NaN")}}, "input: is no decimal amount"),
        ({"models": {"m": row(input=Decimal("NaN"))}}, "input: must be zero or more"),
        ({"models": {"m": row(input="1_000")}}, "input: is no decimal amount"),
        ({"models": {"m": row(input=True)}}, "input: expected an amount, not bool"),
        ({"models": {"m": row(input=2_500_001)}} | DOLLARS, "input: is more than a dollar for a token"),
        ({"models": {"m": row(input=Decimal("1e999999999"))}}, "input: is more than a dollar for a token"),
        ({"models": {"m": row(input=Decimal("1e-999999999"))}}, "input: is not a whole number"),
        ({"models": {"m": row(inptu=1)}}, "models.m.prices.default.inptu: unknown kind (did you mean input?)"),
        ({"models": {"m": row(video=1)}}, "video: unknown kind (input, cached_input"),
        ({"models": {"m": {"prices": row()["prices"] | {"batches": {}}}}}, "unknown service tier (did you mean"),
        ({"models": {"m": row() | {"max_output_tokens": 0}}}, "models.m.max_output_tokens: expected a whole number"),
        ({"models": {"m": row() | {"mode": 1}}}, "models.m.mode: expected text"),
        ({"models": {"m": row() | {"valid_form": "2026-01-01"}}}, "models.m.valid_form: unknown field (did you mean v"),
        ({"models": {"m": row() | {"valid_from": "2026-02-30"}}}, "models.m.valid_from: expected a date"),
        ({"models": {"m": row() | {"valid_from": "20260201"}}}, "models.m.valid_from: expected a date"),
        ({"models": {"m": row() | {"valid_from": datetime(2026, 2, 1)}}}, "models.m.valid_from: expected a date"),  # noqa: DTZ001 - as TOML gives it
        ({"models": {"m": [row(), row(input=2)]}}, "models.m.1: a second row that holds from the same day: m@undated"),
        ({"models": {"m": row() | {"long_context": {"prices": {}}}}}, "long_context: above_input_tokens is missing"),
        ({"unit": "eur", "models": {}}, "unit: expected one of"),
        ({"as_of": "soon", "models": {}}, "as_of: expected a date"),
        ({"source": 1, "models": {}}, "source: expected text"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(mapping, problem):
    (found,) = refused(mapping)
    assert problem in found


def test_everything_that_is_wrong_is_named_at_once():
    found = refused({"unit": "eur", "models": {"a": row(input=-1), "b": row(x=1), "c": {}}})
    assert [problem.partition(":")[0] for problem in found] == [
        "unit", "models.a.prices.default.input", "models.b.prices.default.x", "models.c",
    ]  # fmt: skip


def test_a_table_in_json_without_decimals_is_refused_by_its_fractions():
    text = '{"models": {"m": {"prices": {"default": {"input": 0.1, "output": 1}}}}}'
    assert "binary fraction" in refused(json.loads(text))[0]
    read_table(json.loads(text.replace("0.1", "0.1e1"), parse_float=Decimal))
