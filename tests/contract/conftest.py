"""Engines a port's contract is held against, and the clock they are driven by."""

from dataclasses import dataclass

import pytest

from proxy.adapters.memory.limiter import MemoryLimiter


@dataclass
class HandClock:
    """A clock that moves when it is told to."""

    wall_ms: int = 1_700_000_000_000
    monotonic_ms: int = 5_000_000

    def now_ms(self):
        return self.wall_ms

    def monotonic_ns(self):
        return self.monotonic_ms * 1_000_000

    def advance(self, passed_ms):
        """Let time pass."""
        self.wall_ms += passed_ms
        self.monotonic_ms += passed_ms

    def step(self, by_ms):
        """Set the wall clock, as an operator or a time daemon does."""
        self.wall_ms += by_ms


@pytest.fixture
def clock():
    return HandClock()


@pytest.fixture(params=["memory"])
def limiter(request, clock):
    """An empty limiter on `clock`, of each engine in turn."""
    return {"memory": MemoryLimiter}[request.param](clock)
