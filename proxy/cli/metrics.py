"""`tollgate metrics`: what can be scraped."""

from __future__ import annotations

import click

from proxy.cli.options import json_option
from proxy.cli.output import echo_json

__all__ = ["metrics"]


@click.command("metrics")
@json_option
def metrics(*, as_json: bool) -> None:
    """Print every metric with its labels, in Markdown.

    \b
    Examples:
      tollgate metrics
      tollgate metrics --json
    """
    from proxy.app.metrics_reference import reference, told  # noqa: PLC0415 - loaded when it is run, not for --help

    if as_json:
        echo_json(told())
    else:
        click.echo(reference(), nl=False)
