"""The proof of the ledger as programs are shown it."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType

from proxy.core.books import Findings
from proxy.core.money import PICO_DIGITS, format_usd
from proxy.core.views.usage import Usd

__all__ = ["DAILY_KEY", "FindingsView", "MisdatedView", "MismatchView", "OffsetView", "SpoolView", "findings_view"]

DAILY_KEY = ("day", "team", "key", "model", "upstream", "endpoint")
"""What a daily total is of."""


class MismatchView(msgspec.Struct, frozen=True, kw_only=True):
    """A daily total that is not the sum of its events."""

    day: str
    team: str
    key: str
    model: str
    upstream: str
    endpoint: str
    measure: str
    daily: int
    events: int


class MisdatedView(msgspec.Struct, frozen=True, kw_only=True):
    """An event that is kept under another day than the one in which its id was made."""

    day: str
    event_id: str
    made_on: str


class OffsetView(msgspec.Struct, frozen=True, kw_only=True):
    """How far a segment of the spool is said to have been taken over, which cannot be."""

    segment: str
    offset_bytes: int
    reason: str


class SpoolView(msgspec.Struct, frozen=True, kw_only=True):
    """What waits in the spool of this machine."""

    writers: int
    unshipped_bytes: int
    unshipped_events: int
    open_requests: int
    damaged: list[str]


class FindingsView(msgspec.Struct, frozen=True, kw_only=True):
    """What a look at the ledger has found; `ok` when the books tie out."""

    ok: bool
    events: int
    cost_usd: Usd
    mismatches: list[MismatchView]
    misdated: list[MisdatedView]
    offsets: list[OffsetView]
    spool: SpoolView
    rebuilt_rows: int | UnsetType = UNSET


def findings_view(findings: Findings, rebuilt_rows: int | None = None) -> FindingsView:
    """What was found, and how many daily totals were made anew before."""
    spool = findings.spool
    return FindingsView(
        ok=findings.tie_out,
        events=findings.events,
        cost_usd=format_usd(findings.cost_pico_usd, PICO_DIGITS),
        mismatches=[
            MismatchView(
                **dict(zip(DAILY_KEY, each.group, strict=True)),
                # A database library may have a class of its own for names.
                measure=str(each.measure),
                daily=each.daily,
                events=each.events,
            )
            for each in findings.mismatches
        ],
        misdated=[
            MisdatedView(day=str(each.day), event_id=each.event_id, made_on=str(each.made_on))
            for each in findings.misdated
        ],
        offsets=[
            OffsetView(segment=each.segment, offset_bytes=each.offset_bytes, reason=each.reason)
            for each in findings.astray
        ],
        spool=SpoolView(
            writers=spool.writers,
            unshipped_bytes=spool.unshipped_bytes,
            unshipped_events=spool.unshipped_events,
            open_requests=spool.open_requests,
            damaged=list(spool.damaged),
        ),
        rebuilt_rows=UNSET if rebuilt_rows is None else rebuilt_rows,
    )
