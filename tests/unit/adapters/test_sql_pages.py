"""Long lists of keys and of the audit log, page by page."""

import pytest

from proxy.adapters.secrets import load_or_create_pepper
from proxy.adapters.sql.engine import open_engine
from proxy.adapters.sql.registry import SqlRegistry
from proxy.core.registry import KeyUnknown, TeamUnknown


class Stepping:
    """A clock that stands still for a few looks, so that several keys are made in one millisecond, and steps back."""

    def __init__(self):
        self.looks = 0

    def now_ms(self):
        self.looks += 1
        return 1_800_000_000_000 + (self.looks // 7) * 10 - (500 if 60 < self.looks < 80 else 0)

    def monotonic_ns(self):
        return 0


@pytest.fixture
def registry(database, tmp_path):
    engine = open_engine(database)
    registry = SqlRegistry(engine, Stepping(), load_or_create_pepper(tmp_path / "secrets"))
    for team in ("growth", "sales"):
        registry.add_team(team, "free")
    for number in range(23):
        registry.issue_key(("growth", "sales")[number % 2], f"key {number}")
    registry.rotate_key(registry.list_keys()[5].kid, 60_000)
    yield registry
    engine.dispose()


def pages(read, place, limit):
    found, after = [], None
    while page := read(after=after, limit=limit):
        assert len(page) <= limit
        found += page
        after = place(page[-1])
    return found


@pytest.mark.parametrize("limit", [1, 4, 23, 1_000])
@pytest.mark.parametrize("team", [None, "growth"])
def test_pages_of_keys_are_the_list(registry, team, limit):
    whole = registry.list_keys(team)
    assert len(whole) == (23 if team is None else 12)
    if team is None:
        assert len({record.created_at_ms for record in whole}) < 23, "some were made in one millisecond"
    read = pages(
        lambda **page: registry.list_keys(team, **page), lambda record: (record.created_at_ms, record.kid), limit
    )
    assert read == whole
    assert all(record.secrets for record in read)


@pytest.mark.parametrize("limit", [1, 4, 1_000])
@pytest.mark.parametrize("team", [None, "sales"])
def test_pages_of_the_audit_log_are_the_log(registry, team, limit):
    whole = registry.list_audit(team=team)
    read = pages(lambda **page: registry.list_audit(team=team, **page), lambda entry: entry.serial, limit)
    assert read == whole
    assert [entry.serial for entry in whole] == sorted({entry.serial for entry in whole})


def test_a_key_that_is_made_between_two_pages_is_on_a_later_one(registry):
    first = registry.list_keys(limit=20)
    made = registry.issue_key("growth", "late").record
    rest = registry.list_keys(after=(first[-1].created_at_ms, first[-1].kid), limit=20)
    assert [record.kid for record in (*first, *rest)] == [record.kid for record in registry.list_keys()]
    assert made.kid in {record.kid for record in rest}


def test_one_key(registry):
    record = registry.list_keys()[3]
    assert registry.get_key(record.kid) == registry.get_key(f"sk-tg_{record.kid}") == record
    for nobody in ("0" * 12, "", "x", "' OR 1=1 --", "\x00" * 12):
        with pytest.raises(KeyUnknown):
            registry.get_key(nobody)


def test_pages_of_nobody(registry):
    for read in (registry.list_keys, lambda team, **page: registry.list_audit(team=team, **page)):
        with pytest.raises(TeamUnknown):
            read("nobody", limit=5)
