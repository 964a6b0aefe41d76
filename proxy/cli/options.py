"""Options that say which settings to use, and the settings they lead to."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, TypeVar

import click

from proxy.core.principal import LONGEST_MAX_WAIT_MS
from proxy.core.tiers import LARGEST_LIMIT
from proxy.settings import Settings, SettingsError, load, parse_duration_ms

__all__ = [
    "CLEARED",
    "DAY",
    "DURATION",
    "MODELS",
    "SettingsRefused",
    "config_option",
    "data_options",
    "json_option",
    "limit_option",
    "max_wait_option",
    "option",
    "refuse_alias",
    "settings_from",
]

_Command = TypeVar("_Command", bound=Callable[..., Any])

_OPTIONS: dict[str, tuple[str, type | click.ParamType[Any], str, str]] = {
    "server.host": ("--host", str, "ADDRESS", "Address of the public listener."),
    "server.port": ("--port", int, "PORT", "Port of the public listener; 0 takes a free one."),
    "server.admin_port": ("--admin-port", int, "PORT", "Port of the operations listener; 0 takes a free one."),
    "server.workers": ("--workers", int, "N", "Worker processes."),
    "upstream.base_url": ("--upstream", str, "URL", "Base URL of the upstream."),
    "data_dir": ("--data-dir", str, "DIRECTORY", "Where keys, ledger and generated secrets are kept."),
    "redis_url": ("--redis-url", str, "URL", "Redis for limits and cache."),
    "database_url": ("--database-url", str, "URL", "Database of keys and ledger."),
}


class SettingsRefused(click.ClickException):
    """Settings that cannot be used; every problem is shown on a line of its own."""

    def __init__(self, error: SettingsError) -> None:
        super().__init__(str(error))

    def show(self, file: Any = None) -> None:
        """Print the problems, on stderr unless told otherwise."""
        click.echo(self.message, file=file or sys.stderr)


class _Duration(click.ParamType[int]):
    """A duration such as `90d`, in milliseconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return value if isinstance(value, int) else parse_duration_ms(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class _MaxWait(click.ParamType[Any]):
    """How long a key's requests wait for their turn, in milliseconds, or where it can be taken away, `none`."""

    name = "wait"

    def __init__(self, *, clearable: bool) -> None:
        self._clearable = clearable

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        if self._clearable and value == CLEARED:
            return CLEARED
        wait_ms = DURATION.convert(value, param, ctx)
        if wait_ms > LONGEST_MAX_WAIT_MS:
            self.fail("an hour (1h) at most", param, ctx)
        return wait_ms


class _Day(click.ParamType[date]):
    """A day such as `2026-11-01`."""

    name = "day"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> date:
        try:
            return value if isinstance(value, date) else datetime.strptime(value, "%Y-%m-%d").replace(tzinfo=UTC).date()
        except ValueError:
            self.fail(f"{value!r} is no day (2026-11-01)", param, ctx)


class _Models(click.ParamType[frozenset[str]]):
    """Names of models with commas between them; `all` alone is every model there is."""

    name = "models"
    every = frozenset({"all"})

    def convert(self, value: Any, _param: click.Parameter | None, _ctx: click.Context | None) -> frozenset[str]:
        return value if isinstance(value, frozenset) else frozenset(filter(None, map(str.strip, value.split(","))))


class _Limit(click.ParamType[Any]):
    """A number a limit can have, or `none` for no limit here."""

    name = "limit"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        if value == CLEARED:
            return CLEARED
        return click.IntRange(1, LARGEST_LIMIT).convert(value, param, ctx)


CLEARED = "none"
_SHORT = {"requests_per_minute": "--rpm", "tokens_per_minute": "--tpm"}

DAY = _Day()
DURATION = _Duration()
MODELS = _Models()


def option(key: str) -> Callable[[_Command], _Command]:
    """The option that overrides one setting; its value arrives under the key with `__` for the dot."""
    flag, kind, metavar, text = _OPTIONS[key]
    return click.option(flag, key.replace(".", "__"), type=kind, metavar=metavar, help=text)


def limit_option(name: str, text: str, *, clearable: bool = True) -> Callable[[_Command], _Command]:
    """The option for a limit, under its name and its short one; `none` takes a clearable one away."""
    flags = [f"--{name.replace('_', '-')}", *([_SHORT[name]] if name in _SHORT else [])]
    if clearable:
        return click.option(*flags, name, type=_Limit(), metavar="N|none", help=text)
    return click.option(*flags, name, type=click.IntRange(1, LARGEST_LIMIT), metavar="N", help=text)


def max_wait_option(*, clearable: bool = True) -> Callable[[_Command], _Command]:
    """The option for how long the requests of a key wait; `none` takes a clearable one away."""
    return click.option(
        "--max-wait",
        "max_wait_ms",
        type=_MaxWait(clearable=clearable),
        metavar="DURATION|none" if clearable else "DURATION",
        help="How long its requests wait for their turn unless they say otherwise (20s); default: not at all.",
    )


def data_options(command: _Command) -> _Command:
    """Options of every command that needs the data: which settings file, which directory, which database."""
    for key in ("database_url", "data_dir"):
        command = option(key)(command)
    return config_option(command)


def config_option(command: _Command) -> _Command:
    """The option that names the settings file."""
    return click.option(
        "--config", type=click.Path(path_type=Path), metavar="FILE", help="Settings file (TOML); or TOLLGATE_CONFIG."
    )(command)


def json_option(command: _Command) -> _Command:
    """The option that prints JSON in the place of a table."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def settings_from(config: Path | None, flags: Mapping[str, object]) -> Settings:
    """Settings of the file, the environment and the given options. Raises `SettingsRefused`."""
    try:
        return load(config, None, {name.replace("__", "."): value for name, value in flags.items()})
    except SettingsError as error:
        raise SettingsRefused(error) from None


def refuse_alias(settings: Settings, model: str) -> None:
    """Refuse another name of a model: nothing that is set or kept goes by it. Raises `UsageError`."""
    named = settings.models.aliases.get(model)
    if named is not None:
        raise click.UsageError(f"{model} is an alias of {named}: name that")
