"""`tollgate check`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import click

from proxy.cli.options import SettingsRefused, config_option
from proxy.settings import Problem, Settings, SettingsError, load

__all__ = ["check"]


@click.command
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print the problems as JSON.")
def check(config: Path | None, *, as_json: bool) -> None:
    """Prove a settings file, and the environment, without starting anything.

    Names file, line and key of everything that is wrong, and exits with 1. A missing upstream key is only noted, since
    the place that checks a file seldom has it. A Redis that is named is looked at, and only warned of.

    \b
    Examples:
      tollgate check --config tollgate.toml
      tollgate check --config tollgate.toml --json
    """
    settings = None
    problems: tuple[Problem, ...] = ()
    keyless: tuple[Problem, ...] = ()
    try:
        settings = load(config)
        problems = settings.servability(demo=True)
        keyless = tuple(each for each in settings.servability() if each not in problems)
    except SettingsError as error:
        problems = error.problems
    for note in keyless:
        click.echo(f"note: {note}", err=True)
    usable = not any(problem.key in {"redis_url", "cache_redis_url"} for problem in problems)
    if settings is not None and usable:
        if settings.redis_url is not None:
            _warn(_about_redis(settings.redis_url.reveal()))
        if settings.redis_url is not None or settings.cache_redis_url is not None:
            _warn(_about_cache(settings))
    if as_json:
        click.echo(json.dumps({"ok": not problems, "problems": [asdict(problem) for problem in problems]}))
        click.get_current_context().exit(1 if problems else 0)
    if problems:
        raise SettingsRefused(SettingsError(problems))
    click.echo(f"{config or 'settings'}: ok")


def _warn(warnings: Iterable[str]) -> None:
    for warning in warnings:
        click.echo(f"warning: {warning}", err=True)


def _about_redis(url: str) -> list[str]:
    import proxy.app.limiting  # noqa: PLC0415 - loaded only where there is a Redis to look at

    try:
        return proxy.app.limiting.probe(url)
    except TimeoutError:
        return ["Redis does not answer from here"]


def _about_cache(settings: Settings) -> list[str]:
    from proxy.app import caching  # noqa: PLC0415 - loaded only where there is a Redis to look at

    told = caching.advice(settings)
    for note in told.notes:
        click.echo(f"note: {note}", err=True)
    try:
        return [*told.warnings, *caching.probe(settings)]
    except TimeoutError:
        return [*told.warnings, "Redis of the cache does not answer from here"]
