"""What a worker takes for used of a team's bucket that it last saw in the store."""

from hypothesis import given
from hypothesis import strategies as st

from proxy.adapters.redis.policies import _left_of
from proxy.core import bucket
from proxy.core.bucket import UNITS
from proxy.core.share import Part
from proxy.core.tiers import Limits, Schedule

NOW = 1_700_000_000_000


@given(limit=st.integers(1, 10**7), used=st.integers(0, 10**7 * UNITS), workers=st.integers(1, 9))
def test_the_parts_of_all_workers_are_never_less_than_what_was_used_and_hardly_more(limit, used, workers):
    schedule = Schedule(Limits(None, limit), Limits(None, limit))
    gauge = bucket.standing(bucket.peek((1, NOW, 0, 0, used, 0), schedule, NOW)).tokens
    together = workers * _left_of(gauge, limit, Part(0, workers), 0)
    assert together * UNITS >= used
    # A millisecond of refill, and what rounding up to whole tokens adds in each worker.
    assert together * UNITS <= used + limit + workers * UNITS
