"""`tollgate admin`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from proxy.cli.options import data_options, json_option, settings_from
from proxy.cli.output import echo_json, printable
from proxy.cli.stores import actor, failures

__all__ = ["admin"]


@click.group
def admin() -> None:
    """Show and change the token of the admin API.

    The API is on the operations listener, below /admin/v1, and says itself what it can do: /admin/v1/openapi.json.
    """


@admin.command
@click.option("--rotate", is_flag=True, help="Make another token; the one there is works no more.")
@data_options
@json_option
def token(*, rotate: bool, config: Path | None, as_json: bool, **options: Any) -> None:
    """Print the token of the admin API, making one where there is none.

    It is in data_dir, or in server.admin_token_file. Servers that run go by another one at once, without a restart.

    \b
    Examples:
      tollgate admin token
      curl -H "Authorization: Bearer $(tollgate admin token)" http://127.0.0.1:8081/admin/v1/teams
      tollgate admin token --rotate
    """
    import proxy.app.administration  # noqa: PLC0415 - loaded when a command is run, not for --help

    settings = settings_from(config, options)
    with failures():
        file = proxy.app.administration.admin_token_path(settings)
        if rotate:
            shown, noted = proxy.app.administration.rotate_admin_token(settings, actor())
            if not noted:
                click.echo("note: the database did not answer, so the audit log does not tell of it", err=True)
        else:
            shown = proxy.app.administration.admin_token_file(settings).reveal()
    if as_json:
        echo_json({"token": shown, "file": str(file)})
    else:
        click.echo(f"the token of the admin API, in {printable(str(file))}:", err=True)
        click.echo(shown)
