"""What is owed is added up, taken once, sent under one name, and bounded."""

from proxy.adapters.redis.debts import Debts
from proxy.core.bucket import Cost, Scope
from proxy.core.tiers import Limits, Schedule


def scopes(tokens, *names):
    limits = Limits(10, tokens)
    return tuple(Scope(name, Schedule(limits, limits)) for name in names)


TEAM = scopes(600, "team")


def take(debts, team="a"):
    return list(debts.take(team))


def test_debts_to_the_same_buckets_are_added_up_under_the_latest_limits():
    debts = Debts()
    debts.add("a", TEAM, Cost(1, 100))
    debts.add("a", scopes(700, "team"), Cost(-1, 30))
    debts.add("b", TEAM, Cost(0, 1))
    (debt,) = take(debts)
    assert (debt.scopes, debt.cost) == (scopes(700, "team"), Cost(1, 130))
    assert "a" not in debts
    assert take(debts) == []
    assert "b" in debts


def test_debts_to_other_buckets_are_kept_apart():
    debts = Debts()
    debts.add("a", TEAM, Cost(0, 1))
    debts.add("a", scopes(600, "team", "key:k"), Cost(0, 4))
    assert sorted(debt.tokens for debt in take(debts)) == [1, 4]


def test_one_that_may_have_been_charged_is_sent_as_it_was_under_the_name_it_had():
    debts = Debts()
    debts.add("a", TEAM, Cost(0, 1))
    (sent,) = take(debts)
    sent.doubtful, name = True, sent.id
    debts.keep("a", sent)
    debts.add("a", TEAM, Cost(0, 2))
    first, second = take(debts)
    assert (first.id, first.cost) == (name, Cost(0, 1))
    assert (second.cost, second.doubtful) == (Cost(0, 2), False)
    assert second.id not in {name, ""}


def test_one_that_was_not_charged_is_added_to_the_others():
    debts = Debts()
    debts.add("a", TEAM, Cost(0, 1))
    (sent,) = take(debts)
    debts.add("a", TEAM, Cost(0, 2))
    debts.keep("a", sent)
    (debt,) = take(debts)
    assert debt.cost == Cost(0, 3)
    assert debt.id != sent.id


def test_names_of_two_processes_differ():
    names = set()
    for debts in (Debts(), Debts()):
        debts.add("a", TEAM, Cost(0, 1))
        names |= {debt.id for debt in take(debts)}
    assert len(names) == 2


def test_doubts_of_a_team_are_bounded_and_none_is_dropped():
    debts = Debts()
    for _ in range(100):
        debts.add("a", TEAM, Cost(0, 1))
        for debt in take(debts):
            debt.doubtful = True
            debts.keep("a", debt)
    left = take(debts)
    assert len(left) <= 66
    assert sum(debt.tokens for debt in left) == 100


def test_the_oldest_team_goes_when_there_is_no_more_room():
    debts = Debts()
    for number in range(10_003):
        debts.add(f"team-{number}", TEAM, Cost(0, 1))
    assert debts.forgotten == 3
    assert "team-2" not in debts
    assert "team-3" in debts
