"""What tests of the database share: a clock that is set by hand, and each database in its turn."""

from __future__ import annotations

import pytest

from proxy.adapters.sql.engine import open_engine


class SetClock:
    def __init__(self):
        self.ms = 1_800_000_000_000

    def now_ms(self):
        return self.ms

    def monotonic_ns(self):
        return self.ms * 1_000_000


@pytest.fixture
def clock():
    return SetClock()


@pytest.fixture
def engine(database):
    engine = open_engine(database)
    yield engine
    engine.dispose()
