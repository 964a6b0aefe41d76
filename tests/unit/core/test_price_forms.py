import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.money import format_usd_per_million
from proxy.core.price_forms import Written, from_csv, from_flat, is_flat
from proxy.core.price_table import PricesInvalid, read_table
from proxy.core.pricing import PriceBook, ServiceTier

FLAT = {
    "as_of": "2026-11-21",
    "models": {
        "m": {
            "mode": "responses",
            "max_output_tokens": 7,
            "pico_usd_per_token": {
                "input": 10,
                "output": 20,
                "cached_input": 1,
                "flex_input": 5,
                "flex_output": 8,
                "long_context": {
                    "input_cost_per_token_above_272k_tokens": 100,
                    "output_cost_per_token_above_272k_tokens": 200,
                    "cache_read_input_token_cost_above_272k_tokens": 11,
                    "cache_creation_input_token_cost_above_272k_tokens_batches": 12,
                    "input_cost_per_token_above_272k_tokens_ultrafast": 9,
                },
            },
        }
    },
}


def test_csv_is_dollars_per_million_by_model_tier_and_day():
    written = from_csv(
        "\ufeffmodel,input,output,cached_input,service_tier,valid_from\r\n"
        "m,0.15,0.60,0.075,,2027-01-01\r\nm,0.075,0.30,,batch,2027-01-01\r\n\r\nm,0.2,0.7,,,2027-02-01\r\n"
    )
    book = PriceBook(read_table(written.mapping).prices)
    later, first = book.rows("m")
    assert (first.price_id, later.price_id) == ("m@2027-01-01", "m@2027-02-01")
    default, batch = first.rates[ServiceTier.DEFAULT], first.rates[ServiceTier.BATCH]
    assert (default.input, default.cached_input, default.output, batch.input) == (150_000, 75_000, 600_000, 75_000)
    assert written.line(("models", "m", 0, "prices", "batch", "input")) == 3
    assert written.line(("models", "m", 1)) == 5


@given(st.dictionaries(st.from_regex(r"[a-z0-9.-]{1,12}", fullmatch=True), st.integers(0, 10**12), min_size=1))
def test_csv_keeps_every_amount_exactly(amounts):
    lines = [
        f"{model},{format_usd_per_million(pico)},{format_usd_per_million(pico)}" for model, pico in amounts.items()
    ]
    table = read_table(from_csv("\n".join(["model,input,output", *lines])).mapping)
    assert {price.model: price.rates[ServiceTier.DEFAULT].output for price in table.prices} == amounts


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("", 1, "expected a header"),
        ("model,input\n", 1, "missing columns: output"),
        ("model,input,output,inptu\n", 1, "unknown columns: inptu"),
        ("model,input,output,input\n", 1, "a column is there twice"),
        ("model,input,output\nm,1,2\nn,1\n", 3, "expected 3 values, not 2"),
        ('model,input,output\nm,1,"2\n', 2, "unexpected end of data"),
        ("model,input,output\nm,1,2\nm,3,4\n", 3, "a second line for m, tier default, from the same day"),
    ],
)
def test_csv_that_is_wrong_is_refused_by_its_line(text, line, message):
    with pytest.raises(PricesInvalid) as caught:
        from_csv(text)
    (problem,) = caught.value.problems
    assert problem.line == line
    assert message in problem.message


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("m,1,", "models.m.0.prices: default needs input and output"),
        (",1,2", "models.: a model's name is printable"),
        ("m,-1,2", "models.m.0.prices.default.input: is no decimal amount"),
        ("m,1e-3,2", "models.m.0.prices.default.input: is no decimal amount"),
        ("m,0.0000001,2", "models.m.0.prices.default.input: is not a whole number of pico-dollars"),
    ],
)
def test_csv_with_a_wrong_value_is_refused_as_any_table_is(line, problem):
    written = from_csv(f"model,input,output\n{line}\n")
    with pytest.raises(PricesInvalid) as caught:
        read_table(written.mapping)
    assert str(caught.value).startswith(problem)
    assert {written.line(each.path) for each in caught.value.problems} == {2}


def test_a_flat_table_has_its_tiers_and_its_long_context():
    assert is_flat(FLAT)
    assert not is_flat({"models": {"m": {"prices": {}}}})
    written = from_flat(FLAT, {("models", "m", "pico_usd_per_token", "flex_input"): 9})
    assert written.passed_over == ("m: input_cost_per_token_above_272k_tokens_ultrafast",)
    assert written.line(("models", "m", "prices", "flex", "input")) == 9
    (price,) = read_table(written.mapping).prices
    assert (price.price_id, price.mode, price.max_output_tokens) == ("m@undated", "responses", 7)
    flex = price.rates[ServiceTier.FLEX]
    assert (flex.input, flex.output, price.rates[ServiceTier.DEFAULT].cached_input) == (5, 8, 1)
    long = price.long_context
    assert (long.above_input_tokens, long.rates[ServiceTier.DEFAULT].cached_input) == (272_000, 11)
    assert long.rates[ServiceTier.BATCH].cache_write == 12


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ({"m": {"pico_usd_per_token": {}}, "n": {"usd_per_million_tokens": {}}}, "expected one unit in all rows"),
        ({"m": {"pico_usd_per_token": {}}, "n": {}}, "models.n: expected an object with pico_usd_per_token"),
        ({"m": {"pico_usd_per_token": 1}}, "models.m: expected an object with pico_usd_per_token"),
        ({"m": {"pico_usd_per_token": {"long_context": {"x": 1}}}}, "expected one size above which"),
        ({"m": {"pico_usd_per_token": {"long_context": []}}, "n": 1}, "models.n: expected an object"),
    ],
)
def test_a_flat_table_that_is_wrong_is_refused(models, message):
    with pytest.raises(PricesInvalid, match=message):
        from_flat({"models": models}, {})


def test_a_line_is_that_of_the_innermost_member_around():
    written = Written({}, {("models",): 1, ("models", "m"): 4})
    assert written.line(("models", "m", "prices", "default")) == 4
    assert written.line(("unit",)) is None
