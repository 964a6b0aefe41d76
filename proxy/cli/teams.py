"""`tollgate teams`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from proxy.cli.options import MODELS, data_options, json_option, settings_from
from proxy.cli.output import echo_json, echo_table, instant
from proxy.cli.stores import now_ms, registry_of, require_tier
from proxy.core.principal import CacheMode, Team
from proxy.core.registry import TeamChanges, TeamFields
from proxy.core.tiers import LARGEST_LIMIT, Limits, Tier

__all__ = ["teams"]

_Command = TypeVar("_Command", bound=Callable[..., Any])

_NUMBERS = {
    "requests_per_minute": "Requests per minute of its own, in place of the tier's.",
    "tokens_per_minute": "Tokens per minute of its own, in place of the tier's.",
    "request_capacity": "Requests at once; the default is one minute's worth.",
    "token_capacity": "Tokens at once; the default is one minute's worth.",
}
_CLEARED = "none"


class _Number(click.ParamType[Any]):
    """A limit, or `none` to go back to the tier's."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        if value == _CLEARED:
            return _CLEARED
        return click.IntRange(1, LARGEST_LIMIT).convert(value, param, ctx)


def _team_options(command: _Command) -> _Command:
    """Everything a team can be given, at its making and later."""
    for decorate in (
        click.option("--allow-stateful/--no-allow-stateful", default=None, help="Open endpoints that keep state."),
        click.option("--models", type=MODELS, metavar="A,B", help="Models it may use; all: every one."),
        click.option(
            "--cache", "cache_mode", type=click.Choice([mode.value for mode in CacheMode]), help="What is kept."
        ),
        *(
            click.option(f"--{name.replace('_', '-')}", name, type=_Number(), metavar="N|none", help=text)
            for name, text in reversed(_NUMBERS.items())
        ),
    ):
        command = decorate(command)
    return command


@click.group
def teams() -> None:
    """Add, list and change teams."""


@teams.command
@click.argument("name")
@click.option("--tier", help="Tier it is on; limits.default_tier when absent.")
@_team_options
@data_options
@json_option
def add(name: str, tier: str | None, *, config: Path | None, as_json: bool, **options: Any) -> None:
    """Make the team NAME; it is on its tier from now.

    \b
    Examples:
      tollgate teams add growth --tier payg
      tollgate teams add research --tokens-per-minute 250000 --models gpt-5,gpt-5-mini --json
    """
    fields = _fields(options)
    settings = settings_from(config, options)
    tier = tier or settings.limits.default_tier
    require_tier(settings, tier)
    with registry_of(settings) as registry:
        team = registry.add_team(name, tier, **fields)
    _show([team], settings.limits.all_tiers(), as_json=as_json, alone=True)


@teams.command("set")
@click.argument("name")
@click.option("--tier", help="Tier it is on from now.")
@_team_options
@data_options
@json_option
def set_(name: str, tier: str | None, *, config: Path | None, as_json: bool, **options: Any) -> None:
    """Change what is given of the team NAME, and nothing else.

    \b
    Examples:
      tollgate teams set growth --tier payg
      tollgate teams set growth --tokens-per-minute none --cache all
    """
    changes = cast("TeamChanges", _fields(options))
    settings = settings_from(config, options)
    if tier is not None:
        require_tier(settings, tier)
        changes["tier"] = tier
    if not changes:
        raise click.UsageError("nothing to change: name an option")
    with registry_of(settings) as registry:
        team = registry.set_team(name, **changes)
    _show([team], settings.limits.all_tiers(), as_json=as_json, alone=True)


@teams.command("list")
@data_options
@json_option
def list_(*, config: Path | None, as_json: bool, **options: Any) -> None:
    """List every team with the limits that hold now.

    \b
    Examples:
      tollgate teams list
      tollgate teams list --json | jq -r '.[].name'
    """
    settings = settings_from(config, options)
    with registry_of(settings) as registry:
        found = list(registry.list_teams())
    _show(found, settings.limits.all_tiers(), as_json=as_json)


def _fields(options: dict[str, Any]) -> TeamFields:
    """Take what was said of the team out of the options; `none` and `all` become nothing of its own."""
    names = [*_NUMBERS, "cache_mode", "models", "allow_stateful"]
    given = {name: value for name in names if (value := options.pop(name)) is not None}
    if "cache_mode" in given:
        given["cache_mode"] = CacheMode(given["cache_mode"])
    cleared = {name: None if value in (_CLEARED, MODELS.every) else value for name, value in given.items()}
    return cast("TeamFields", cleared)


def _show(found: list[Team], tiers: dict[str, Tier], *, as_json: bool, alone: bool = False) -> None:
    at_ms = now_ms()
    if as_json:
        rows = [_row(team, _limits(team, tiers, at_ms)) for team in found]
        echo_json(rows[0] if alone else rows)
        return
    echo_table(
        ("team", "tier", "since", "requests/min", "tokens/min", "cache", "models"),
        [
            (
                team.name,
                team.tier if limits else f"{team.tier} (unknown)",
                instant(team.tier_since_ms),
                limits.requests_per_minute if limits else None,
                limits.tokens_per_minute if limits else None,
                team.cache_mode.value,
                "all" if team.models is None else ",".join(sorted(team.models)) or "none",
            )
            for team in found
            for limits in [_limits(team, tiers, at_ms)]
        ],
    )


def _limits(team: Team, tiers: dict[str, Tier], at_ms: int) -> Limits | None:
    """What holds for the team now; None when its tier is no more."""
    tier = tiers.get(team.tier)
    return None if tier is None else tier.schedule(team.tier_since_ms, at_ms, team.limits).limits_at(at_ms)


def _row(team: Team, limits: Limits | None) -> dict[str, object]:
    """A team for programs: `limits` is what holds now, `own_limits` what was set for it alone."""
    return {
        "name": team.name,
        "tier": team.tier,
        "tier_since": instant(team.tier_since_ms),
        "limits": None if limits is None else asdict(limits),
        "own_limits": None if team.limits is None else asdict(team.limits),
        "cache": team.cache_mode.value,
        "allow_stateful": team.allow_stateful,
        "models": None if team.models is None else sorted(team.models),
        "created": instant(team.created_at_ms),
    }
