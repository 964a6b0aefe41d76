"""What workers spend of budgets while the store is away: together no more than it had left."""

from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from proxy.adapters.redis.budget_parts import BudgetParts
from proxy.core.bucket import Cost, Handle, OverBudget, Reservation
from proxy.core.budget import Cap, Period, Spend, span_of
from proxy.core.errors import StoreAway
from proxy.core.share import Away, Part

CAP = Cap("team", span_of(Period.TOTAL, 0), 100, None)
AT_MS = 1_700_000_000_000
GONE = Away(unheard_ms=1_000, failing_ms=500, proven_ms=100)
BACK = replace(GONE, back_ms=200)


@dataclass
class HandClock:
    monotonic_ms: int = 1_000_000

    def now_ms(self):
        return AT_MS

    def monotonic_ns(self):
        return self.monotonic_ms * 1_000_000


class Worker:
    def __init__(self, rank=0, workers=1):
        self.clock, self.away = HandClock(), None
        self.parts = BudgetParts(self.clock, lambda: Part(rank, workers), lambda _: self.away)

    def spend(self, amount, cap=CAP):
        wanted = Spend((cap,), amount, AT_MS)
        over = self.parts.refusal("a", wanted)
        if over is not None:
            assert over.used_nano_usd + amount > over.cap.limit_nano_usd
            return over
        handle = Handle()
        minutes = self.parts.take("a", wanted, handle)
        return Reservation("a", (), Cost(1, 1), (handle,), wanted, minutes)

    def owed(self):
        return sum(telling.nano_usd for telling in self.parts.owed("a"))


def test_what_was_never_seen_cannot_be_held():
    worker = Worker()
    worker.away = GONE
    with pytest.raises(StoreAway):
        worker.spend(1)
    assert not isinstance(worker.spend(1, structs.replace(CAP, limit_nano_usd=None)), OverBudget)


def test_what_was_seen_long_before_the_absence_cannot_either():
    worker = Worker()
    worker.parts.saw("a", CAP, 1, 40)
    worker.away = GONE
    worker.clock.monotonic_ms += 121_000
    assert not isinstance(worker.spend(60), OverBudget)
    worker.clock.monotonic_ms += 1
    with pytest.raises(StoreAway):
        worker.spend(0)
    # What counts is when the absence began.
    worker.away = replace(GONE, unheard_ms=10_000_000)
    assert not isinstance(worker.spend(0), OverBudget)


def test_a_worker_that_is_alone_spends_all_that_was_left():
    worker = Worker()
    worker.parts.saw("a", CAP, 1, 40)
    worker.away = GONE
    assert isinstance(worker.spend(61), OverBudget)
    first = worker.spend(50)
    assert isinstance(worker.spend(11), OverBudget)
    worker.parts.settle(first, 20)
    assert not isinstance(worker.spend(40), OverBudget)
    assert worker.owed() == 60
    assert worker.owed() == 0


def test_what_the_store_was_not_told_counts_until_it_was():
    worker = Worker()
    worker.parts.saw("a", CAP, 7, 40)
    worker.away = GONE
    worker.spend(50)
    for _ in range(3):
        assert isinstance(worker.spend(11), OverBudget)
        (telling,) = worker.parts.owed("a")
        assert (telling.epoch, telling.nano_usd) == (7, 50)
        assert isinstance(worker.spend(11), OverBudget)
        worker.parts.keep(telling)
        assert "a" in worker.parts
    worker.spend(5)
    first, second = worker.parts.owed("a")
    assert (first.id, second.nano_usd) == (telling.id, 5)
    assert first.id != second.id
    worker.parts.saw("a", CAP, 7, 95)
    assert isinstance(worker.spend(6), OverBudget)
    assert not isinstance(worker.spend(5), OverBudget)


def test_what_is_settled_after_it_was_told_adds_what_is_more_alone():
    worker = Worker()
    worker.parts.saw("a", CAP, 1, 0)
    worker.away = GONE
    less, more = worker.spend(20), worker.spend(20)
    assert worker.owed() == 40
    assert worker.parts.settle(less, 5)
    assert worker.parts.settle(more, 50)
    assert not worker.parts.settle(more, 50)
    assert worker.owed() == 30


def test_a_store_that_is_back_is_asked_without_the_parts_of_others():
    worker = Worker(0, 4)
    asked = Spend((CAP, structs.replace(CAP, scope="key:k", limit_nano_usd=None)), 1, AT_MS)
    worker.parts.saw("a", CAP, 1, 20)
    assert worker.parts.ask_with("a", asked) == asked
    worker.away = BACK
    assert [cap.limit_nano_usd for cap in worker.parts.ask_with("a", asked).caps] == [40, None]
    # What it takes itself does not make the parts of others smaller.
    worker.parts.saw("a", CAP, 1, 40)
    assert worker.parts.ask_with("a", asked).caps[0].limit_nano_usd == 40


@settings(max_examples=200, deadline=None)
@given(
    left=st.integers(0, 200),
    workers=st.integers(1, 5),
    history=st.lists(
        st.tuples(st.integers(0, 4), st.sampled_from("ssssrtb"), st.integers(0, 40)), min_size=5, max_size=40
    ),
)
def test_together_they_spend_no_more_than_was_left(left, workers, history):
    """In an absence, on the return of some while others are still away, and in the next absence right after it."""
    fleet = [Worker(rank, workers) for rank in range(workers)]
    total, given = 100 - left, 0
    for worker in fleet:
        worker.parts.saw("a", CAP, 1, total)
        worker.away = GONE
    for which, verb, amount in history:
        worker = fleet[which % workers]
        if verb == "s" and worker.away is GONE:
            if not isinstance(worker.spend(amount), OverBudget):
                given += amount
        elif verb == "s":
            # Asks the store, as the limiter does: it tells first what it has given.
            told = worker.owed()
            total, given = total + told, given - told
            (cap,) = worker.parts.ask_with("a", Spend((CAP,), amount, AT_MS)).caps
            if total + amount <= cap.limit_nano_usd:
                total += amount
                worker.parts.saw("a", CAP, 1, total)
        elif verb == "t":
            told = worker.owed()
            total, given = total + told, given - told
        else:
            worker.away = BACK if verb == "r" else GONE
            if worker.away is GONE:
                # Seen on its last look, as the re-synchronisation would have it.
                worker.parts.saw("a", CAP, 1, total)
        assert total + given <= max(100, 100 - left)
