"""What is owed is added up, taken once, and bounded."""

from proxy.adapters.redis.debts import Debt, Debts
from proxy.core.bucket import Cost, Scope
from proxy.core.tiers import Limits, Schedule


def scopes(tokens, *names):
    limits = Limits(10, tokens)
    return tuple(Scope(name, Schedule(limits, limits)) for name in names)


TEAM = scopes(600, "team")


def test_debts_to_the_same_buckets_are_added_up_under_the_latest_limits():
    debts = Debts()
    debts.add("a", TEAM, Cost(1, 100), doubtful=False)
    debts.add("a", scopes(700, "team"), Cost(-1, 30), doubtful=False)
    debts.add("b", TEAM, Cost(0, 1), doubtful=False)
    assert list(debts.take("a")) == [Debt(scopes(700, "team"), 1, 130, doubtful=False)]
    assert "a" not in debts
    assert list(debts.take("a")) == []
    assert "b" in debts


def test_what_is_in_doubt_and_other_buckets_are_kept_apart():
    debts = Debts()
    debts.add("a", TEAM, Cost(0, 1), doubtful=False)
    debts.add("a", TEAM, Cost(0, 2), doubtful=True)
    debts.add("a", scopes(600, "team", "key:k"), Cost(0, 4), doubtful=False)
    assert sorted(debt.tokens for debt in debts.take("a")) == [1, 2, 4]


def test_the_oldest_team_goes_when_there_is_no_more_room():
    debts = Debts()
    for number in range(10_003):
        debts.add(f"team-{number}", TEAM, Cost(0, 1), doubtful=False)
    assert debts.forgotten == 3
    assert "team-2" not in debts
    assert "team-3" in debts
