"""Points in time on the command line: a day, or a duration before now."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import click

from proxy.cli.stores import now_ms
from proxy.settings import parse_duration_ms

__all__ = ["INSTANT"]


class _Instant(click.ParamType[int]):
    """A day (2026-11-01, its start in UTC) or a duration before now (30d), in unix milliseconds."""

    name = "instant"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return int(datetime.strptime(value, "%Y-%m-%d").replace(tzinfo=UTC).timestamp()) * 1_000
        except ValueError:
            pass
        try:
            return max(0, now_ms() - parse_duration_ms(value))
        except ValueError:
            self.fail(f"{value!r} is neither a day (2026-11-01) nor a duration (30d)", param, ctx)


INSTANT = _Instant()
