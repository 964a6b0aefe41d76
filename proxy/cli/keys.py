"""`tollgate keys`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from proxy.cli.options import DURATION, MODELS, data_options, json_option, settings_from
from proxy.cli.output import echo_json, echo_table, instant, printable
from proxy.cli.stores import now_ms, registry_of
from proxy.core.principal import KeyRecord
from proxy.core.registry import IssuedKey

__all__ = ["keys"]


@click.group
def keys() -> None:
    """Issue, list, rotate and revoke keys."""


@keys.command
@click.option("--team", required=True, help="Team the key is for.")
@click.option("--label", default="", help="What it is for, for people.")
@click.option("--expires", type=DURATION, metavar="DURATION", help="How long it works: 90d, 48h; default: for good.")
@click.option("--models", type=MODELS, metavar="A,B", help="Models it may use, of those of its team.")
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
      tollgate keys issue --team growth --label ci --expires 90d
      key=$(tollgate keys issue --team growth)
      tollgate keys issue --team growth --json | jq -r .key
    """
    expires_at_ms = None if expires is None else now_ms() + expires
    with registry_of(settings_from(config, options)) as registry:
        issued = registry.issue_key(team, label, expires_at_ms, None if models == MODELS.every else models)
    _hand_out(issued, as_json=as_json)


@keys.command("list")
@click.option("--team", help="Of this team alone.")
@data_options
@json_option
def list_(team: str | None, *, config: Path | None, as_json: bool, **options: Any) -> None:
    """List keys by their ids; a key itself is never shown again.

    \b
    Examples:
      tollgate keys list --team growth
      tollgate keys list --json | jq -r '.[] | select(.state == "live").id'
    """
    at_ms = now_ms()
    with registry_of(settings_from(config, options)) as registry:
        found = registry.list_keys(team)
    if as_json:
        echo_json([_row(record, at_ms) for record in found])
        return
    echo_table(
        ("id", "team", "label", "state", "created", "expires", "models"),
        [
            (
                record.kid,
                record.team,
                record.label,
                _state(record, at_ms),
                instant(record.created_at_ms),
                instant(record.expires_at_ms),
                "all" if record.models is None else ",".join(sorted(record.models)) or "none",
            )
            for record in found
        ],
    )


@keys.command
@click.argument("key_id", metavar="ID")
@click.option("--overlap", type=DURATION, default=0, metavar="DURATION", help="How long the old key goes on working.")
@data_options
@json_option
def rotate(key_id: str, overlap: int, *, config: Path | None, as_json: bool, **options: Any) -> None:
    """Make a key like the one with this ID, and end the old one after the overlap.

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
        echo_json(_row(record, now_ms()))
    else:
        click.echo(f"revoked {record.kid} of team {printable(record.team)}")


def _hand_out(issued: IssuedKey, *, as_json: bool) -> None:
    """Show a fresh key: alone on stdout, so that it can be captured; what it is on stderr."""
    record = issued.record
    if as_json:
        echo_json({"key": issued.key, **_row(record, record.created_at_ms)})
        return
    until = "" if record.expires_at_ms is None else f", until {instant(record.expires_at_ms)}"
    click.echo(f"key {record.kid} of team {printable(record.team)}{until}; it is not shown again:", err=True)
    click.echo(issued.key)


def _state(record: KeyRecord, at_ms: int) -> str:
    if record.revoked_at_ms is not None:
        return "revoked"
    return "live" if record.live_at(at_ms) else "expired"


def _row(record: KeyRecord, at_ms: int) -> dict[str, object]:
    """A key for programs."""
    return {
        "id": record.kid,
        "team": record.team,
        "label": record.label,
        "state": _state(record, at_ms),
        "created": instant(record.created_at_ms),
        "expires": instant(record.expires_at_ms),
        "revoked": instant(record.revoked_at_ms),
        "models": None if record.models is None else sorted(record.models),
    }
