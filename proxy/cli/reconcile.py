"""`tollgate reconcile`."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from pathlib import Path
from typing import Any

import click

from proxy.cli.options import data_options, json_option, settings_from
from proxy.cli.output import Cell, echo_json, echo_table, printable
from proxy.cli.stores import reports_of
from proxy.core.money import PICO_DIGITS, format_usd
from proxy.core.openai_export import Export, ExportInvalid, read_export
from proxy.core.price_table import day_ms
from proxy.core.reconcile import MEASURES, Comparison, Entry, Figure, compare
from proxy.core.registry import Axis, UsageRow

__all__ = ["reconcile"]

_DAY_MS = 86_400_000
_HEADER = ("day", "model", "measure", "ledger", "openai", "difference", "estimated")


class _Percent(click.ParamType[Fraction]):
    """A part of what is stated, in percent: `0.5`, or `0.5%`."""

    name = "percent"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Fraction:
        if isinstance(value, Fraction):
            return value
        try:
            percent = Decimal(value.removesuffix("%"))
        except InvalidOperation:
            percent = Decimal(-1)
        if not percent.is_finite() or not 0 <= percent <= 100:
            self.fail(f"{value!r} is no percentage from 0 to 100", param, ctx)
        return Fraction(percent) / 100


@click.command
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path(path_type=Path))
@click.option("--tolerance", type=_Percent(), default="0", show_default=True, metavar="PERCENT",
              help="Of OpenAI's figure; what differs by no more ties out.")  # fmt: skip
@click.option("--upstream", "upstream", metavar="NAME", help="Requests to this upstream alone; default: to any.")
@click.option("--all", "show_all", is_flag=True, help="Show what ties out as well.")
@data_options
@json_option
def reconcile(
    files: tuple[Path, ...],
    tolerance: Fraction,
    upstream: str | None,
    *,
    show_all: bool,
    config: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Compare the ledger with OpenAI's usage and costs export, by day (UTC) and model.

    FILE is JSON of the organization's usage API or costs API, grouped by model and by line_item, or CSV of the
    dashboard's export of activity (start_time, model, num_model_requests, input_tokens, output_tokens,
    input_cached_tokens) or cost (start_time, amount_value, amount_currency, line_item). Export what Tollgate's own key
    or project used: the rest of the account is not in the ledger.

    Exits with 1 when a figure differs by more than --tolerance. A model that was asked for by its alias is compared
    with its dated snapshots as one, and the output says so. Answers from the cache are not compared. Estimated is how
    many requests of the ledger have tokens counted here; requests that ended about midnight may be a day apart.

    \b
    Examples:
      tollgate reconcile completions_usage.json costs.json
      tollgate reconcile cost_2026-11.csv --tolerance 0.5
    """
    stated = _read(files)
    settings = settings_from(config, options)
    days = sorted(stated.days)
    with reports_of(settings) as reports:
        axes = (Axis.DAY, Axis.MODEL, Axis.UPSTREAM)
        rows = list(reports.usage(axes, day_ms(days[0]), day_ms(days[-1]) + _DAY_MS))
    ledger = [_entry(row) for row in rows if row.group[2] and upstream in (None, row.group[2])]
    found = compare(ledger, stated.entries, days)
    differing = found.differing(tolerance)
    shown = found.figures if show_all else differing
    if as_json:
        echo_json(_as_json(found, shown, ok=not differing))
    else:
        _print(found, shown, len(differing))
    click.get_current_context().exit(1 if differing else 0)


def _read(files: Iterable[Path]) -> Export:
    """What all files state together; a page that lacks the next one is noted."""
    whole = Export()
    for path in files:
        try:
            export = read_export(path.read_bytes().decode("utf-8"))
        except OSError as error:
            raise click.ClickException(f"{printable(str(path))}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise click.ClickException(f"{printable(str(path))}: is not UTF-8") from None
        except ExportInvalid as error:
            raise click.ClickException(printable(f"{path}: {error}")) from None
        if export.more:
            click.echo(f"note: {printable(str(path))} is not the last page (has_more)", err=True)
        whole.entries += export.entries
        whole.days |= export.days
    return whole


def _entry(row: UsageRow) -> Entry:
    amounts = {name: getattr(row.usage, name) for name in MEASURES if hasattr(row.usage, name)}
    amounts |= {"requests": row.requests, "cost_pico_usd": row.cost_pico_usd}
    return Entry(date.fromisoformat(row.group[0]), row.group[1], amounts, row.estimated)


def _print(found: Comparison, shown: Iterable[Figure], differing: int) -> None:
    rows = [(str(each.day), each.model or "(all)", *_cells(each), each.estimated) for each in shown]
    if rows:
        echo_table(_HEADER, rows, right=_HEADER[3:6])
    for base, names in found.together.items():
        click.echo(printable(f"{base}: {', '.join(names)} are compared as one"))
    for total in found.totals():
        measure, ledger, openai, difference = _cells(total)
        click.echo(f"{measure}: ledger {ledger}, OpenAI {openai}, difference {difference}")
    days = f"{found.days[0]} to {found.days[-1]}"
    if differing:
        click.echo(f"{days}: {differing:,} of {len(found.figures):,} figures do not tie out")
    else:
        click.echo(f"{days}: ties out, {len(found.figures):,} figures")


def _cells(figure: Figure, digits: int = 6) -> tuple[Cell, ...]:
    if figure.measure != "cost_pico_usd":
        return (figure.measure, *(f"{int(each):,}" for each in (figure.ledger, figure.stated, figure.difference)))
    amounts = (format_usd(round(each), digits) for each in (figure.ledger, figure.stated, figure.difference))
    return ("cost_usd", *amounts)


def _as_json(found: Comparison, shown: Iterable[Figure], *, ok: bool) -> dict[str, object]:
    return {
        "ok": ok,
        "days": [str(day) for day in found.days],
        "figures": [
            {"day": str(each.day), "model": each.model or None} | _told(each) | {"estimated": each.estimated}
            for each in shown
        ],
        "compared_as_one": {base: list(names) for base, names in found.together.items()},
        "totals": [_told(each) for each in found.totals()],
    }


def _told(figure: Figure) -> dict[str, object]:
    """Counts as numbers, money as text with every place there is."""
    if figure.measure == "cost_pico_usd":
        return dict(zip(_HEADER[2:6], _cells(figure, PICO_DIGITS), strict=True))
    amounts = (int(each) for each in (figure.ledger, figure.stated, figure.difference))
    return dict(zip(_HEADER[2:6], (figure.measure, *amounts), strict=True))
