"""`tollgate keys`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import click
import msgspec

from proxy.cli.budgets import budget_changes, budget_options, budgets_cell
from proxy.cli.options import (
    CLEARED,
    DURATION,
    MODELS,
    data_options,
    json_option,
    limit_option,
    max_wait_option,
    settings_from,
)
from proxy.cli.output import echo_json, echo_table, instant, printable
from proxy.cli.peppers import pepper
from proxy.cli.stores import failures, now_ms, registry_of
from proxy.core.durations import format_duration
from proxy.core.principal import KeyRecord
from proxy.core.registry import IssuedKey, KeyChanges, KeyLimits, Registry
from proxy.core.views.keys import issued_view, key_state, key_view

__all__ = ["keys"]

_MAX_IMPORT_BYTES = 16 * 1024 * 1024
_LIMITS = {
    "requests_per_minute": "Requests per minute of its own, beside its team's.",
    "tokens_per_minute": "Tokens per minute of its own, beside its team's.",
    "max_parallel": "Requests it may have under way at one time.",
}
_OWN = (*_LIMITS, "max_wait_ms")


@click.group
def keys() -> None:
    """Issue, import, list, change, rotate and revoke keys."""


keys.add_command(pepper)


@keys.command
@click.option("--team", required=True, help="Team the key is for.")
@click.option("--label", default="", help="What it is for, for people.")
@click.option("--expires", type=DURATION, metavar="DURATION", help="How long it works: 90d, 48h; default: for good.")
@click.option("--models", type=MODELS, metavar="A,B", help="Models it may use, of those of its team.")
@limit_option("requests_per_minute", _LIMITS["requests_per_minute"], clearable=False)
@limit_option("tokens_per_minute", _LIMITS["tokens_per_minute"], clearable=False)
@limit_option("max_parallel", _LIMITS["max_parallel"], clearable=False)
@max_wait_option(clearable=False)
@budget_options(clearable=False)
@data_options
@json_option
def issue(
    team: str,
    label: str,
    expires: int | None,
    models: frozenset[str] | None,
    *,
    config: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Make a key and show it, once: it is kept as a hash.

    \b
    Examples:
      tollgate keys issue --team growth --label ci --expires 90d --rpm 10 --max-parallel 2
      key=$(tollgate keys issue --team growth)
      tollgate keys issue --team growth --json | jq -r .key
    """
    expires_at_ms = None if expires is None else now_ms() + expires
    limits = _limits(options)
    with registry_of(settings_from(config, options)) as registry:
        issued = registry.issue_key(team, label, expires_at_ms, None if models == MODELS.every else models, **limits)
    _hand_out(issued, as_json=as_json)


@keys.command("import")
@click.option("--team", required=True, help="Team the keys are for.")
@click.option("--file", "source", required=True, metavar="FILE|-", help="The keys, one a line; - is standard input.")
@click.option("--label", default="", help="What they are for, for people.")
@click.option("--expires", type=DURATION, metavar="DURATION", help="How long they work; default: for good.")
@click.option("--models", type=MODELS, metavar="A,B", help="Models they may use, of those of the team.")
@click.option("--allow-weak", is_flag=True, help="Also keys that could be guessed.")
@limit_option("requests_per_minute", _LIMITS["requests_per_minute"], clearable=False)
@limit_option("tokens_per_minute", _LIMITS["tokens_per_minute"], clearable=False)
@limit_option("max_parallel", _LIMITS["max_parallel"], clearable=False)
@max_wait_option(clearable=False)
@budget_options(clearable=False)
@data_options
@json_option
def import_(
    team: str,
    source: str,
    label: str,
    expires: int | None,
    models: frozenset[str] | None,
    *,
    allow_weak: bool,
    config: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Take over keys that clients have already, so that none of them needs to change.

    One key a line, exactly as clients send it; any printable text will do. All of them are taken or none. They are kept
    as hashes and get ids, by which they are listed, changed, rotated and revoked.

    \b
    Examples:
      tollgate keys import --team growth --file keys.txt
      vault read -field=keys secret/growth | tollgate keys import --team growth --file - --label legacy
    """
    expires_at_ms = None if expires is None else now_ms() + expires
    limits = _limits(options)
    lines = _lines(source)
    of_models = None if models == MODELS.every else models
    with registry_of(settings_from(config, options)) as registry:
        imported = registry.import_keys(team, lines, label, expires_at_ms, of_models, allow_weak=allow_weak, **limits)
        _show(registry, imported, as_json=as_json)


@keys.command("set")
@click.argument("key_id", metavar="ID")
@click.option("--label", help="What it is for, for people.")
@click.option("--models", type=MODELS, metavar="A,B", help="Models it may use, of those of its team; all: every one.")
@limit_option("requests_per_minute", _LIMITS["requests_per_minute"])
@limit_option("tokens_per_minute", _LIMITS["tokens_per_minute"])
@limit_option("max_parallel", _LIMITS["max_parallel"])
@max_wait_option()
@budget_options()
@data_options
@json_option
def set_(key_id: str, *, config: Path | None, as_json: bool, **options: Any) -> None:
    """Change what is given of the key with this ID, and nothing else.

    \b
    Examples:
      tollgate keys set 0a1B2c3D4e5F --tpm 20000 --max-parallel 2
      tollgate keys set 0a1B2c3D4e5F --rpm none --budget 5usd/day
      tollgate keys set 0a1B2c3D4e5F --max-wait 20s
    """
    given = {name: value for name in (*_OWN, "label", "models") if (value := options.pop(name)) is not None}
    budgets = budget_changes(options)
    if not given and not budgets:
        raise click.UsageError("nothing to change: name an option")
    cleared = {
        name: None if name != "label" and value in (CLEARED, MODELS.every) else value for name, value in given.items()
    }
    with registry_of(settings_from(config, options)) as registry:
        record = registry.set_key(key_id, **cast("KeyChanges", cleared | ({"budgets": budgets} if budgets else {})))
        _show(registry, [record], as_json=as_json, alone=True)


@keys.command("list")
@click.option("--team", help="Of this team alone.")
@data_options
@json_option
def list_(team: str | None, *, config: Path | None, as_json: bool, **options: Any) -> None:
    """List keys by their ids; a key itself is never shown again.

    \b
    Examples:
      tollgate keys list --team growth
      tollgate keys list --json | jq -r '.[] | select(.state == "live" or .state == "rotating").id'
    """
    with registry_of(settings_from(config, options)) as registry:
        _show(registry, registry.list_keys(team), as_json=as_json)


@keys.command
@click.argument("key_id", metavar="ID")
@click.option(
    "--overlap", type=DURATION, default=0, metavar="DURATION", help="How long the old secret goes on working."
)
@data_options
@json_option
def rotate(key_id: str, overlap: int, *, config: Path | None, as_json: bool, **options: Any) -> None:
    """Give the key with this ID another secret, and end the old one after the overlap.

    It stays the same key: its id, label, limits and usage go on.

    \b
    Examples:
      tollgate keys rotate 0a1B2c3D4e5F --overlap 24h
    """
    with registry_of(settings_from(config, options)) as registry:
        issued = registry.rotate_key(key_id, overlap)
    _hand_out(issued, as_json=as_json)


@keys.command
@click.argument("key_id", metavar="ID")
@data_options
@json_option
def revoke(key_id: str, *, config: Path | None, as_json: bool, **options: Any) -> None:
    """End the key with this ID, everywhere and at once.

    ID is what `keys list` shows, or the beginning of the key: sk-tg_ID.

    \b
    Examples:
      tollgate keys revoke 0a1B2c3D4e5F
    """
    with registry_of(settings_from(config, options)) as registry:
        record = registry.revoke_key(key_id)
    if as_json:
        echo_json(msgspec.to_builtins(key_view(record, now_ms())))
    else:
        click.echo(f"revoked {record.kid} of team {printable(record.team)}")


def _limits(options: dict[str, Any]) -> KeyLimits:
    """Take what a new key may use out of the options."""
    limits = cast("KeyLimits", {name: options.pop(name) for name in _OWN})
    if budgets := budget_changes(options):
        limits["budgets"] = budgets
    return limits


def _lines(source: str) -> list[str]:
    """The lines of a file; nothing of what stands in it is ever shown."""
    with failures(), click.open_file(source, "rb") as file:
        content = file.read(_MAX_IMPORT_BYTES + 1)
    if len(content) > _MAX_IMPORT_BYTES:
        raise click.ClickException(f"the file is larger than {_MAX_IMPORT_BYTES:,} bytes: import it in parts")
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise click.ClickException(f"line {line}: not UTF-8") from None
    return [line.removesuffix("\r") for line in text.split("\n")]


def _show(registry: Registry, found: Sequence[KeyRecord], *, as_json: bool, alone: bool = False) -> None:
    at_ms = now_ms()
    spent = registry.budgets_spent(at_ms, found[0].team if alone else None)
    if as_json:
        rows = [key_view(record, at_ms, spent) for record in found]
        echo_json(msgspec.to_builtins(rows[0] if alone else rows))
        return
    echo_table(
        (
            *("id", "team", "label", "state", "created", "by", "expires", "last used"),
            *("requests/min", "tokens/min", "parallel", "max wait", "models", "budgets"),
        ),
        [
            (
                record.kid,
                record.team,
                record.label,
                key_state(record, at_ms).value,
                instant(record.created_at_ms),
                record.created_by or None,
                instant(record.expires_at_ms),
                instant(record.last_used_at_ms),
                record.limits.requests_per_minute if record.limits else None,
                record.limits.tokens_per_minute if record.limits else None,
                record.max_parallel,
                None if record.max_wait_ms is None else format_duration(record.max_wait_ms),
                "all" if record.models is None else ",".join(sorted(record.models)) or "none",
                budgets_cell(record.budgets, spent, record.team, record.kid),
            )
            for record in found
        ],
    )


def _hand_out(issued: IssuedKey, *, as_json: bool) -> None:
    """Show a fresh key: alone on stdout, so that it can be captured; what it is on stderr."""
    record = issued.record
    if as_json:
        echo_json(msgspec.to_builtins(issued_view(issued, now_ms())))
        return
    until = "" if record.expires_at_ms is None else f", until {instant(record.expires_at_ms)}"
    click.echo(f"key {record.kid} of team {printable(record.team)}{until}; it is not shown again:", err=True)
    click.echo(issued.key)
