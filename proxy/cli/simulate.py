"""`tollgate simulate-openai`: the simulated upstream as a server of its own."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from proxy.simulator import Behaviour

__all__ = ["simulate_openai"]


@click.command("simulate-openai")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65_535), default=0, show_default=True, help="Port to listen on; 0: a free one."
)
@click.option("--latency-ms", type=click.FloatRange(min=0), default=0.0, help="Before the head of any answer.")
@click.option("--ttft-ms", type=click.FloatRange(min=0), default=0.0, help="From the head to the first chunk.")
@click.option("--chunk-ms", type=click.FloatRange(min=0), default=0.0, help="Between two pieces of text.")
@click.option("--tokens", type=click.IntRange(min=0), default=16, show_default=True, help="Length of an answer.")
@click.option("--error-rate", type=click.FloatRange(0, 1), default=0.0, help="Share of requests that fail, 0 to 1.")
@click.option(
    "--error-status", type=click.IntRange(400, 599), default=500, show_default=True, help="What they fail with."
)
@click.option(
    "--rpm", "requests_per_minute", type=click.IntRange(min=1), help="Requests per minute and model; default: no limit."
)
@click.option(
    "--tpm", "tokens_per_minute", type=click.IntRange(min=1), help="Tokens per minute and model; default: no limit."
)
@click.option(
    "--fault",
    "faults",
    metavar="NAME=VALUE",
    multiple=True,
    help="Disturb every request: cut-after=3, no-usage=1, malformed=1, delay-ms=500, hang=1, drip-ms=5, reset=1... "
    "A request can ask for its own instead, with a header: x-simulate-cut-after: 3.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Another seed gives other texts and failures.")
@click.option(
    "--api-key-env", metavar="NAME", help="Environment variable with the key it takes; default: any key will do."
)
def simulate_openai(host: str, port: int, api_key_env: str | None, faults: tuple[str, ...], **options: Any) -> None:
    """Run a simulated OpenAI API and print its base URL.

    It answers chat, completions, responses, embeddings, moderations, images and audio with made-up content and exact
    usage, and keeps files, uploads, batches and stored answers in memory.
    It runs until it is interrupted or terminated.

    \b
    Examples:
      tollgate simulate-openai --port 9000
      tollgate simulate-openai --ttft-ms 300 --chunk-ms 20 --tokens 200
      tollgate simulate-openai --error-rate 0.05 --error-status 503
      tollgate simulate-openai --fault cut-after=3 --fault chunk-ms=20
      tollgate simulate-openai --rpm 500 --tpm 30000
      OPENAI_BASE_URL=http://127.0.0.1:9000/v1 OPENAI_API_KEY=any python your_program.py
    """
    from proxy.simulator import Behaviour  # noqa: PLC0415 - other commands start without aiohttp

    try:
        wishes = tuple((name, value) for name, _, value in (fault.partition("=") for fault in faults))
        behaviour = Behaviour(**options, api_key=_key_from(api_key_env), faults=wishes)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    try:
        _runner()(_serve(behaviour, host, port))
    except OSError as error:
        raise click.ClickException(f"cannot listen on {host}:{port}: {error.strerror or error}") from None


def _key_from(variable: str | None) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable)  # noqa: TID251 - the variable's name is an argument of the command
    if not key:
        raise click.BadParameter(f"{variable} is not set", param_hint="--api-key-env")
    return key


def _runner() -> Callable[[Coroutine[Any, Any, None]], None]:
    """The faster event loop where it installs, else the standard one."""
    try:
        import uvloop  # noqa: PLC0415 - as above
    except ImportError:
        return asyncio.run
    return uvloop.run


async def _serve(behaviour: Behaviour, host: str, port: int) -> None:
    from proxy.simulator import start  # noqa: PLC0415 - as above

    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            loop.add_signal_handler(number, ended.set)
        except NotImplementedError:  # Windows: an interrupt ends the process without this
            break
    async with await start(behaviour, host, port) as simulator:
        click.echo(simulator.base_url)
        click.echo("Simulated OpenAI API: any model text is made up. Ctrl-C ends it.", err=True)
        await ended.wait()
    click.echo(f"Answered {simulator.stats.requests} requests.", err=True)
