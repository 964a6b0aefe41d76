from decimal import ROUND_HALF_EVEN, Decimal, localcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.money import PICO_PER_USD, BadAmount, format_usd, format_usd_per_million, parse_usd

amounts = st.integers(-(10**29), 10**29)


@pytest.mark.parametrize(
    ("text", "pico_usd"),
    [
        ("12.50", 12_500_000_000_000),
        ("0", 0),
        ("-0.5", -500_000_000_000),
        ("0.000000000001", 1),
        ("500", 500 * PICO_PER_USD),
    ],
)
def test_reads_an_amount_exactly(text, pico_usd):
    assert parse_usd(text) == pico_usd


@pytest.mark.parametrize(
    "text", ["", ".5", "5.", "1e3", "+1", "$5", "1,000", " 1", "1\n", "0.0000000000001", "nan", "٣"]
)
def test_refuses_what_is_not_exactly_an_amount(text):
    with pytest.raises(BadAmount):
        parse_usd(text)


@pytest.mark.parametrize(
    ("pico_usd", "digits", "text"),
    [
        (5_000_000_000, 2, "0.00"),  # half a cent, to the even cent
        (15_000_000_000, 2, "0.02"),
        (25_000_000_000, 2, "0.02"),
        (25_000_000_001, 2, "0.03"),
        (-5_000_000_000, 2, "0.00"),
        (-15_000_000_000, 2, "-0.02"),
        (2_500_000_000_000, 0, "2"),
        (1, 12, "0.000000000001"),
        (999_999_999_999, 2, "1.00"),
    ],
)
def test_prints_half_to_even(pico_usd, digits, text):
    assert format_usd(pico_usd, digits) == text


@given(amounts)
def test_twelve_digits_say_everything(pico_usd):
    assert parse_usd(format_usd(pico_usd, 12)) == pico_usd


@given(amounts, st.integers(0, 12))
def test_rounds_as_decimal_does(pico_usd, digits):
    with localcontext(prec=60):
        expected = (Decimal(pico_usd) / PICO_PER_USD).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_EVEN)
        assert Decimal(format_usd(pico_usd, digits)) == expected


@given(st.text(max_size=20))
def test_any_text_is_an_amount_or_refused(text):
    try:
        pico_usd = parse_usd(text)
    except BadAmount:
        return
    assert Decimal(text) * PICO_PER_USD == pico_usd


@pytest.mark.parametrize("digits", [-1, 13])
def test_prints_no_digits_that_do_not_exist(digits):
    with pytest.raises(ValueError, match="digits"):
        format_usd(1, digits)


@pytest.mark.parametrize(
    ("pico_usd", "text"), [(0, "0.00"), (150_000, "0.15"), (75_000, "0.075"), (1, "0.000001"), (120_000_000, "120.00")]
)
def test_prints_a_price_as_the_price_page_does(pico_usd, text):
    assert format_usd_per_million(pico_usd) == text


@given(st.integers(0, 10**14))
def test_prints_a_price_exactly(pico_usd):
    assert Decimal(format_usd_per_million(pico_usd)) * 10**6 == pico_usd
