"""`tollgate teams`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import click
import msgspec

from proxy.cli.budgets import budget_changes, budget_options, budgets_cell
from proxy.cli.options import CLEARED, MODELS, data_options, json_option, limit_option, refuse_alias, settings_from
from proxy.cli.output import echo_json, echo_table, instant
from proxy.cli.stores import now_ms, registry_of, require_tier
from proxy.core.principal import HEAVIEST_WEIGHT, CacheMode, Team
from proxy.core.registry import Registry, TeamChanges, TeamFields
from proxy.core.tiers import Limits, Tier
from proxy.core.views.teams import team_view
from proxy.settings import Settings

__all__ = ["teams"]

_Command = TypeVar("_Command", bound=Callable[..., Any])

_NUMBERS = {
    "requests_per_minute": "Requests per minute of its own, in place of the tier's.",
    "tokens_per_minute": "Tokens per minute of its own, in place of the tier's.",
    "request_capacity": "Requests at once; the default is one minute's worth.",
    "token_capacity": "Tokens at once; the default is one minute's worth.",
    "max_parallel": "Requests under way at one time; the default is any number.",
}


def _team_options(command: _Command) -> _Command:
    """Everything a team can be given, at its making and later."""
    for decorate in (
        click.option("--models", type=MODELS, metavar="A,B", help="Models it may use; all: every one."),
        click.option("--shadow-tier", metavar="T|none", help="Tier to try it on, which refuses nothing."),
        click.option(
            "--cache", "cache_mode", type=click.Choice([mode.value for mode in CacheMode]), help="What is kept."
        ),
        click.option(
            "--stateful/--no-stateful",
            "allow_stateful",
            default=None,
            help="Whether its responses may refer to what is kept at OpenAI, where all teams share one account.",
        ),
        click.option(
            "--weight",
            type=click.IntRange(1, HEAVIEST_WEIGHT),
            metavar="N",
            help="Its share where teams wait for the same upstream; 1 unless it is given another.",
        ),
        budget_options(),
        *(limit_option(name, text) for name, text in reversed(_NUMBERS.items())),
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
      tollgate teams add growth --tier payg --budget 500usd/month --warn-at 400usd/month
      tollgate teams add research --tpm 250000 --max-parallel 8 --models gpt-5,gpt-5-mini --json
    """
    fields = _fields(options)
    settings = settings_from(config, options)
    tier = tier or settings.limits.default_tier
    _require_tiers(settings, tier, fields)
    with registry_of(settings) as registry:
        _show(registry, [registry.add_team(name, tier, **fields)], settings, as_json=as_json, alone=True)


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
      tollgate teams set growth --shadow-tier free
      tollgate teams set growth --budget none/month --budget 20usd/day
    """
    fields = _fields(options)
    changes = cast("TeamChanges", fields)
    settings = settings_from(config, options)
    _require_tiers(settings, tier, fields)
    if tier is not None:
        changes["tier"] = tier
    if not changes:
        raise click.UsageError("nothing to change: name an option")
    with registry_of(settings) as registry:
        _show(registry, [registry.set_team(name, **changes)], settings, as_json=as_json, alone=True)


@teams.command
@click.argument("name")
@click.option("--model", required=True, help="Model, not an alias of one.")
@limit_option("requests_per_minute", "Requests per minute for this model.", clearable=False)
@limit_option("tokens_per_minute", "Tokens per minute for this model.", clearable=False)
@click.option("--none", "cleared", is_flag=True, help="Limit the model no more.")
@data_options
@json_option
def limit(
    name: str,
    model: str,
    requests_per_minute: int | None,
    tokens_per_minute: int | None,
    *,
    cleared: bool,
    config: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Limit what the team NAME uses of one model, beside its limits in all; in place of a limit it had.

    \b
    Examples:
      tollgate teams limit growth --model gpt-5 --rpm 10 --tpm 20000
      tollgate teams limit growth --model gpt-5 --none
    """
    if cleared == bool(requests_per_minute or tokens_per_minute):
        raise click.UsageError("name --rpm, --tpm or both, or --none")
    settings = settings_from(config, options)
    if not cleared:
        refuse_alias(settings, model)
    with registry_of(settings) as registry:
        team = registry.set_model_limit(name, model, requests_per_minute, tokens_per_minute)
        _show(registry, [team], settings, as_json=as_json, alone=True)


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
        _show(registry, registry.list_teams(), settings, as_json=as_json)


def _fields(options: dict[str, Any]) -> TeamFields:
    """Take what was said of the team out of the options; `none` and `all` become nothing of its own."""
    names = [*_NUMBERS, "shadow_tier", "cache_mode", "models", "allow_stateful", "weight"]
    given = {name: value for name in names if (value := options.pop(name)) is not None}
    if "cache_mode" in given:
        given["cache_mode"] = CacheMode(given["cache_mode"])
    cleared = {name: None if value in (CLEARED, MODELS.every) else value for name, value in given.items()}
    if budgets := budget_changes(options):
        cleared["budgets"] = budgets
    return cast("TeamFields", cleared)


def _require_tiers(settings: Settings, tier: str | None, fields: TeamFields) -> None:
    for each in (tier, fields.get("shadow_tier")):
        if each is not None:
            require_tier(settings, each)


def _show(registry: Registry, found: Sequence[Team], settings: Settings, *, as_json: bool, alone: bool = False) -> None:
    at_ms, tiers = now_ms(), settings.limits.all_tiers()
    spent = registry.budgets_spent(at_ms, found[0].name if alone else None)
    if as_json:
        rows = [team_view(team, tiers, at_ms, spent) for team in found]
        echo_json(msgspec.to_builtins(rows[0] if alone else rows))
        return
    echo_table(
        (
            "team",
            "tier",
            "since",
            "requests/min",
            "tokens/min",
            "parallel",
            "weight",
            "per-model",
            "shadow",
            "cache",
            "models",
            "budgets",
        ),
        [
            (
                team.name,
                team.tier if limits else f"{team.tier} (unknown)",
                instant(team.tier_since_ms),
                limits.requests_per_minute if limits else None,
                limits.tokens_per_minute if limits else None,
                team.max_parallel,
                team.weight,
                _by_model(team.model_limits),
                team.shadow_tier,
                team.cache_mode.value,
                "all" if team.models is None else ",".join(sorted(team.models)) or "none",
                budgets_cell(team.budgets, spent, team.name),
            )
            for team in found
            for limits in [_limits(team, tiers, at_ms)]
        ],
    )


def _by_model(limits: Mapping[str, Limits]) -> str | None:
    """Limits of models in a table's cell: `gpt-5 10/20000`, requests before tokens."""
    told = [
        f"{model} {own.requests_per_minute or '-'}/{own.tokens_per_minute or '-'}"
        for model, own in sorted(limits.items())
    ]
    return ", ".join(told) or None


def _limits(team: Team, tiers: dict[str, Tier], at_ms: int) -> Limits | None:
    """What holds for the team now; None when its tier is no more."""
    tier = tiers.get(team.tier)
    return None if tier is None else tier.schedule(team.tier_since_ms, at_ms, team.limits).limits_at(at_ms)
