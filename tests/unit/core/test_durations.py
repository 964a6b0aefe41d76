import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.durations import format_duration, parse_duration

AS_OPENAI_WRITES_THEM = {
    "0s": 0,
    "12ms": 12,
    "120ms": 120,
    "999ms": 999,
    "1s": 1_000,
    "1.001s": 1_001,
    "1.5s": 1_500,
    "20s": 20_000,
    "51.189s": 51_189,
    "59.999s": 59_999,
    "1m0s": 60_000,
    "6m0s": 360_000,
    "7m12s": 432_000,
    "4m12.172s": 252_172,
    "1h0m0s": 3_600_000,
    "1h0m0.001s": 3_600_001,
    "47h59m59.999s": 172_799_999,
}


@pytest.mark.parametrize(("text", "duration_ms"), AS_OPENAI_WRITES_THEM.items())
def test_the_published_forms_are_written_and_read(text, duration_ms):
    assert format_duration(duration_ms) == text
    assert parse_duration(text) == duration_ms


@given(st.integers(0, 10**13))
def test_what_is_written_reads_back_the_same(duration_ms):
    assert parse_duration(format_duration(duration_ms)) == duration_ms


@given(st.integers(0, 10**10), st.integers(0, 10**10))
def test_longer_is_read_as_longer(one, other):
    assert (parse_duration(format_duration(one)) < parse_duration(format_duration(other))) == (one < other)


@pytest.mark.parametrize(
    ("text", "duration_ms"),
    [
        ("0", 0),
        ("1.9999s", 1_999),
        ("1.5h", 5_400_000),
        ("1m30s", 90_000),
        ("90m", 5_400_000),
        ("999us", 0),
        ("1500\u00b5s", 1),
        ("2500\u03bcs", 2),
        ("999999ns", 0),
        ("0.5ms0.5ms", 1),
        ("0.1s", 100),
    ],
)
def test_other_go_forms_are_read_and_cut_to_milliseconds(text, duration_ms):
    assert parse_duration(text) == duration_ms


@pytest.mark.parametrize(
    "text",
    [
        "",
        "s",
        "1",
        "1.s",
        ".s",
        "-1s",
        "+1s",
        " 1s",
        "1s ",
        "1 s",
        "1d",
        "1S",
        "1s\n",
        "\u0661s",
        "1" * 13 + "s",
        "1s" * 9,
    ],
)
def test_anything_else_is_refused(text):
    with pytest.raises(ValueError, match="not a duration"):
        parse_duration(text)


def test_a_negative_duration_is_not_written():
    with pytest.raises(ValueError, match="not negative"):
        format_duration(-1)
