"""`tollgate doctor`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click

from proxy.cli.options import config_option, json_option, option
from proxy.cli.output import printable
from proxy.core.checkup import Finding, Verdict, fail, is_fit, okay
from proxy.settings import Problem, SettingsError, load

__all__ = ["doctor"]


@click.command
@config_option
@option("server.host")
@option("server.port")
@option("server.admin_port")
@option("data_dir")
@option("upstream.base_url")
@option("server.workers")
@option("redis_url")
@option("database_url")
@json_option
@click.pass_context
def doctor(ctx: click.Context, /, config: Path | None, *, as_json: bool, **flags: object) -> None:
    """Examine everything that serving needs, and say what to do where something is missing.

    Looks at settings, upstreams and their keys (without spending anything), Redis, database, clocks, disk, file modes,
    ports, open files, packages and prices. Give it the options of `tollgate serve`, and run it as the same user, before
    a start or beside a running server: it changes nothing. Exits with 1 when something fails.

    \b
    Examples:
      tollgate doctor --config tollgate.toml
      tollgate doctor --config tollgate.toml --json
    """
    findings = _examined(config, {name.replace("__", "."): value for name, value in flags.items()})
    fit = is_fit(findings)
    if as_json:
        click.echo(json.dumps({"ok": fit, "checks": [asdict(finding) for finding in findings]}))
    else:
        _show(findings)
    ctx.exit(0 if fit else 1)


def _examined(config: Path | None, overrides: dict[str, object]) -> list[Finding]:
    try:
        settings = load(config, None, overrides)
    except SettingsError as error:
        return [_refused(problem) for problem in error.problems]
    import proxy.app.doctor  # noqa: PLC0415 - --help and a refusal do without it

    problems = settings.servability()
    found = [_refused(problem) for problem in problems] or [okay("settings", f"{config or 'settings'} can be served")]
    return [*found, *proxy.app.doctor.examine(settings, config, {problem.key for problem in problems})]


def _refused(problem: Problem) -> Finding:
    remedy = problem.suggestion or "tollgate.example.toml has every setting and its default"
    place = f"{problem.file}:{problem.line}: " if problem.line else f"{problem.file}: " if problem.file else ""
    return fail("settings", f"{place}{problem.key}: {problem.message}", remedy)


def _show(findings: Sequence[Finding]) -> None:
    width = max(len(finding.check) for finding in findings)
    for finding in findings:
        click.echo(f"{finding.verdict.value:<4}  {finding.check:<{width}}  {printable(finding.said)}")
        if finding.remedy:
            click.echo(f"{'':<4}  {'':<{width}}  -> {printable(finding.remedy)}")
    counted = Counter(finding.verdict for finding in findings)
    click.echo(", ".join(f"{counted[verdict]} {verdict.value}" for verdict in Verdict), err=True)
