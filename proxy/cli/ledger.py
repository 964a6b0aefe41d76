"""`tollgate ledger`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import msgspec

from proxy.cli.options import data_options, json_option, settings_from
from proxy.cli.output import echo_json, printable
from proxy.cli.stores import actor, books_of
from proxy.core.books import Findings
from proxy.core.money import PICO_DIGITS, format_usd
from proxy.core.views.ledger import DAILY_KEY, findings_view

__all__ = ["ledger"]


@click.group
def ledger() -> None:
    """Prove the ledger."""


@ledger.command
@click.option("--rebuild", is_flag=True, help="Make the daily totals anew from the events, then verify.")
@data_options
@json_option
def verify(*, rebuild: bool, config: Path | None, as_json: bool, **options: Any) -> None:
    """Prove that the account ties out, beside a running server or without one.

    Every daily total is the sum of its events, to the pico-dollar; every event is kept under the day its id was made
    in; no offset of the spool leads astray, and no segment is damaged. Exits with 1 and names what differs.

    Events are never changed. --rebuild replaces the daily totals alone, in one transaction that the audit log tells of.

    \b
    Examples:
      tollgate ledger verify
      tollgate ledger verify --json
      tollgate ledger verify --rebuild
    """
    settings = settings_from(config, options)
    rebuilt = None
    with books_of(settings, actor()) as books:
        if rebuild:
            rebuilt = books.rebuild()
        findings = books.verify()
    if as_json:
        echo_json(msgspec.to_builtins(findings_view(findings, rebuilt)))
    else:
        if rebuilt is not None:
            click.echo(f"{rebuilt:,} daily totals made anew from the events")
        for line in (*_differences(findings), *_summary(findings)):
            click.echo(printable(line))
    click.get_current_context().exit(0 if findings.tie_out else 1)


def _differences(findings: Findings) -> Iterator[str]:
    for each in findings.mismatches:
        place = " ".join(f"{name}={value}" for name, value in zip(DAILY_KEY, each.group, strict=True))
        yield f"usage_daily {place}: {each.measure} is {each.daily}, its events have {each.events}"
    for one in findings.misdated:
        yield f"usage_events day={one.day} event_id={one.event_id}: the id was made on {one.made_on}"
    for offset in findings.astray:
        yield f"spool_offsets segment={offset.segment}: {offset.offset_bytes} cannot be: {offset.reason}"
    for name in findings.spool.damaged:
        yield f"spool {name}: damaged"


def _summary(findings: Findings) -> Iterator[str]:
    spool = findings.spool
    yield f"{findings.events:,} events, {format_usd(findings.cost_pico_usd, PICO_DIGITS)} USD"
    yield (
        f"spool of this machine: {spool.unshipped_bytes:,} bytes with {spool.unshipped_events:,} events not taken over "
        f"yet, {spool.open_requests:,} requests open, {spool.writers:,} writers"
    )
    if findings.tie_out:
        yield "the books tie out"
    else:
        rows = len({each.group for each in findings.mismatches})
        offsets, damaged = len(findings.astray), len(spool.damaged)
        yield (
            f"the books do not tie out: {rows:,} daily totals, {len(findings.misdated):,} events, {offsets:,} offsets, "
            f"{damaged:,} segments"
        )
