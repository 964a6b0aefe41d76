"""`tollgate completion`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

__all__ = ["completion"]


@click.command
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print a completion script for SHELL.

    \b
    Examples:
      eval "$(tollgate completion bash)"
      tollgate completion fish > ~/.config/fish/completions/tollgate.fish
    """
    engine = get_completion_class(shell)
    if engine is None:
        raise click.ClickException(f"no completion for {shell}")
    click.echo(engine(ctx.find_root().command, {}, "tollgate", "_TOLLGATE_COMPLETE").source())
