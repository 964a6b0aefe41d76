"""The command line: data on stdout, all else on stderr; exits 0 done, 1 failed, 2 wrongly used."""

from __future__ import annotations

import importlib

import click

from proxy import __version__

__all__ = ["main"]

_COMMANDS = {
    "serve": ("proxy.cli.serve:serve", "Run the proxy."),
    "check": ("proxy.cli.check:check", "Prove a settings file without starting anything."),
    "doctor": ("proxy.cli.doctor:doctor", "Examine everything that serving needs, and say what to do."),
    "teams": ("proxy.cli.teams:teams", "Add, list and change teams."),
    "keys": ("proxy.cli.keys:keys", "Issue, import, list, rotate and revoke keys."),
    "cache": ("proxy.cli.cache:cache", "Show what cached answers save, and forget them."),
    "usage": ("proxy.cli.usage:usage", "Show what was used and what it cost."),
    "audit": ("proxy.cli.audit:audit", "Show who changed what."),
    "ledger": ("proxy.cli.ledger:ledger", "Prove that the account ties out."),
    "admin": ("proxy.cli.admin:admin", "Show and change the token of the admin API."),
    "prices": ("proxy.cli.prices:prices", "List, check and import prices."),
    "reconcile": ("proxy.cli.reconcile:reconcile", "Compare the ledger with OpenAI's usage and costs export."),
    "metrics": ("proxy.cli.metrics:metrics", "Print every metric with its labels."),
    "simulate-openai": ("proxy.cli.simulate:simulate_openai", "Run the simulated OpenAI upstream alone."),
    "completion": ("proxy.cli.completion:completion", "Print a completion script for your shell."),
}


class _LazyGroup(click.Group):
    """Imports a command when it is used, so that `--help` and completion are instant."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, _ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, _, attribute = _COMMANDS[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(module), attribute)
        if not isinstance(command, click.Command):
            raise TypeError(f"{module}.{attribute} is not a command")
        return command

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in _COMMANDS.items()])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="tollgate")
def main() -> None:
    """Tollgate: a rate-limiting, caching reverse proxy in front of the OpenAI API.

    \b
    Examples:
      tollgate serve --demo
      tollgate teams add growth --tier payg
      tollgate keys issue --team growth --label ci --expires 90d
      tollgate usage --by team,model --since 30d
    """
