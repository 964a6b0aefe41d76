"""Commands in the test's own process: on one day, and with time for servers that stand still for a moment."""

from __future__ import annotations

import time

import pytest

from proxy.app import cache_store, changes, limiting

_DAY_SECONDS = 86_400
_LONGEST_SECONDS = 45


@pytest.fixture(autouse=True)
def on_one_day() -> None:
    """What is written as of today is read as of today: no test begins in the last moments of a day (UTC)."""
    left_seconds = _DAY_SECONDS - time.time() % _DAY_SECONDS
    if left_seconds < _LONGEST_SECONDS:
        time.sleep(left_seconds)


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks a Redis once gives it the time that a busy machine takes."""
    for module in (limiting, changes, cache_store):
        monkeypatch.setattr(module, "_PATIENCE_SECONDS", 30.0)
