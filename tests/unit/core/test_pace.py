import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.core.pace import FLOOR, FULL, LONGEST_HOLD_MS, Heard, Pace, hear

NOW_MS = 1_800_000_000_000
FINE, REFUSED, SCARCE = Heard(), Heard(refused=True), Heard(scarce=True)
SAID = st.builds(Heard, refused=st.booleans(), scarce=st.booleans(), wait_ms=st.integers(0, 10**9))
HISTORIES = st.lists(st.tuples(SAID, st.integers(0, 200_000)), max_size=60)


def test_it_begins_with_all_of_the_share():
    assert Pace().at(0) == Pace().at(10**9) == FULL
    assert Pace().after(FINE, 5) is not None
    assert Pace().after(FINE, 5).at(5) == FULL


def test_a_refusal_halves_it_and_it_comes_back_little_by_little():
    pace = Pace().after(REFUSED, 10_000)
    assert pace.at(10_000) == 500
    assert pace.at(11_000) == 510
    assert pace.at(59_999) == 999
    assert pace.at(60_000) == pace.at(10**9) == FULL


def test_a_limit_that_runs_low_takes_a_tenth():
    assert Pace().after(SCARCE, 10_000).at(10_000) == 900


def test_answers_of_the_same_moment_are_one_complaint():
    pace = Pace()
    for at_ms in (0, 1, 500, 999):
        pace = pace.after(REFUSED, at_ms)
    assert pace.at(999) == 509
    assert pace.after(REFUSED, 1_000).at(1_000) == 255


def test_one_refusal_holds_nothing_back_and_the_second_in_a_row_does():
    refused = Heard(refused=True, wait_ms=3_000)
    once = Pace().after(refused, 1_000)
    assert once.held_ms(1_000) == 0
    twice = once.after(refused, 1_500)
    assert twice.held_ms(1_500) == 3_000
    assert twice.held_ms(4_499) == 1
    assert twice.held_ms(4_500) == 0
    assert once.after(FINE, 1_200).after(refused, 1_500).held_ms(1_500) == 0, "an answer lies between them"
    assert Pace().after(REFUSED, 1).after(REFUSED, 2).held_ms(2) == 0, "nothing was asked for"
    asked = Heard(refused=True, wait_ms=10**9)
    assert Pace().after(asked, 1).after(asked, 2).held_ms(2) == LONGEST_HOLD_MS
    assert twice.after(FINE, 1_600).held_ms(1_600) == 2_900, "an answer may be of a call from before"


def test_what_upstream_asks_for_is_remembered_for_as_long_as_it_goes_on_refusing():
    asked = Heard(refused=True, wait_ms=30_000)
    once = Pace().after(asked, 1_000)
    assert once.asked_ms(1_000) == 0
    twice = once.after(asked, 2_000)
    assert (twice.held_ms(2_000), twice.asked_ms(2_000)) == (LONGEST_HOLD_MS, 30_000)
    assert (twice.held_ms(12_000), twice.asked_ms(12_000)) == (0, 20_000)
    assert twice.after(Heard(refused=True, wait_ms=4_000), 12_000).asked_ms(12_000) == 4_000, "the latest counts"
    assert twice.after(FINE, 12_000).asked_ms(12_000) == 0


@given(HISTORIES)
@settings(max_examples=300, deadline=None)
def test_it_is_never_above_the_share_nor_below_the_floor(history):
    pace, now_ms = Pace(), 0
    for heard, passed_ms in history:
        now_ms += passed_ms
        before = pace.at(now_ms)
        pace = pace.after(heard, now_ms)
        assert FLOOR <= pace.at(now_ms) <= FULL
        assert pace.at(now_ms) <= before, "no answer makes it faster"
        assert 0 <= pace.held_ms(now_ms) <= LONGEST_HOLD_MS
        if not heard.refused and not heard.scarce:
            assert pace.at(now_ms) == before


@given(HISTORIES, st.integers(0, 10**6), st.integers(0, 10**6))
@settings(max_examples=300, deadline=None)
def test_it_comes_back_with_time_alone(history, one, other):
    pace, now_ms = Pace(), 0
    for heard, passed_ms in history:
        now_ms += passed_ms
        pace = pace.after(heard, now_ms)
    early, late = sorted((now_ms + one, now_ms + other))
    assert pace.at(early) <= pace.at(late)
    assert pace.at(late) - pace.at(early) <= (late - early) // 100 + 1, "ten thousandths a second"
    assert pace.at(now_ms + 95_000) == FULL


@given(st.integers(2, 60))
def test_an_upstream_that_goes_on_complaining_is_called_at_the_floor(times):
    pace = Pace()
    for second in range(times):
        pace = pace.after(REFUSED, second * 1_000)
        assert pace.at(second * 1_000) >= FLOOR
    assert pace.at(times * 1_000) <= max(FLOOR + 20, 1_000 // 2**times + 30)


@pytest.mark.parametrize(
    ("headers", "scarce"),
    [
        ({}, False),
        ({"remaining-requests": "400", "limit-requests": "3500", "reset-requests": "52s"}, False),
        ({"remaining-requests": "174", "limit-requests": "3500", "reset-requests": "57s"}, True),
        ({"remaining-requests": "175", "limit-requests": "3500", "reset-requests": "57s"}, False),
        ({"remaining-tokens": "0", "limit-tokens": "90000", "reset-tokens": "1m0s"}, True),
        ({"remaining-tokens": "0", "limit-tokens": "90000", "reset-tokens": "999ms"}, False),
        ({"remaining-tokens": "0", "limit-tokens": "90000", "reset-tokens": "60"}, True),
        ({"remaining-tokens": "0", "limit-tokens": "90000", "reset-tokens": "1"}, False),
        ({"remaining-requests": "0"}, True),
        ({"remaining-requests": "1"}, False),
        ({"remaining-requests": "-1", "limit-requests": "10"}, False),
        ({"remaining-requests": "0", "limit-requests": "nonsense", "reset-requests": "soon"}, True),
        ({"remaining-requests": "9" * 400}, False),
        ({"remaining-requests": "\u0663", "limit-requests": "1000"}, False),
    ],
)
def test_what_is_left_of_a_limit_is_heard(headers, scarce):
    told = {f"x-ratelimit-{name}": value for name, value in headers.items()}
    assert hear(200, told, NOW_MS) == Heard(scarce=scarce)
    assert hear(429, told, NOW_MS) == Heard(refused=True, scarce=scarce)


def test_the_wait_that_is_asked_for_is_heard_of_a_refusal_alone():
    assert hear(429, {"retry-after": "3"}, NOW_MS) == Heard(refused=True, wait_ms=3_000)
    assert hear(429, {"retry-after-ms": "250", "retry-after": "1"}, NOW_MS).wait_ms == 250
    assert hear(503, {"retry-after": "3"}, NOW_MS) == FINE
    assert hear(429, {"retry-after": "nonsense"}, NOW_MS).wait_ms == 0


@given(st.integers(100, 599), st.dictionaries(st.sampled_from(["retry-after", "retry-after-ms"] + [
    f"x-ratelimit-{kind}-{what}" for kind in ("limit", "remaining", "reset") for what in ("requests", "tokens")
]), st.text(max_size=20)))  # fmt: skip
def test_no_header_is_too_strange(status, headers):
    heard = hear(status, headers, NOW_MS)
    assert heard.refused == (status == 429)
    assert heard.wait_ms >= 0
