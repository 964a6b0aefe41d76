"""How long a server has been away, told so that it counts for more rather than for less."""

from proxy.adapters.redis.absence import NEVER_HEARD, Absences
from proxy.core.share import LATER_MS, Away

LATER = LATER_MS / 1_000


def test_there_is_none_before_the_first():
    absences = Absences()
    absences.heard(1.0)
    assert absences.latest(2.0) is None
    assert not absences.is_on


def test_an_absence_from_the_first_failure_until_it_no_longer_matters():
    absences = Absences()
    absences.missed(heard_at=9.5, found_at=9.9, now=10.0)
    assert absences.latest(10.0) == Away(unheard_ms=500, failing_ms=0, proven_ms=0)
    absences.missed(heard_at=9.5, found_at=11.25, now=11.5)
    absences.missed(heard_at=9.5, found_at=10.5, now=11.5)
    assert absences.latest(12.0) == Away(unheard_ms=2_500, failing_ms=2_000, proven_ms=1_250)
    assert absences.is_on
    absences.heard(12.0)
    absences.heard(12.5)
    assert absences.latest(13.0) == Away(unheard_ms=3_500, failing_ms=3_000, proven_ms=1_250, back_ms=1_000)
    assert not absences.is_on
    assert absences.latest(12.0 + LATER - 0.001) is not None
    assert absences.latest(12.0 + LATER) is None


def test_times_are_rounded_against_this_worker():
    absences = Absences()
    absences.missed(heard_at=9.9991, found_at=10.0, now=10.0)
    absences.missed(heard_at=9.9991, found_at=10.0099, now=10.0)
    absences.heard(10.0101)
    assert absences.latest(10.0109) == Away(unheard_ms=12, failing_ms=10, proven_ms=9, back_ms=1)


def test_one_that_follows_soon_is_the_same_as_to_when_it_was_heard_and_a_new_one_as_to_when_it_failed():
    absences = Absences()
    absences.missed(heard_at=9.5, found_at=10.0, now=10.0)
    absences.heard(12.0)
    absences.missed(heard_at=13.0, found_at=13.5, now=13.5)
    assert absences.latest(14.0) == Away(unheard_ms=4_500, failing_ms=500, proven_ms=0)


def test_one_that_follows_later_is_another():
    absences = Absences()
    absences.missed(heard_at=9.5, found_at=10.0, now=10.0)
    absences.heard(12.0)
    absences.missed(heard_at=16.9, found_at=17.0, now=12.0 + LATER)
    assert absences.latest(17.0) == Away(unheard_ms=101, failing_ms=0, proven_ms=0)


def test_a_server_that_was_never_heard_was_away_for_ages():
    absences = Absences()
    absences.missed(NEVER_HEARD, 10.0, 10.0)
    assert absences.latest(10.0).unheard_ms >= 3_600_000
