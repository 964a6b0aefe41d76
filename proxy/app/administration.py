"""The admin API, put together: its token, and what its operations work with."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import date, timedelta
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from sqlalchemy import Engine

from proxy.adapters.admin_token import (
    AdminTokenFile,
    GivenAdminToken,
    load_or_create_admin_token,
)
from proxy.adapters.admin_token import admin_token_path as path_of
from proxy.adapters.clock import SystemClock
from proxy.adapters.sql.notes import note
from proxy.adapters.sql.usage import SqlUsageReports
from proxy.app.cache_store import look_at_cache
from proxy.app.database import open_books, open_database, registry_on
from proxy.app.prices import import_prices, open_prices
from proxy.core.books import Books
from proxy.core.errors import StoreAway
from proxy.core.price_table import PricesInvalid, day_ms
from proxy.core.registry import BadValue, DataUnusable, Registry
from proxy.core.views.prices import PricesView, listed, prices_view
from proxy.settings import Settings
from proxy.web.admin.api import AdminApi
from proxy.web.admin.desk import Desk, ImportedPrices

__all__ = ["admin_api", "admin_token_file", "admin_token_path", "rotate_admin_token"]

_ACTOR = "admin-api"
_SHOWN_PROBLEMS = 20
_DAY_MS = 86_400_000
_EPOCH = date(1970, 1, 1)


def admin_api(settings: Settings, engine: Engine) -> AdminApi:
    """The admin API on a database that is open. Raises `DataUnusable` for the file of its token."""
    registry: Callable[[], AbstractContextManager[Registry]] = partial(registry_on, settings, engine, _ACTOR)
    # On a connection of its own: a proof may take longer than a request may.
    books: Callable[[], AbstractContextManager[Books]] = partial(open_books, settings, _ACTOR)
    desk = Desk(
        registry=registry,
        reports=SqlUsageReports(engine),
        books=books,
        pricing=_Pricing(settings),
        look_at_cache=partial(look_at_cache, settings),
        tiers=settings.limits.all_tiers(),
        default_tier=settings.limits.default_tier,
        clock=SystemClock(),
        aliases=settings.models.aliases,
    )
    given = settings.server.admin_token
    token = admin_token_file(settings) if given is None else GivenAdminToken(given.reveal())
    return AdminApi(desk, token.admits)


def admin_token_file(settings: Settings) -> AdminTokenFile:
    """The file of the token, made when there is none.

    Raises `DataUnusable` where the environment has the token, or the file holds none or cannot be read.
    """
    path = admin_token_path(settings)
    try:
        return load_or_create_admin_token(settings.data_dir, settings.server.admin_token_file)
    except OSError as error:
        raise DataUnusable(f"{path}: {error.strerror}") from error


def admin_token_path(settings: Settings) -> Path:
    """Where the token is. Raises `DataUnusable` where the environment has it."""
    if settings.server.admin_token is not None:
        raise DataUnusable("the token is the one in TOLLGATE_ADMIN_TOKEN, and is changed there")
    return path_of(settings.data_dir, settings.server.admin_token_file)


def rotate_admin_token(settings: Settings, actor: str) -> tuple[str, bool]:
    """Make another token; return it, and whether that is in the audit log. Servers that run go by it at once.

    Raises `DataUnusable` where the environment has the token, and `OSError`; a file that holds none is replaced.
    """
    file = AdminTokenFile(admin_token_path(settings))
    token = file.rotate()
    # After it: whoever has to shut others out is not to wait for a database.
    try:
        with open_database(settings) as engine:
            note(engine, SystemClock().now_ms(), actor, "admin_token.rotate", str(file.path), {})
    except (DataUnusable, StoreAway):
        return token, False
    return token, True


@dataclass(frozen=True, slots=True)
class _Pricing:
    """Keeps the promises of `web.admin.desk.Pricing`."""

    settings: Settings

    def list_prices(self, model: str | None, day: date | None) -> PricesView:
        try:
            view = open_prices(self.settings)
        except PricesInvalid as error:
            raise DataUnusable(str(error)) from None
        if model is not None and not view.book.rows(model):
            raise BadValue("model", "no price is known for it")
        now_ms = SystemClock().now_ms()
        rows = listed(view.book, view.shipped, model, None if day is None else day_ms(day), now_ms)
        return prices_view(rows, view.shipped, None if view.file is None else str(view.file), _day_of(now_ms))

    def import_prices(self, content: str, form: str, start: date | None) -> ImportedPrices:
        today = _day_of(SystemClock().now_ms())
        start = start or today + timedelta(days=1)
        with TemporaryDirectory(prefix="prices-", dir=self.settings.data_dir) as place:
            path = Path(place) / f"import.{form}"
            try:
                path.write_text(content, "utf-8")
                done = import_prices(self.settings, path, start, today, _ACTOR)
            except PricesInvalid as error:
                raise BadValue("content", _problems(error, path)) from None
            except OSError as error:
                raise StoreAway("prices", "import") from error
        return ImportedPrices(str(done.file), start, done.models, done.passed_over)


def _problems(error: PricesInvalid, path: Path) -> str:
    """What is wrong with a table, by line; of the file that it was for a moment, nothing."""
    lines = str(error).splitlines()
    told = [line.removeprefix(f"{path}:").replace(str(path), "the table").strip() for line in lines[:_SHOWN_PROBLEMS]]
    return "; ".join(f"line {line}" if line[:1].isdigit() else line for line in told)


def _day_of(at_ms: int) -> date:
    return date.fromordinal(_EPOCH.toordinal() + at_ms // _DAY_MS)
