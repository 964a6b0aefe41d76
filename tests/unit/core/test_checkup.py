from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.checkup import Verdict, clock_finding, fail, is_fit, okay, warn

OFFSETS = st.floats(-1e9, 1e9)
WAYS = st.floats(0, 10_000)


def test_only_a_failure_stands_in_the_way():
    assert is_fit([])
    assert is_fit([okay("one", "fine"), warn("two", "so so", "mend it")])
    assert not is_fit([okay("one", "fine"), fail("two", "broken", "mend it")])


@pytest.mark.parametrize(
    ("ahead_ms", "uncertain_ms", "verdict"),
    [
        (0, 0, Verdict.OK),
        (999, 0, Verdict.OK),
        (1_000, 0, Verdict.WARN),
        (1_499, 500, Verdict.OK),
        (-1_500, 500, Verdict.WARN),
        (59_999, 0, Verdict.WARN),
        (60_000, 0, Verdict.FAIL),
        (-60_000, 0, Verdict.FAIL),
        (60_400, 500, Verdict.WARN),
    ],
)
def test_clocks(ahead_ms, uncertain_ms, verdict):
    assert clock_finding("clock", "another", ahead_ms, uncertain_ms).verdict is verdict


@given(OFFSETS, WAYS)
def test_what_the_way_may_account_for_is_no_fault_of_the_clock(ahead_ms, uncertain_ms):
    found = clock_finding("clock", "another", ahead_ms, uncertain_ms)
    assert (found.verdict is Verdict.OK) is (abs(ahead_ms) - uncertain_ms < 1_000)
    assert bool(found.remedy) is (found.verdict is not Verdict.OK)
    if found.remedy:
        assert ("ahead of" in found.said) is (ahead_ms > 0)


@given(OFFSETS, WAYS)
def test_ahead_is_judged_as_behind_is(ahead_ms, uncertain_ms):
    one, other = (clock_finding("clock", "another", sign * ahead_ms, uncertain_ms) for sign in (1, -1))
    assert one.verdict is other.verdict
