"""`tollgate serve`."""

from __future__ import annotations

import gc
from pathlib import Path

import click

from proxy.cli.options import SettingsRefused, config_option, option, settings_from
from proxy.cli.stores import failures
from proxy.settings import SettingsError

__all__ = ["serve"]


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
@click.option(
    "--demo",
    is_flag=True,
    help="Issue a key and print a curl line that works; without OPENAI_API_KEY, stand before a simulated OpenAI.",
)
@click.pass_context
def serve(ctx: click.Context, /, config: Path | None, *, demo: bool, **flags: object) -> None:
    """Run the proxy until SIGTERM or SIGINT; then finish what is in flight.

    \b
    Examples:
      tollgate serve --demo
      OPENAI_API_KEY=sk-... tollgate serve --host 0.0.0.0 --port 8080
      tollgate serve --config tollgate.toml
      tollgate serve --upstream http://127.0.0.1:8000/v1
    """
    settings = settings_from(config, flags)
    try:
        settings.check_servable(demo=demo)
    except SettingsError as error:
        raise SettingsRefused(error) from None

    # What a start makes stays: to look for garbage in it would be a sixth of the start. `keep_loop_steady` ends this.
    gc.disable()
    import proxy.app  # noqa: PLC0415  # the whole server; a refusal and --help do without it

    with failures():
        ctx.exit(proxy.app.serve(settings, demo=demo))
