"""`tollgate keys pepper`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec

from proxy.cli.options import data_options, json_option, settings_from
from proxy.cli.output import echo_json, echo_table, instant
from proxy.cli.stores import registry_of
from proxy.core.registry import PepperRecord
from proxy.core.views.keys import pepper_view

__all__ = ["pepper"]


@click.group
def pepper() -> None:
    """Change the secret that keys are hashed under.

    It lies outside the database, in data_dir or in pepper_file; machines that share a database need the same one.
    """


@pepper.command("list")
@data_options
@json_option
def list_(*, config: Path | None, as_json: bool, **options: Any) -> None:
    """List every version keys were ever hashed under, and how many live keys need it.

    \b
    Examples:
      tollgate keys pepper list
    """
    with registry_of(settings_from(config, options)) as registry:
        found = list(registry.list_peppers())
    _show(found, as_json=as_json)


@pepper.command
@click.option("--lost", is_flag=True, help="The right peppers are lost: forget those there are; old keys are dead.")
@data_options
@json_option
def rotate(*, lost: bool, config: Path | None, as_json: bool, **options: Any) -> None:
    """Make a new version, for every key from now on; keys there are go on under theirs.

    A key that is used is hashed under the new version too, beside the requests, until nothing needs the old one: a hash
    cannot be made anew without the key. Where several machines share a database, bring them the new file.

    \b
    Examples:
      tollgate keys pepper rotate
    """
    with registry_of(settings_from(config, options)) as registry:
        record = registry.rotate_pepper(lost=lost)
    _show([record], as_json=as_json, alone=True)


@pepper.command
@click.argument("version", type=int)
@data_options
@json_option
def retire(version: int, *, config: Path | None, as_json: bool, **options: Any) -> None:
    """Forget a version that no live key needs.

    \b
    Examples:
      tollgate keys pepper retire 1
    """
    with registry_of(settings_from(config, options)) as registry:
        record = registry.retire_pepper(version)
    _show([record], as_json=as_json, alone=True)


def _show(found: list[PepperRecord], *, as_json: bool, alone: bool = False) -> None:
    if as_json:
        rows = [pepper_view(record) for record in found]
        echo_json(msgspec.to_builtins(rows[0] if alone else rows))
        return
    echo_table(
        ("version", "state", "made", "retired", "keys that need it", "here"),
        [
            (
                record.version,
                pepper_view(record).state.value,
                instant(record.created_at_ms),
                instant(record.retired_at_ms),
                record.keys,
                "yes" if record.here else "no",
            )
            for record in found
        ],
    )
