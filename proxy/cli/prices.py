"""`tollgate prices`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import msgspec

from proxy.cli.options import DAY, data_options, json_option, settings_from
from proxy.cli.output import Cell, echo_json, echo_table, printable
from proxy.cli.stores import actor, failures, now_ms
from proxy.core.money import format_usd_per_million
from proxy.core.price import LongContext, Price, Rates, ServiceTier
from proxy.core.price_table import KINDS, PricesInvalid, day_ms
from proxy.core.views.prices import listed, price_day, prices_view

__all__ = ["prices"]

_FILE = click.Path(path_type=Path)


@click.group
def prices() -> None:
    """List prices, prove a price table, add prices from a day on."""


@prices.command("list")
@click.option("--model", metavar="M", help="This model alone: every row, service tier and context length.")
@click.option("--at", "at_day", type=DAY, metavar="DAY", help="Prices of this day (UTC); default: today's.")
@data_options
@json_option
def list_prices(model: str | None, at_day: date | None, *, config: Path | None, as_json: bool, **options: Any) -> None:
    """Show what tokens cost, in dollars per million, and where the prices come from.

    \b
    Examples:
      tollgate prices list
      tollgate prices list --model gpt-5.4 --at 2026-12-01 --json
    """
    import proxy.app.prices  # noqa: PLC0415 - loaded when a command is run, not for --help

    settings = settings_from(config, options)
    with _refusals():
        view = proxy.app.prices.open_prices(settings)
    at_ms = None if at_day is None else day_ms(at_day)
    if model is not None and not view.book.rows(model):
        raise click.ClickException(f"no price is known for {printable(model)}")
    shown = listed(view.book, view.shipped, model, at_ms, now_ms())
    told = prices_view(shown, view.shipped, None if view.file is None else str(view.file), _today())
    if as_json:
        echo_json(msgspec.to_builtins(told))
        return
    rows = [line for row in shown for line in _lines(row.price, row.shipped, whole=model is not None)]
    echo_table(("model", "from", "tier", "context", *(kind.replace("_", " ") for kind in KINDS), "table"), rows, _RIGHT)
    table = told.shipped
    click.echo(f"dollars per million tokens; shipped table of {table.as_of}, {table.age_days} days old: {table.source}")
    if told.file is not None:
        click.echo(f"laid over it: {printable(told.file)}")


@prices.command("check")
@click.argument("file", type=_FILE)
@json_option
def check_prices(file: Path, *, as_json: bool) -> None:
    """Prove a price table (JSON, TOML or CSV) without using it.

    Names the line of everything that is wrong, and exits with 1; what is only unlikely is a note. Amounts must be
    whole pico-dollars per token, which every decimal of at most six places per million tokens is.

    \b
    Examples:
      tollgate prices check prices.json
      tollgate prices check prices.csv --json
    """
    import proxy.app.prices  # noqa: PLC0415 - as above

    try:
        written, table = proxy.app.prices.read_prices(file)
    except PricesInvalid as error:
        if not as_json:
            raise _Refused(str(error)) from None
        problems = [asdict(each) | {"path": ".".join(map(str, each.path))} for each in error.problems]
        echo_json({"ok": False, "problems": problems, "notes": []})
        click.get_current_context().exit(1)
    notes = proxy.app.prices.doubts(written, table)
    if as_json:
        echo_json({"ok": True, "problems": [], "notes": notes})
        return
    _note(notes)
    models = {price.model for price in table.prices}
    click.echo(f"{printable(str(file))}: ok, {len(models):,} models in {len(table.prices):,} rows")


@prices.command("import")
@click.argument("file", type=_FILE)
@click.option("--from", "start", type=DAY, metavar="DAY", help="Day (UTC) the prices hold from; default: tomorrow.")
@data_options
@json_option
def import_prices(file: Path, start: date | None, *, config: Path | None, as_json: bool, **options: Any) -> None:
    """Add the prices of a file to the operator's table, from a day on.

    Takes a price table (JSON, TOML), or CSV with the columns model, input and output, in dollars per million tokens,
    and others that `tollgate prices check` names. The operator's table is prices.file, or prices.json in the data
    directory; it is written whole or not at all, and noted in the audit log. Rows that hold already stay as they are.
    Servers read it when they start.

    \b
    Examples:
      tollgate prices import negotiated.csv
      tollgate prices import prices.json --from 2027-01-01
    """
    import proxy.app.prices  # noqa: PLC0415 - as above

    settings = settings_from(config, options)
    today = _today()
    start = start or today + timedelta(days=1)
    with failures(), _refusals():
        done = proxy.app.prices.import_prices(settings, file, start, today, actor())
    if as_json:
        told = {"file": str(done.file), "from": str(start), "models": list(done.models)}
        echo_json(told | {"passed_over": list(done.passed_over)})
        return
    _note(f"{each} has no place in a price table of ours and is passed over" for each in done.passed_over)
    place = printable(str(done.file))
    if not done.models:
        click.echo(f"{place}: has all of it already")
        return
    click.echo(f"{place}: {len(done.models):,} models; servers read it when they start")


class _Refused(click.ClickException):
    """A table that cannot be used; every problem is on a line of its own, with file and line in front."""

    def show(self, file: Any = None) -> None:
        for line in self.message.splitlines():
            click.echo(printable(line), file=file, err=file is None)


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except PricesInvalid as error:
        raise _Refused(str(error)) from None


_RIGHT = tuple(kind.replace("_", " ") for kind in KINDS)


def _lines(price: Price, shipped: bool, *, whole: bool) -> Iterator[tuple[Cell, ...]]:  # noqa: FBT001 - one of two names
    table = "shipped" if shipped else "own"
    for tier, above, rates in _sheets(price) if whole else [(ServiceTier.DEFAULT, 0, price.rates[ServiceTier.DEFAULT])]:
        context = f"> {above:,}" if above else None
        amounts = (format_usd_per_million(getattr(rates, kind)) for kind in KINDS)
        yield (price.model, price_day(price), tier.value, context, *amounts, table)


def _sheets(price: Price) -> Iterator[tuple[ServiceTier, int, Rates]]:
    """Every tier's rates, then those of a long context with the tokens it begins above."""
    yield from ((tier, 0, price.rates[tier]) for tier in ServiceTier)
    match price.long_context:
        case LongContext(above, rates):
            yield from ((tier, above, rates[tier]) for tier in ServiceTier)


def _note(notes: Any) -> None:
    for note in notes:
        click.echo(f"note: {printable(note)}", err=True)


def _today() -> date:
    return datetime.fromtimestamp(now_ms() // 1_000, UTC).date()
