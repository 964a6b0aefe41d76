"""`tollgate audit`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import msgspec

from proxy.cli.instants import INSTANT
from proxy.cli.options import data_options, json_option, settings_from
from proxy.cli.output import echo_json, echo_table, instant
from proxy.cli.stores import registry_of
from proxy.core.audit import AuditEntry
from proxy.core.views.audit import audit_view

__all__ = ["audit"]


@click.command
@click.option("--since", type=INSTANT, metavar="WHEN", help="30d, 48h, 2026-11-01; default: from the beginning.")
@click.option("--until", type=INSTANT, metavar="WHEN", help="The same; default: now.")
@click.option("--team", help="What concerned this team alone.")
@data_options
@json_option
def audit(
    since: int | None, until: int | None, team: str | None, *, config: Path | None, as_json: bool, **options: Any
) -> None:
    """Show who changed what, and when: teams, keys, limits, peppers, caches; oldest first.

    \b
    Examples:
      tollgate audit --since 7d
      tollgate audit --team growth --json | jq -r '.[] | select(.action == "key.revoke").actor'
    """
    if since is not None and until is not None and until < since:
        raise click.UsageError("--until is before --since")
    with registry_of(settings_from(config, options)) as registry:
        found = list(registry.list_audit(since, until, team))
    if as_json:
        echo_json(msgspec.to_builtins([audit_view(entry) for entry in found]))
        return
    echo_table(
        ("when", "who", "what", "subject", "team", "details"),
        [
            (
                instant(entry.at_ms),
                entry.actor,
                entry.action,
                entry.subject,
                entry.team,
                _told(entry),
            )
            for entry in found
        ],
    )


def _told(entry: AuditEntry) -> str | None:
    """Details in a table's cell: what was given, and nothing that was not."""
    given = {name: value for name, value in entry.details.items() if value is not None}
    return " ".join(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in given.items()) or None
