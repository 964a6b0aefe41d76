"""The settings as one frozen record, and what this version can serve of them."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import platformdirs

from proxy.settings.names import variable_of
from proxy.settings.outgoing import OutgoingSettings
from proxy.settings.packages import INSTALL_SERVER, missing_for_cache
from proxy.settings.parser import INSTALL_PARSER, has_compiled_parser
from proxy.settings.problem import Problem, SettingsError
from proxy.settings.secret import Secret
from proxy.settings.sections import (
    DEFAULT_UPSTREAM_URL,
    BudgetSettings,
    CacheSettings,
    HeaderSettings,
    LedgerSettings,
    LimitSettings,
    LogSettings,
    ModelSettings,
    Name,
    PriceSettings,
    QueueSettings,
    Section,
    ServerSettings,
    StreamSettings,
    UpstreamSettings,
)
from proxy.settings.upstreams import NamedUpstreamSettings

__all__ = ["Settings"]

_PRICE_FILE = "prices.json"


class Settings(Section, frozen=True, kw_only=True):
    """The whole of it; made by `load`, which has checked what one field means to another."""

    data_dir: Path = msgspec.field(default_factory=lambda: platformdirs.user_data_path("tollgate"))
    """Directory of the SQLite file, the spool and generated secrets; created with mode 0700."""
    redis_url: Secret | None = None
    """Redis for limits: what lets several workers and replicas hold teams to one limit."""
    cache_redis_url: Secret | None = None
    """Redis for the cache; absent: that of `redis_url`, or where there is none, a cache in each worker."""
    database_url: Secret | None = None
    """Database of keys and ledger; absent: a SQLite file in the data directory."""
    pepper_file: Path | None = None
    """Secrets that keys are hashed under; machines that share a database share it; absent: made in data_dir."""
    server: ServerSettings = ServerSettings()
    upstream: UpstreamSettings = UpstreamSettings()
    upstreams: dict[Name, NamedUpstreamSettings] = msgspec.field(default_factory=dict)
    """Several APIs to stand in front of, by name; empty: `upstream` alone."""
    outgoing: OutgoingSettings = OutgoingSettings()
    limits: LimitSettings = LimitSettings()
    queue: QueueSettings = QueueSettings()
    cache: CacheSettings = CacheSettings()
    models: ModelSettings = ModelSettings()
    prices: PriceSettings = PriceSettings()
    budgets: BudgetSettings = BudgetSettings()
    ledger: LedgerSettings = LedgerSettings()
    streams: StreamSettings = StreamSettings()
    headers: HeaderSettings = HeaderSettings()
    log: LogSettings = LogSettings()

    @property
    def default_price_file(self) -> Path:
        """Where the operator's price table is looked for when `prices.file` names none."""
        return self.data_dir / _PRICE_FILE

    def price_file(self) -> Path | None:
        """The operator's price table, None where there is none."""
        if self.prices.file is not None:
            return self.prices.file
        try:
            return self.default_price_file if self.default_price_file.is_file() else None
        except PermissionError:
            # A directory of another user's: whoever needs what is in it says so.
            return None

    def servability(self, *, demo: bool = False) -> tuple[Problem, ...]:
        """What stands between these settings and a running server; empty when nothing does.

        `demo`: without a key for the default upstream, the simulated one takes its place.
        """
        found = [*self._unshared_limits(), *self._unserved_stores(), *_lenient_parser()]
        if self.upstreams:
            return (*found, *([] if demo else self._keyless_upstreams()))
        if not demo and self.upstream.base_url == DEFAULT_UPSTREAM_URL and self.upstream.api_key is None:
            found.append(
                Problem(
                    "upstream.api_key",
                    f"calls to {DEFAULT_UPSTREAM_URL} need a key",
                    suggestion="set OPENAI_API_KEY or upstream.api_key_file, name another upstream with --upstream, "
                    "or try it without one: tollgate serve --demo",
                )
            )
        return tuple(found)

    def check_servable(self, *, demo: bool = False) -> None:
        """Raise `SettingsError` with all of `servability`, if there is any."""
        problems = self.servability(demo=demo)
        if problems:
            raise SettingsError(problems)

    def _keyless_upstreams(self) -> list[Problem]:
        """Upstreams that are known to need a key, and have none."""
        return [
            Problem(
                f"upstreams.{name}",
                "calls to it need a key",
                suggestion=f"set {upstream.api_key_variable}"
                if upstream.api_key_variable
                else f"name a file of keys with upstreams.{name}.api_key_file, or a variable with api_key_variable",
            )
            for name, upstream in self.upstreams.items()
            if upstream.wants_key and not upstream.api_keys
        ]

    def _unshared_limits(self) -> list[Problem]:
        """Processes that would each count limits for themselves: N times what a team was given."""
        if self.redis_url is not None:
            return []
        server = self.server
        remedy = "share them in Redis with redis_url (TOLLGATE_REDIS_URL)"
        return [
            Problem(
                f"server.{name}",
                f"{count} {name} would each count limits for themselves",
                suggestion=f"{remedy}; alone, set {variable_of(('server', name))}=1",
            )
            for name, count in (("workers", server.workers), ("replicas", server.replicas))
            if count > 1
        ]

    def _unserved_stores(self) -> list[Problem]:
        """Stores that can be written down and not be used."""
        found = []
        for name, redis_url in (("redis_url", self.redis_url), ("cache_redis_url", self.cache_redis_url)):
            if redis_url is not None:
                found += _redis_problems(name, redis_url.reveal())
        if self.cache_redis_url is not None and (missing := missing_for_cache()):
            found.append(
                Problem(
                    "cache_redis_url",
                    f"answers in Redis are sealed and compressed with {' and '.join(missing)}, not installed here",
                    suggestion=f"{INSTALL_SERVER}, or leave {variable_of(('cache_redis_url',))} out: each worker then "
                    "has a cache of its own",
                )
            )
        if self.database_url is not None:
            found += _database_problems(self.database_url.reveal())
        return found


def _lenient_parser() -> list[Problem]:
    if has_compiled_parser():
        return []
    message = "its compiled HTTP parser is missing, and the one in its place is too lenient to stand before an upstream"
    return [Problem("aiohttp", message, suggestion=INSTALL_PARSER)]


def _redis_problems(name: str, url: str) -> list[Problem]:
    """What is wrong with a URL of Redis; none of it is repeated."""
    from proxy.adapters.redis.address import BadRedisUrl, parse_redis_url  # noqa: PLC0415 - costly, seldom needed

    try:
        parse_redis_url(url)
    except BadRedisUrl as error:
        return [Problem(name, str(error))]
    return []


def _database_problems(url: str) -> list[Problem]:
    """What is wrong with a URL of a known kind of database; none of it is repeated."""
    if url.partition(":")[0].partition("+")[0] != "postgresql":
        return []
    if find_spec("psycopg") is None:
        return [
            Problem(
                "database_url",
                "Postgres needs its driver, which is not installed",
                suggestion=f"pip install 'tollgate[server]', or leave {variable_of(('database_url',))} out for SQLite "
                "in data_dir",
            )
        ]
    try:
        parts = urlsplit(url)
        usable = bool(parts.path.strip("/")) and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    return [] if usable else [Problem("database_url", "expected postgresql://USER:PASSWORD@HOST:PORT/DATABASE")]
