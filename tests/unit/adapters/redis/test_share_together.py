"""However a store comes and goes, all workers and the store together let no more pass than one bucket does.

Every span is looked at: what is used is also charged to a bucket that was never away, and that one never holds more
than its capacity.
"""

from __future__ import annotations

import random
from itertools import islice, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.core.bucket import UNITS
from proxy.core.share import LATER_MS, Part
from tests.support.outages import LOOK_MS, NOTICE_MS, Team, Worker


class History:
    """Workers that ask and look while the store goes and comes as planned."""

    def __init__(self, workers, rate, capacity, plan, first_look_ms=250, more_tokens=0):
        """`plan`: how long the store stays, how long it is away, and how much later each worker may see it back."""
        self.team = Team(rate, capacity)
        self.clock = self.team.clock
        self.workers = [Worker(self.team, Part(rank, workers)) for rank in range(workers)]
        self.looks_ms = [self.clock.ms + at * first_look_ms for at in range(workers)]
        self.sees_return_ms = [0] * workers
        self.plan = iter(plan)
        self.change_ms = self.clock.ms
        self._plan_next()
        self.by_parts = 0
        self.more_units = more_tokens * UNITS

    def go_on(self, passed_ms):
        """Let so much time pass, with all that happens by itself meanwhile."""
        end_ms = self.clock.ms + passed_ms
        while (due_ms := min(self.change_ms, *self.looks_ms)) <= end_ms:
            self.clock.ms = due_ms
            if due_ms == self.change_ms:
                self._change()
            for at, worker in enumerate(self.workers):
                if self.looks_ms[at] > due_ms:
                    continue
                if self.team.is_there and worker.finds_it_away and due_ms < self.sees_return_ms[at]:
                    # It waits before it connects again.
                    self.looks_ms[at] = min(due_ms + LOOK_MS, self.sees_return_ms[at])
                else:
                    worker.look()
                    self.looks_ms[at] = due_ms + LOOK_MS
        self.clock.ms = end_ms

    def ask(self, at, tokens, used=None):
        """Ask one worker; what passes is used, be it less than was asked for. Returns whether it passes."""
        worker = self.workers[at]
        by_part = not self.team.is_there or worker.finds_it_away
        reservation = worker.ask(tokens)
        if reservation is None:
            return None
        self.by_parts += by_part
        over = self.team.use(tokens if used is None else used)
        assert over <= self.more_units, "more than capacity + rate x T"
        return reservation

    def _change(self):
        self.team.is_there = not self.team.is_there
        if self.team.is_there:
            self.sees_return_ms = [self.clock.ms + late_ms for late_ms in self.late_ms]
            self._plan_next()
        else:
            self.change_ms += self.away_ms

    def _plan_next(self):
        stays_ms, self.away_ms, self.late_ms = next(self.plan, (10**12, 0, ()))
        self.change_ms += stays_ms


def outages(draw, workers):
    """Outages of any length without end, a few seconds apart at least."""
    stays_ms = draw.randint(0, 60_000)
    while True:
        late_ms = [draw.randint(0, draw.choice((0, LATER_MS - LOOK_MS))) for _ in range(workers)]
        yield stays_ms, draw.randint(1, draw.choice((300, 3_000, 10_000, 200_000))), late_ms
        stays_ms = LATER_MS + draw.randint(1, draw.choice((300, 10_000, 100_000)))


def run(draw, workers, rate, capacity, steps):
    """A random history; returns how many requests a part let pass."""
    history, unsettled = History(workers, rate, capacity, outages(draw, workers), draw.randint(0, 150)), []
    for _ in range(steps):
        history.go_on(draw.choice((0, 1, 10, 100, 1_500, 20_000, draw.randint(0, 120_000))))
        if unsettled and draw.random() < 0.25:
            at, reservation, used = unsettled.pop(draw.randrange(len(unsettled)))
            history.workers[at].settle(reservation, used)
            continue
        for _ in range(draw.choice((1, 1, 8))):
            tokens = draw.choice((1, 2, max(1, capacity // workers), capacity, draw.randint(1, capacity)))
            used = tokens if draw.random() < 0.6 else draw.randint(0, tokens)
            at = draw.randrange(workers)
            reservation = history.ask(at, tokens, used)
            if reservation is not None and used < tokens:
                unsettled.append((at, reservation, used))
    return history.by_parts


@given(
    st.randoms(use_true_random=False),
    st.integers(1, 4),
    st.sampled_from([1, 7, 60, 600, 6_000]),
    st.sampled_from([0.02, 0.5, 1, 2]),
    st.integers(5, 40),
)
@settings(max_examples=100, deadline=None)
def test_no_span_lets_more_pass_than_one_bucket(draw, workers, rate, minutes, steps):
    run(draw, workers, rate, max(1, int(rate * minutes)), steps)


def plan_of(draw, workers, full_ms):
    """Two outages of telling lengths, after which workers are on time or as late as may be."""
    lengths_ms = (draw.randint(100, 600), NOTICE_MS, 2_000, 8_000, full_ms + draw.randint(0, 20_000))
    for _ in range(2):
        latest_ms = LATER_MS - LOOK_MS
        late_ms = [draw.choice((0, latest_ms, draw.randint(0, latest_ms))) for _ in range(workers)]
        yield draw.randint(LATER_MS + 1, 2 * LATER_MS), draw.choice(lengths_ms), late_ms


@pytest.mark.parametrize("seeds", [range(at, at + 50) for at in range(0, 350, 50)])
def test_not_even_when_all_take_what_they_can_around_each_change(seeds):
    for seed in seeds:
        draw = random.Random(seed)
        workers, (rate, capacity) = draw.randint(2, 4), draw.choice(((5, 10), (60, 3), (60, 60), (600, 10), (600, 60)))
        plan = plan_of(draw, workers, 60_000 * capacity // rate)
        history = History(workers, rate, capacity, plan, draw.randint(0, 150))
        for _ in range(30):
            until_ms = history.change_ms - history.clock.ms
            near = (until_ms - 1, until_ms + 1, until_ms + 700) if until_ms < 10**10 else ()
            history.go_on(max(0, draw.choice((*near, draw.randint(0, 2_000), draw.randint(0, 2_000)))))
            for at in draw.sample(range(workers), draw.randint(1, workers)):
                while history.ask(at, 1) is not None:
                    pass


@pytest.mark.parametrize("seeds", [range(at, at + 20) for at in (0, 20, 1060)])
def test_a_store_that_comes_and_goes_in_moments_lets_one_burst_more_pass_at_most(seeds):
    for seed in seeds:
        draw = random.Random(seed)
        workers, (rate, capacity) = draw.randint(2, 4), draw.choice(((60, 3), (600, 10), (600, 60), (1_200, 10)))
        plan = [
            (draw.randint(100, 500), draw.randint(100, 500), [draw.randint(0, 1_000) for _ in range(workers)])
            for _ in range(40)
        ]
        history = History(workers, rate, capacity, iter(plan), draw.randint(0, 150), more_tokens=capacity)
        for _ in range(300):
            history.go_on(draw.randint(0, 90))
            for at in draw.sample(range(workers), draw.randint(1, workers)):
                while history.ask(at, 1) is not None:
                    pass


def test_the_parts_are_not_idle_in_these_histories():
    # A limiter that lets nothing pass would keep every limit.
    assert sum(run(random.Random(seed), 1 + seed % 4, 600, 600, 40) for seed in range(20)) > 50


def test_no_order_of_a_few_events_lets_more_pass():
    """Exhaustive: a bucket of three that refills in six seconds; both workers, either or none ask at each moment."""
    histories, admitted, by_parts = 0, 0, 0
    for away_ms, late_ms, before_ms in product(
        (500, NOTICE_MS + 600, 7_000), ((0, 0), (4_000, 0), (0, 4_500)), (0, 400)
    ):
        went_ms = 1_000 + before_ms
        came_ms = went_ms + away_ms
        moments_ms = (went_ms - 50, went_ms + 50, came_ms - 50, came_ms + 700, came_ms + 2_000, came_ms + 8_000)
        for asking in product(((), (0,), (1,), (1, 0)), repeat=len(moments_ms) - 2):
            history = History(2, 30, 3, [(went_ms, away_ms, late_ms)])
            for moment_ms, who in zip(moments_ms, ((0,), *asking, (0, 1)), strict=True):
                history.go_on(1_000_000 + moment_ms - history.clock.ms)
                for at in who:
                    while history.ask(at, 1) is not None:
                        admitted += 1
            histories += 1
            by_parts += history.by_parts
    assert histories == 3 * 3 * 2 * 4**4
    assert admitted >= 4 * histories
    assert by_parts > histories // 10


def test_the_store_ends_with_at_least_what_one_bucket_would_have():
    """Once all have told it, nothing is missing that was used, and the next to ask finds no room that there is not."""
    for seed in range(40):
        draw = random.Random(seed)
        history = History(3, 600, 300, islice(outages(draw, 3), 4))
        for _ in range(60):
            history.go_on(draw.randint(0, 4_000))
            history.ask(draw.randrange(3), draw.randint(1, 100))
        while history.change_ms < 10**12:
            history.go_on(10_000)
            history.ask(draw.randrange(3), draw.randint(1, 100))
        history.go_on(LATER_MS)
        assert history.team.used_units() >= history.team.true_units()
