"""Budgets in the database: changed with all else in one transaction, audited, read with whom they belong to."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.adapters.secrets import load_or_create_pepper
from proxy.adapters.sql.engine import open_engine
from proxy.adapters.sql.key_store import SqlKeyStore
from proxy.adapters.sql.registry import SqlRegistry
from proxy.adapters.sql.told import SqlToldWarnings
from proxy.core.budget import LARGEST_BUDGET_NANO_USD, Budget, Cap, Period, span_of
from proxy.core.caps import BadBudgetChange, BudgetReached, changed_budgets, owner_of, period_of, usd_of
from proxy.core.registry import BadValue

NOW_MS = 1_800_000_000_000
MONTHLY = {Period.MONTH: {"limit_nano_usd": 500, "warn_nano_usd": 400}}


class SetClock:
    def now_ms(self):
        return NOW_MS

    def monotonic_ns(self):
        return NOW_MS * 1_000_000


@pytest.fixture
def engine(database):
    engine = open_engine(database)
    yield engine
    engine.dispose()


@pytest.fixture
def registry(engine, tmp_path):
    return SqlRegistry(engine, SetClock(), load_or_create_pepper(tmp_path / "secrets"), actor="cli:ada")


async def test_both_are_found_on_the_request_path_and_nobody_elses(engine, registry):
    registry.add_team("growth", "free", budgets=MONTHLY)
    registry.add_team("research", "free", budgets={Period.DAY: {"warn_nano_usd": 7}})
    kid = registry.issue_key("growth", budgets={Period.TOTAL: {"limit_nano_usd": 9}}).record.kid
    other = registry.issue_key("growth", budgets={Period.DAY: {"limit_nano_usd": 3}}).record.kid
    store = SqlKeyStore(engine)
    key, team = await store.find(kid)
    assert team.budgets == (Budget(Period.MONTH, 500, 400),)
    assert key.budgets == (Budget(Period.TOTAL, 9),)
    assert (await store.find(other))[0].budgets == (Budget(Period.DAY, 3),)
    assert [each.budgets for each in registry.list_keys()] == [
        record.budgets for record in (registry.get_key(each.kid) for each in registry.list_keys())
    ]
    assert [each.budgets for each in registry.list_teams()] == [
        (Budget(Period.MONTH, 500, 400),),
        (Budget(Period.DAY, None, 7),),
    ]


def test_imported_keys_get_the_same_budgets_each(registry):
    registry.add_team("growth", "free")
    lines = ["key-from-elsewhere-0123456789", "key-from-elsewhere-9876543210"]
    imported = registry.import_keys("growth", lines, budgets=MONTHLY)
    assert [registry.get_key(each.kid).budgets for each in imported] == [(Budget(Period.MONTH, 500, 400),)] * 2


def test_a_change_says_in_the_audit_log_what_holds_from_then_on(engine, registry):
    registry.add_team("growth", "free", budgets=MONTHLY)
    before = SqlKeyStore(engine).read_revision()
    registry.set_team("growth", budgets={Period.MONTH: {"limit_nano_usd": None}, Period.DAY: {"limit_nano_usd": 5}})
    assert SqlKeyStore(engine).read_revision() == before + 1
    last = registry.list_audit()[-1]
    assert (last.action, last.subject, last.team) == ("team.set", "growth", "growth")
    assert last.details == {
        "budgets": {
            "month": {"limit_nano_usd": None, "warn_nano_usd": 400},
            "day": {"limit_nano_usd": 5, "warn_nano_usd": None},
        }
    }


def test_one_that_cannot_be_held_leaves_everything_as_it_was(engine, registry):
    registry.add_team("growth", "free", budgets=MONTHLY)
    before = registry.get_team("growth"), SqlKeyStore(engine).read_revision()
    with pytest.raises(BadValue):
        registry.set_team("growth", tier="payg", budgets={Period.MONTH: {"limit_nano_usd": 399}})
    with pytest.raises(BadValue):
        registry.set_team("growth", budgets={Period.DAY: {"limit_nano_usd": LARGEST_BUDGET_NANO_USD + 1}})
    with pytest.raises(BadValue):
        registry.add_team("other", "free", budgets={Period.DAY: {"warn_nano_usd": 0}})
    assert (registry.get_team("growth"), SqlKeyStore(engine).read_revision()) == before
    assert [team.name for team in registry.list_teams()] == ["growth"]


async def test_a_warning_is_told_by_one_alone_and_once_for_each_amount_and_span(engine):
    notes = SqlToldWarnings(engine), SqlToldWarnings(engine)

    def reached(scope="team", period=Period.DAY, warn=400, team="growth"):
        return BudgetReached(team, owner_of(scope), Cap(scope, span_of(period, NOW_MS), 500, warn), NOW_MS)

    assert [await note.first(reached()) for note in notes] == [True, False]
    for other in (
        reached("key:0a1B2c3D4e5F"), reached(period=Period.MONTH), reached(warn=401), reached(team="research")
    ):  # fmt: skip
        assert [await note.first(other) for note in notes] == [True, False]


amounts = st.none() | st.integers(0, 1_000)
changes = st.dictionaries(
    st.sampled_from(Period), st.fixed_dictionaries({}, optional={"limit_nano_usd": amounts, "warn_nano_usd": amounts})
)


@given(st.lists(changes, max_size=6))
def test_whatever_is_changed_each_period_has_one_budget_that_can_be_held(steps):
    held, by_hand = (), {}
    for change in steps:
        wanted = {period: dict(by_hand.get(period, {})) | each for period, each in change.items()}
        try:
            held = changed_budgets(held, change)
        except BadBudgetChange:
            continue
        by_hand |= wanted
        for budget in held:
            warn, limit = budget.warn_nano_usd, budget.limit_nano_usd
            assert warn is None or (warn > 0 and (limit is None or warn <= limit))
    given_amounts = {
        period: {name: amount for name, amount in each.items() if amount is not None}
        for period, each in by_hand.items()
    }
    assert {budget.period: (budget.limit_nano_usd, budget.warn_nano_usd) for budget in held} == {
        period: (each.get("limit_nano_usd"), each.get("warn_nano_usd"))
        for period, each in given_amounts.items()
        if each
    }
    assert [budget.period for budget in held] == sorted((each.period for each in held), key=list(Period).index)


@given(st.sampled_from(Period), st.integers(0, 2**42))
def test_a_span_knows_its_period(period, at_ms):
    assert period_of(span_of(period, at_ms)) is period


@given(st.integers(0, LARGEST_BUDGET_NANO_USD))
def test_amounts_are_told_exactly(nano_usd):
    whole, _, decimals = usd_of(nano_usd).partition(".")
    assert int(whole) * 10**9 + int(decimals.ljust(9, "0")) == nano_usd
    assert 2 <= len(decimals) <= 9
