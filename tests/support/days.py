"""Days of UTC, which books go by, in tests that look at the real clock."""

from __future__ import annotations

import time
from datetime import UTC, date, datetime, timedelta

__all__ = ["day_that_lasts"]


def day_that_lasts(seconds: float = 40) -> date:
    """Today, once there are so many seconds left of it: what a test then has counted is of one day."""
    now = datetime.now(UTC)
    midnight = datetime.combine(now.date(), datetime.min.time(), UTC) + timedelta(days=1)
    left = (midnight - now).total_seconds()
    if left > seconds:
        return now.date()
    time.sleep(left + 0.1)
    return datetime.now(UTC).date()
