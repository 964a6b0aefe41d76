from collections import defaultdict
from fractions import Fraction

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from proxy.core.fair_queue import FairQueue

TEAMS = "abcd"
WEIGHTS = (1, 2, 3, 7, 100)


def served(queue: FairQueue, most: int = 10_000) -> list:
    """Items in the order of their turns."""
    items = []
    while len(items) < most and (entry := queue.first()) is not None:
        queue.serve(entry)
        items.append(entry.item)
    return items


def test_one_team_is_served_in_the_order_in_which_it_came():
    queue = FairQueue(100)
    for number in range(50):
        queue.push("a", number)
    assert served(queue) == list(range(50))
    assert len(queue) == 0
    assert queue.first() is None


def test_a_newcomer_does_not_wait_behind_a_hundred_of_another_team():
    queue = FairQueue(1_000)
    for number in range(100):
        queue.push("a", ("a", number))
    assert served(queue, 7) == [("a", number) for number in range(7)]
    queue.push("b", ("b", 0))
    assert ("b", 0) in served(queue, 2), "next, or next but one"


def test_the_weight_is_the_share():
    queue = FairQueue(1_000)
    for _ in range(100):
        queue.push("a", "a", 3)
        queue.push("b", "b", 1)
    first = served(queue, 40)
    assert (first.count("a"), first.count("b")) == (30, 10)


def test_the_latest_weight_holds_for_the_whole_line():
    queue = FairQueue(1_000)
    for _ in range(100):
        queue.push("a", "a", 1)
        queue.push("b", "b", 1)
    assert served(queue, 20).count("a") == 10
    queue.push("a", "a", 4)
    assert 39 <= served(queue, 50).count("a") <= 41


def test_one_who_asks_again_and_again_has_no_more_than_one_who_lines_up():
    queue = FairQueue(1_000)
    for _ in range(100):
        queue.push("patient", "patient")
    queue.push("eager", "eager")
    order = []
    for _ in range(60):
        entry = queue.first()
        queue.serve(entry)
        order.append(entry.item)
        if entry.item == "eager":
            queue.push("eager", "eager")
    assert 29 <= order.count("eager") <= 31


def test_that_one_was_served_is_not_forgotten_for_others_that_come_and_go():
    queue = FairQueue(1_000)
    for _ in range(400):
        queue.push("patient", "patient")
    order = []
    for number in range(200):
        passing = [queue.push(f"passing-{number}-{index}", None) for index in range(20)]
        for entry in passing:
            queue.remove(entry)
        if not queue.waiting("eager"):
            queue.push("eager", "eager")
        entry = queue.first()
        queue.serve(entry)
        order.append(entry.item)
    assert 99 <= order.count("eager") <= 101


def test_nothing_is_saved_up_while_away():
    queue = FairQueue(1_000)
    for _ in range(200):
        queue.push("a", "a")
    assert served(queue, 100) == ["a"] * 100
    for _ in range(50):
        queue.push("b", "b")
    assert 9 <= served(queue, 20).count("b") <= 11


def test_a_full_queue_takes_nobody_but_who_has_less_than_others():
    queue = FairQueue(4)
    entries = [queue.push("a", number) for number in range(4)]
    assert queue.push("a", 4) is None
    assert queue.make_room("a") is None, "it would only change places with itself"
    assert queue.push("b", "b0") is None
    gone = queue.make_room("b")
    assert gone is entries[3], "the youngest of the longest"
    assert queue.push("b", "b0") is not None
    assert queue.make_room("b") is not None
    assert queue.push("b", "b1") is not None
    assert queue.make_room("b") is None, "two and two"
    assert queue.make_room("c") is not None
    assert queue.remove(gone) is False
    assert queue.push("c", "c0") is not None
    assert queue.make_room("d").item == "b1"
    assert queue.make_room("d") is None, "nobody has two"
    assert sorted(map(str, served(queue))) == ["0", "b0", "c0"]


def test_who_left_is_not_served_and_leaves_once():
    queue = FairQueue(100)
    entries = [queue.push("a", number) for number in range(10)]
    for gone in (0, 5, 9):
        assert queue.remove(entries[gone])
        assert not queue.remove(entries[gone])
    assert queue.first_of("a") is entries[1]
    assert list(queue.ahead_of(entries[7])) == [1, 2, 3, 4, 6]
    assert served(queue) == [1, 2, 3, 4, 6, 7, 8]
    assert queue.first_of("a") is None


def test_those_who_have_gone_leave_nothing_behind():
    queue = FairQueue(100_000)
    keep = queue.push("stays", "stays")
    for number in range(20_000):
        entry = queue.push(f"team-{number // 500}-{number % 40}", number)
        if number % 2:
            queue.remove(entry)
            continue
        entry = queue.first()
        queue.serve(entry)
        if entry is keep:
            keep = queue.push("stays", "stays")
    assert queue.remembered() < 300, "teams with nobody here are forgotten"
    assert len(queue._heap) < 1_000
    first = queue.push("x", "first")
    for _ in range(20_000):
        queue.remove(queue.push("x", "gone"))
    assert len(first.line.entries) < 100
    served(queue)
    assert (len(queue), queue.remembered(), len(queue._heap)) == (0, 0, 0)


@st.composite
def histories(draw):
    """Steps: (team, weight) comes, -n: the n-th that waits leaves, or None: one is served."""
    step = st.one_of(
        st.tuples(st.sampled_from(TEAMS), st.sampled_from(WEIGHTS)), st.none(), st.integers(0, 30), st.none()
    )
    return draw(st.lists(step, max_size=120))


@given(histories(), st.integers(1, 40))
@settings(max_examples=300, deadline=None)
def test_nothing_is_lost_and_nothing_is_served_twice(history, most):
    queue: FairQueue[int] = FairQueue(most)
    waiting: dict[str, list] = {team: [] for team in TEAMS}
    number = 0
    for step in history:
        total = sum(map(len, waiting.values()))
        assert len(queue) == total
        match step:
            case (team, weight):
                entry = queue.push(team, number, weight)
                assert (entry is None) == (total >= most)
                if entry is None:
                    gone = queue.make_room(team)
                    longest = max(map(len, waiting.values()))
                    assert (gone is None) == (len(waiting[team]) + 1 >= longest)
                    if gone is not None:
                        assert [gone] == [line.pop() for line in waiting.values() if line and line[-1] is gone]
                        entry = queue.push(team, number, weight)
                if entry is not None:
                    waiting[team].append(entry)
                number += 1
            case None:
                entry = queue.first()
                assert (entry is None) == (total == 0)
                if entry is not None:
                    line = next(line for line in waiting.values() if line and line[0] is entry)
                    queue.serve(entry)
                    line.pop(0)
            case index:
                every = [entry for line in waiting.values() for entry in line]
                if every:
                    entry = every[index % len(every)]
                    assert queue.remove(entry)
                    next(line for line in waiting.values() if entry in line).remove(entry)
        for team, line in waiting.items():
            assert queue.waiting(team) == len(line)
            assert queue.first_of(team) is (line[0] if line else None)
    left = [entry.item for line in waiting.values() for entry in line]
    assert sorted(served(queue)) == sorted(left)


class Backlogs(RuleBasedStateMachine):
    """Any history; over every span in which two teams wait all the time, each has its share but for one request."""

    def __init__(self):
        super().__init__()
        self.queue = FairQueue(10_000)
        self.weights = {team: WEIGHTS[index % len(WEIGHTS)] for index, team in enumerate(TEAMS)}
        self.order: list[str] = []
        self.since: dict[str, int] = {}
        """Of each team that waits: what had been served when it came."""
        self.entries: dict[str, list] = defaultdict(list)

    @rule(team=st.sampled_from(TEAMS), count=st.integers(1, 30))
    def come(self, team, count):
        for _ in range(count):
            self.entries[team].append(self.queue.push(team, team, self.weights[team]))
        self.since.setdefault(team, len(self.order))

    @rule(team=st.sampled_from(TEAMS), last=st.booleans())
    def leave(self, team, last):
        if self.entries[team]:
            self.queue.remove(self.entries[team].pop(-1 if last else 0))
            self.note(team)

    @precondition(lambda self: len(self.queue))
    @rule(count=st.integers(1, 40))
    def serve(self, count):
        for _ in range(min(count, len(self.queue))):
            entry = self.queue.first()
            self.queue.serve(entry)
            self.order.append(entry.item)
            assert self.entries[entry.item].pop(0) is entry
            self.check()
            self.note(entry.item)

    def note(self, team):
        if not self.entries[team]:
            self.since.pop(team, None)

    def check(self):
        """Only spans that end now are new; those that end when a line runs out are the last to be checked."""
        for one in self.since:
            for other in self.since:
                if one < other:
                    self.check_pair(one, other)

    def check_pair(self, one, other):
        weight, other_weight = self.weights[one], self.weights[other]
        span = self.order[max(self.since[one], self.since[other]) :]
        # From every beginning to now: what is ahead may change its sign only once a step, so the extremes tell all.
        ahead, most, least = Fraction(0), Fraction(0), Fraction(0)
        for team in span:
            ahead += Fraction(team == one, weight) - Fraction(team == other, other_weight)
            most, least = max(most, ahead), min(least, ahead)
        assert most - least <= Fraction(1, weight) + Fraction(1, other_weight)

    @invariant()
    def all_are_here(self):
        assert len(self.queue) == sum(map(len, self.entries.values()))


Backlogs.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestBacklogs = Backlogs.TestCase


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(0, 60), st.sampled_from(WEIGHTS))
@settings(max_examples=200, deadline=None)
def test_a_newcomer_waits_for_one_of_each_other_team_at_most(crowds, before, weight):
    queue = FairQueue(10_000)
    for index, crowd in enumerate(crowds):
        for _ in range(crowd):
            queue.push(f"team-{index}", f"team-{index}")
    served(queue, before)
    event(f"{len(queue) > 0}")
    queue.push("newcomer", "newcomer", weight)
    order = served(queue)
    ahead = order[: order.index("newcomer")]
    assert len(ahead) == len(set(ahead)) <= len(crowds)


@pytest.mark.parametrize("weight", [0, -3, 101, 10**9])
def test_weights_out_of_bounds_are_held_to_them(weight):
    queue = FairQueue(1_000)
    for _ in range(300):
        queue.push("a", "a", weight)
        queue.push("b", "b", min(100, max(1, weight)))
    assert abs(served(queue, 100).count("a") - 50) <= 1
