"""`tollgate usage`."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from proxy.cli.instants import INSTANT
from proxy.cli.options import data_options, json_option, settings_from
from proxy.cli.output import echo_csv, echo_json_rows, echo_table
from proxy.cli.stores import registry_of, reports_of
from proxy.core.registry import Axis, UsageRow
from proxy.core.views.usage import usage_cells, usage_header

__all__ = ["usage"]

_LONG_ROWS = 10_000
"""Where an export takes long enough to be waited for."""


class _Axes(click.ParamType[tuple[Axis, ...]]):
    """Names of axes with commas between them."""

    name = "axes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Axis, ...]:
        if isinstance(value, tuple):
            return value
        try:
            axes = tuple(Axis(each.strip()) for each in value.split(",") if each.strip())
        except ValueError as error:
            self.fail(f"{error}: choose from {', '.join(Axis)}", param, ctx)
        if len(set(axes)) < len(axes):
            self.fail("each axis once", param, ctx)
        return axes


@click.command
@click.option("--by", type=_Axes(), default="team", show_default=True, metavar="AXES", help=f"Of {', '.join(Axis)}.")
@click.option("--since", type=INSTANT, default="30d", show_default=True, metavar="WHEN", help="30d, 48h, 2026-11-01.")
@click.option("--until", type=INSTANT, metavar="WHEN", help="The same; default: now.")
@click.option("--team", help="Of this team alone.")
@data_options
@json_option
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
def usage(
    by: tuple[Axis, ...],
    since: int,
    until: int | None,
    team: str | None,
    *,
    config: Path | None,
    as_json: bool,
    as_csv: bool,
    **options: Any,
) -> None:
    """Show what was used and what it cost, out of the ledger.

    Counts whole days (UTC), those that the time from --since to --until touches. JSON and CSV have exact amounts.
    Tokens are those that were used and paid for; what answers from the cache would have used is in the saved columns.

    \b
    Examples:
      tollgate usage --by team,model --since 30d
      tollgate usage --by day --team growth --since 2026-10-01 --until 2026-11-01
      tollgate usage --by team,model,day --csv > usage.csv
    """
    if as_json and as_csv:
        raise click.UsageError("--json and --csv exclude each other")
    if until is not None and until < since:
        raise click.UsageError("--until is before --since")
    settings = settings_from(config, options)
    header = usage_header(by)
    with reports_of(settings) as reports:
        rows = reports.each_usage(by, since, until, team)
        first = next(rows, None)
        if first is None and team is not None:
            # Nothing to show and a name that was mistyped look alike: only one of them is an answer.
            with registry_of(settings) as registry:
                registry.get_team(team)
        found = rows if first is None else itertools.chain([first], rows)
        if not (as_json or as_csv):
            echo_table(header, [usage_cells(row, 6) for row in found], right=("cost_usd", "saved_usd"))
            return
        with _progress(found, lambda: reports.count_usage(by, since, until, team)) as counted:
            cells = map(usage_cells, counted)
            if as_json:
                echo_json_rows(dict(zip(header, row, strict=True)) for row in cells)
            else:
                echo_csv(header, cells)


@contextmanager
def _progress(rows: Iterable[UsageRow], count: Callable[[], int]) -> Iterator[Iterable[UsageRow]]:
    """Show how far a long export has come, where somebody watches and what is exported goes elsewhere."""
    length = count() if sys.stderr.isatty() and not sys.stdout.isatty() else 0
    if length < _LONG_ROWS:
        yield rows
        return
    with click.progressbar(rows, length=length, label="exporting", file=sys.stderr) as shown:
        yield shown
