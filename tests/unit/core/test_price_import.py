from datetime import date, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.price_import import added, plain, rows_of
from proxy.core.price_table import PricesInvalid, day_ms, read_table
from proxy.core.pricing import PriceBook, ServiceTier

TODAY = date(2026, 11, 21)
TOMORROW = date(2026, 11, 22)


def rows(amount, day=TOMORROW, model="m"):
    return rows_of({"models": {model: {"prices": {"default": {"input": amount, "output": 2}}}}}, start=day)


def test_rows_are_in_whole_pico_dollars_and_have_a_day():
    table = {
        "unit": "usd_per_million_tokens",
        "as_of": "2026-01-01",
        "models": {
            "m": {
                "mode": "chat",
                "max_output_tokens": 9,
                "prices": {"default": {"input": Decimal("0.15"), "output": "0.6", "cached_input": None}, "flex": None},
                "long_context": {"above_input_tokens": 5, "prices": {"default": {"input": 1, "output": 2}}},
            },
            "n": [{"prices": {"default": {"input": 1, "output": 2}}, "valid_from": date(2027, 1, 1)}],
        },
    }
    found = rows_of(table, start=TOMORROW)
    assert found["m"] == [
        {
            "mode": "chat",
            "max_output_tokens": 9,
            "prices": {"default": {"input": 150_000, "output": 600_000}},
            "long_context": {"above_input_tokens": 5, "prices": {"default": {"input": 1_000_000, "output": 2_000_000}}},
            "valid_from": "2026-11-22",
        }
    ]
    assert found["n"][0]["valid_from"] == "2027-01-01"
    assert rows_of(table)["m"][0]["valid_from"] == "2026-01-01"
    assert [price.price_id for price in read_table(plain(found)).prices] == ["m@2026-11-22", "n@2027-01-01"]


def test_a_price_from_a_day_to_come_joins_what_holds():
    merged = added(rows(1, date(2026, 1, 1)) | rows(5, model="n"), rows(2), TODAY)
    assert [row["valid_from"] for row in merged["m"]] == ["2026-01-01", "2026-11-22"]
    assert merged["n"] == rows(5, model="n")["n"]
    again = added(merged, rows(3), TODAY)
    assert [row["prices"]["default"]["input"] for row in again["m"]] == [1, 3]
    assert added(again, rows(3), TODAY) == again


def test_a_price_may_begin_today_unless_another_has():
    first = added({}, rows(1, TODAY), TODAY)
    assert added(first, rows(1, TODAY), TODAY) == first
    with pytest.raises(PricesInvalid, match=r"models\.m\.0: another price holds from today already"):
        added(first, rows(2, TODAY), TODAY)


def test_the_past_is_refused():
    yesterday = TODAY - timedelta(days=1)
    with pytest.raises(PricesInvalid, match="would hold from 2026-11-20, which is past"):
        added({}, rows(1, yesterday), TODAY)
    held = rows(1, yesterday)
    assert added(held, rows(1, yesterday), TODAY) == held


days = st.integers(-5, 5).map(lambda offset: TODAY + timedelta(days=offset))
tables = st.dictionaries(st.sampled_from("ab"), st.dictionaries(days, st.integers(1, 3), max_size=3))


def table_of(prices):
    return {
        model: [row for day, amount in sorted(by_day.items()) for row in rows(amount, day)["m"]]
        for model, by_day in prices.items()
        if by_day
    }


@given(tables, tables)
def test_whatever_is_added_the_past_stays_and_the_new_holds(installed, new):
    before, more = table_of(installed), table_of(new)
    try:
        after = added(before, more, TODAY)
    except PricesInvalid:
        assert any(row["valid_from"] <= TODAY.isoformat() for each in more.values() for row in each)
        return
    for model, each in more.items():
        assert all(row in after[model] for row in each)
    for model, each in before.items():
        own, book = (PriceBook(read_table(plain(table)).prices) for table in ({model: each}, after))
        first = min(row["valid_from"] for row in each)
        for day in (TODAY - timedelta(days=back) for back in range(1, 7)):
            if first <= day.isoformat():
                assert book.price(model, day_ms(day)) == own.price(model, day_ms(day))


def test_amounts_are_integers_on_the_way():
    sheet = rows(Decimal("1.0"))["m"][0]["prices"]["default"]
    assert all(type(amount) is int for amount in sheet.values())
    assert PriceBook(read_table(plain(rows(7))).prices).price("m", 0).rates[ServiceTier.DEFAULT].input == 7
