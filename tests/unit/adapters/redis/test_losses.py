"""A bucket that holds less than what we alone have put into it has lost something; no other is said to have."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.adapters.redis.losses import Losses
from proxy.core import bucket
from proxy.core.bucket import EPOCH_SPAN, Cost, Scope
from proxy.core.tiers import Limits, Schedule

NOW = 1_700_000_000_000


def scope_of(*figures, name="team"):
    return Scope(name, Schedule(Limits(*figures), Limits(*figures)))


class Store:
    """Buckets as a store keeps them, each made in an epoch of its own; workers hear of what they were given."""

    def __init__(self, *scopes, workers=1):
        self.scopes = scopes
        self.states = [None] * len(scopes)
        self.now_ms = NOW
        self.epoch = 0
        self.workers = [Losses() for _ in range(workers)]

    def reserve(self, cost, at=0):
        self.epoch += 1
        self.expire()
        answer, after = bucket.reserve(self.states, self.scopes, cost, self.now_ms, self.epoch)
        self.states = [new or old for new, old in zip(after, self.states, strict=True)]
        decision = bucket.decision("a", self.scopes, cost, answer)
        if not isinstance(decision, bucket.Admitted):
            return None
        reservation = decision.reservation
        self.workers[at].admitted("a", self.scopes, cost, reservation.handles, self.now_ms)
        return reservation

    def settle(self, reservation, actual, at=0):
        self.epoch += 1
        self.expire()
        self.workers[at].settled("a", self.scopes, reservation.cost, actual)
        for index, (scope, handle) in enumerate(zip(self.scopes, reservation.handles, strict=True)):
            self.states[index] = bucket.settle(
                self.states[index], scope.schedule, handle, reservation.cost, actual, self.now_ms, self.epoch
            )

    def expire(self):
        """A bucket that is full is none."""
        for index, (state, scope) in enumerate(zip(self.states, self.scopes, strict=True)):
            if state is not None and bucket.is_full(state, scope.schedule, self.now_ms):
                self.states[index] = None

    @property
    def noticed(self):
        return sum(losses.noticed for losses in self.workers)


def test_a_bucket_that_is_gone_is_noticed_once():
    store = Store(scope_of(60, 6_000), scope_of(60, name="key:k"))
    store.reserve(Cost(1, 100))
    store.states[0] = None
    store.reserve(Cost(1, 100))
    assert store.noticed == 1
    store.reserve(Cost(1, 100))
    assert store.noticed == 1
    store.states = [None, None]
    store.reserve(Cost(1, 100))
    assert store.noticed == 3


def test_one_that_is_older_than_what_was_told_is_noticed():
    store = Store(scope_of(60, 6_000))
    store.reserve(Cost(1, 100))
    before = store.states
    store.reserve(Cost(1, 100))
    # As after the failover to a replica that was behind: the same life of the bucket, and less in it.
    store.states = before
    store.reserve(Cost(1, 100))
    assert store.noticed == 1


def test_what_was_given_back_is_not_missed_and_what_was_used_is():
    store = Store(scope_of(None, 6_000))
    store.settle(store.reserve(Cost(1, 100)), Cost(1, 0))
    assert bucket.is_full(store.states[0], store.scopes[0].schedule, store.now_ms)
    store.reserve(Cost(1, 50))
    assert store.noticed == 0
    store.settle(store.reserve(Cost(1, 100)), Cost(1, 40))
    store.states = [None]
    store.reserve(Cost(1, 50))
    assert store.noticed == 1


def test_expiry_is_no_loss_to_the_millisecond():
    store = Store(scope_of(60))
    store.reserve(Cost(2, 0))
    store.now_ms += 1_999
    store.states = [None]
    store.reserve(Cost(1, 0))
    assert store.noticed == 1
    store.now_ms += 1_000
    store.expire()
    assert store.states == [None]
    store.reserve(Cost(1, 0))
    assert store.noticed == 1


def test_a_new_epoch_is_no_loss():
    store = Store(scope_of(None, 6_000))
    store.reserve(Cost(0, 100))
    epoch, at_ms, used_r, removed_r, used_t, _ = store.states[0]
    store.states = [(epoch, at_ms, used_r, removed_r, used_t, EPOCH_SPAN + 1)]
    store.reserve(Cost(0, 100))
    assert store.states[0][0] != epoch
    assert store.noticed == 0


def test_a_clock_that_was_set_is_no_loss():
    store = Store(scope_of(60, 6_000))
    for by_ms in (0, -10_000, 5_000, 3_600_000, -1_000):
        store.now_ms += by_ms
        store.reserve(Cost(1, 100))
    assert store.noticed == 0


def test_a_limit_that_is_raised_or_lifted_is_no_loss():
    store = Store(scope_of(60, 6_000))
    store.reserve(Cost(10, 1_000))
    store.now_ms += 100
    store.scopes = (scope_of(600_000, None),)
    store.reserve(Cost(1, 100))
    store.scopes = (scope_of(60, 6_000),)
    store.reserve(Cost(1, 100))
    assert store.noticed == 0


def test_a_switch_to_a_higher_limit_is_no_loss():
    low, high = Limits(60), Limits(600_000)
    store = Store(Scope("team", Schedule(low, high, NOW + 50)))
    store.reserve(Cost(10, 0))
    store.now_ms += 200
    store.reserve(Cost(1, 0))
    assert store.noticed == 0


def test_buckets_without_number_are_not_remembered():
    losses, store = Losses(), Store(scope_of(60))
    reservation = store.reserve(Cost(1, 0))
    for team in range(10_100):
        losses.admitted(str(team), store.scopes, Cost(1, 0), reservation.handles, NOW)
    assert len(losses._of_bucket) == 10_000


@given(
    st.integers(1, 3),
    st.lists(
        st.tuples(
            st.integers(0, 2),
            st.sampled_from([0, 0, 1, 500, 3_000, 61_000]),
            st.integers(0, 3),
            st.integers(0, 200),
            st.none() | st.integers(0, 400),
        ),
        max_size=50,
    ),
)
@settings(max_examples=300, deadline=None)
def test_no_history_of_several_workers_is_taken_for_a_loss(workers, history):
    store, under_way = Store(scope_of(600, 6_000, 20, 1_000), scope_of(60, name="key:k"), workers=workers), []
    for who, passed_ms, requests, tokens, actual in history:
        store.now_ms += passed_ms
        if actual is not None and under_way:
            reservation, at = under_way.pop(actual % len(under_way))
            store.settle(reservation, Cost(min(requests, 1), actual), at)
            continue
        at = who % workers
        reservation = store.reserve(Cost(requests, tokens), at)
        if reservation is not None:
            under_way.append((reservation, at))
    assert store.noticed == 0


@given(st.lists(st.tuples(st.integers(0, 400), st.integers(1, 100)), min_size=1, max_size=20), st.data())
@settings(max_examples=150, deadline=None)
def test_a_lost_bucket_is_noticed_while_anything_of_ours_must_be_left(history, data):
    store = Store(scope_of(None, 6_000))
    for passed_ms, tokens in history:
        store.now_ms += passed_ms
        store.reserve(Cost(0, tokens))
    store.now_ms += data.draw(st.integers(0, 2_000))
    store.expire()
    left = store.states[0]
    must_be_left = left is not None and bucket.advance(left, store.scopes[0].schedule, store.now_ms)[0][4] > 0
    store.states = [None]
    store.reserve(Cost(0, 1))
    assert store.noticed == must_be_left
