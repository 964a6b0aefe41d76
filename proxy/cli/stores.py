"""Teams, keys and usage, as the commands reach them: through the composition root, with errors turned into exits."""

from __future__ import annotations

import os
import pwd
import time
from collections.abc import Iterator
from contextlib import contextmanager

import click

from proxy.cli.output import printable
from proxy.core.books import Books
from proxy.core.errors import StoreAway
from proxy.core.registry import Registry, RegistryError, UsageReports
from proxy.settings import Settings
from proxy.settings.problem import nearest

__all__ = ["actor", "books_of", "failures", "now_ms", "registry_of", "reports_of", "require_tier"]


def now_ms() -> int:
    """Unix time in milliseconds at which the command was given."""
    return time.time_ns() // 1_000_000  # noqa: TID251  # a command is one instant; there is no application to ask


def actor() -> str:
    """Who gives the command, as the audit log names them: the user the process belongs to."""
    uid = os.getuid()
    try:
        return f"cli:{pwd.getpwuid(uid).pw_name}"
    except KeyError:
        # As in a container that runs under a number of its own.
        return f"cli:{uid}"


@contextmanager
def registry_of(settings: Settings) -> Iterator[Registry]:
    """Teams and keys of the configured database; what goes wrong ends the command with a sentence."""
    import proxy.app  # noqa: PLC0415  # --help and refusals do without the database

    with failures(), proxy.app.open_registry(settings, actor()) as registry:
        yield registry


@contextmanager
def reports_of(settings: Settings) -> Iterator[UsageReports]:
    """The ledger of the configured database; what goes wrong ends the command with a sentence."""
    import proxy.app  # noqa: PLC0415  # as above

    with failures(), proxy.app.open_reports(settings) as reports:
        yield reports


@contextmanager
def books_of(settings: Settings, actor: str) -> Iterator[Books]:
    """The ledger to be proved; what goes wrong ends the command with a sentence. `actor`: see `core.audit`."""
    import proxy.app  # noqa: PLC0415  # as above

    with failures(), proxy.app.open_books(settings, actor) as books:
        yield books


def require_tier(settings: Settings, tier: str) -> None:
    """Refuse a tier that neither the documentation nor the settings file has."""
    known = settings.limits.all_tiers()
    if tier not in known:
        hint = nearest(tier, known) or f"there are {', '.join(known)}"
        raise click.ClickException(f"no tier is named {printable(tier)} ({hint})")


@contextmanager
def failures() -> Iterator[None]:
    """Turn what teams, keys and ledger are refused with into a sentence and an exit of 1."""
    try:
        yield
    except RegistryError as error:
        raise click.ClickException(printable(str(error))) from None
    except OSError as error:
        if error.filename is None:
            raise
        raise click.ClickException(f"{error.strerror}: {printable(str(error.filename))}") from error
    except StoreAway as error:
        what = f"the database did not answer ({error.store}, {error.operation})"
        # What the driver says of it: an address and a user, never a password.
        said = str(getattr(error.__cause__, "orig", None) or "").strip().partition("\n")[0]
        raise click.ClickException(printable(f"{what}: {said}" if said else what)) from error
