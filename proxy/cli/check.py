"""`tollgate check`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from proxy.cli.options import SettingsRefused, config_option
from proxy.settings import Problem, SettingsError, load

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
    usable = not any(problem.key == "redis_url" for problem in problems)
    if settings is not None and settings.redis_url is not None and usable:
        for warning in _about_redis(settings.redis_url.reveal()):
            click.echo(f"warning: {warning}", err=True)
    if as_json:
        click.echo(json.dumps({"ok": not problems, "problems": [asdict(problem) for problem in problems]}))
        click.get_current_context().exit(1 if problems else 0)
    if problems:
        raise SettingsRefused(SettingsError(problems))
    click.echo(f"{config or 'settings'}: ok")


def _about_redis(url: str) -> list[str]:
    import proxy.app.limiting  # noqa: PLC0415 - loaded only where there is a Redis to look at

    try:
        return proxy.app.limiting.probe(url)
    except TimeoutError:
        return ["Redis does not answer from here"]
