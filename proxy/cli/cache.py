"""`tollgate cache`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import msgspec

from proxy.cli.instants import INSTANT
from proxy.cli.options import data_options, json_option, option, refuse_alias, settings_from
from proxy.cli.output import Cell, echo_json, echo_table, printable
from proxy.cli.stores import registry_of, reports_of
from proxy.core.cache_store import CacheStore
from proxy.core.money import format_usd
from proxy.core.registry import Axis, UsageRow
from proxy.core.views.cache import store_view
from proxy.core.views.usage import cache_usage_view
from proxy.settings import Settings

__all__ = ["cache"]

_BOUND = "workers go by it within 10 s, and usually within one"
"""How soon a purge is everywhere: what is known of a team is trusted for so long (`pipeline/principals.py`)."""


@click.group
def cache() -> None:
    """Show what cached answers save, and forget them."""


@cache.command
@click.option("--team", required=True, help="The team whose answers are forgotten.")
@click.option("--model", metavar="M", help="Those of this model alone, not an alias of it.")
@option("redis_url")
@data_options
@json_option
def purge(team: str, model: str | None, *, config: Path | None, as_json: bool, **options: Any) -> None:
    """Forget the answers kept for a team.

    Takes the same time for any number of answers: the team, or the model within it, gets a new secret, and no request
    leads to an old answer any more, one that is being fetched at this moment included. Workers go by it within 10 s,
    and usually within one.

    \b
    Examples:
      tollgate cache purge --team growth
      tollgate cache purge --team growth --model gpt-5-mini --json
    """
    settings = settings_from(config, options)
    if model is not None:
        refuse_alias(settings, model)
    with registry_of(settings) as registry:
        registry.purge_cache(team, model)
    if model is not None:
        _doubt(settings, team, model)
    if as_json:
        echo_json({"team": team, "model": model, "purged": True})
    else:
        what = "every answer" if model is None else f"every answer of {printable(model)}"
        click.echo(f"forgot {what} kept for team {printable(team)}; {_BOUND}")


@cache.command
@click.option("--team", help="Of this team alone.")
@click.option("--since", type=INSTANT, default="30d", show_default=True, metavar="WHEN", help="30d, 48h, 2026-11-01.")
@option("redis_url")
@data_options
@json_option
def stats(team: str | None, since: int, *, config: Path | None, as_json: bool, **options: Any) -> None:
    """Show what cached answers saved, by team and model, and the store that keeps them.

    Counts whole days (UTC) of the ledger, from that of --since on. Answers from the cache are hits and answers that
    were shared while they came. Tokens and dollars are what upstream would have used and charged. A Redis may hold
    more than answers, and its figures are for all it holds.

    \b
    Examples:
      tollgate cache stats
      tollgate cache stats --team growth --since 7d --json
    """
    settings = settings_from(config, options)
    with reports_of(settings) as reports:
        rows = reports.usage((Axis.TEAM, Axis.MODEL), since, None, team)
    if team is not None and not rows:
        # Nothing saved and a name that was mistyped look alike: only one of them is an answer.
        with registry_of(settings) as registry:
            registry.get_team(team)
    store = _look(settings)
    if as_json:
        shown = {"usage": [cache_usage_view(row) for row in rows], "store": store_view(store)}
        echo_json(msgspec.to_builtins(shown))
        return
    header = ("team", "model", "requests", "cached", "share", "saved_tokens", "saved_usd")
    echo_table(header, [_cells(row) for row in rows], right=("share", "saved_usd"))
    click.echo()
    _echo_store(store)


def _doubt(settings: Settings, team: str, model: str) -> None:
    """Say on stderr when a model that was purged was never asked for: it may be mistyped."""
    with reports_of(settings) as reports:
        asked_for = {name for (name,) in (row.group for row in reports.usage((Axis.MODEL,), team=team))}
    if model not in asked_for:
        click.echo(f"note: the ledger has no request of team {printable(team)} for {printable(model)}", err=True)


def _look(settings: Settings) -> CacheStore | None:
    from proxy.app.cache_store import look_at_cache  # noqa: PLC0415  # --help and refusals do without it

    return look_at_cache(settings)


def _cells(row: UsageRow) -> Sequence[Cell]:
    saved_tokens = row.saved_input_tokens + row.saved_output_tokens
    share = f"{cache_usage_view(row).cached_percent:.1f} %"
    return (*row.group, row.requests, row.cached, share, saved_tokens, format_usd(row.saved_pico_usd, 6))


def _echo_store(store: CacheStore | None) -> None:
    if store is None:
        click.echo("the cache is off")
    elif not store.in_redis:
        click.echo(
            f"answers are kept in each worker, at most {store.max_bytes:,} bytes; tollgate_cache_bytes is how much"
        )
    elif store.servers is None:
        click.echo("answers are kept in Redis, which did not answer")
    else:
        header = ("redis", "used_bytes", "max_bytes", "policy", "evicted_keys")
        echo_table(
            header,
            [
                (each.address, each.used_bytes, each.max_bytes or None, each.policy, each.evicted_keys)
                for each in store.servers
            ],
        )
