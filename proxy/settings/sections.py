"""Every table of settings: types, defaults and meanings.

Each field is a key of the TOML file (`[server] port = 8080`) and, unless it is a table or list of tables, a variable
of the environment (`TOLLGATE_PORT`); `names.py` has the rule. Paths in a file are relative to that file.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from proxy.core.pricing import Unpriced
from proxy.core.tiers import DEFAULT_TIERS, LARGEST_LIMIT, Limits, Phase, Tier
from proxy.settings.duration import parse_duration_ms
from proxy.settings.secret import Secret

__all__ = [
    "DEFAULT_UPSTREAM_URL",
    "BudgetSettings",
    "CacheSettings",
    "HeaderSettings",
    "HitsCount",
    "LedgerSettings",
    "LedgerSync",
    "LimitSettings",
    "LogFormat",
    "LogSettings",
    "ModelSettings",
    "OnDisconnect",
    "PhaseSettings",
    "PriceSettings",
    "QueueSettings",
    "Section",
    "ServerSettings",
    "StreamSettings",
    "UnknownModels",
    "UpstreamSettings",
    "WhenRedisIsAway",
]

DEFAULT_UPSTREAM_URL = "https://api.openai.com/v1"

Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
Port = Annotated[int, Meta(ge=0, le=65_535)]
Count = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Limit = Annotated[int, Meta(ge=1, le=LARGEST_LIMIT)]
Bytes = Annotated[int, Meta(ge=1, le=2**53)]
Seconds = Annotated[float, Meta(gt=0, le=86_400)]
SecondsOrNone = Annotated[float, Meta(ge=0, le=86_400)]
Milliseconds = Annotated[int, Meta(ge=1, le=3_600_000)]
ModelName = Annotated[str, Meta(min_length=1, max_length=256)]
VariableName = Annotated[str, Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,127}$")]


class HitsCount(StrEnum):
    """What an answer from the cache costs its team's limits."""

    REQUESTS = "requests"
    """One request and no tokens."""
    NOTHING = "nothing"


class UnknownModels(StrEnum):
    """What becomes of a request for a model that neither the price table nor `models.extra` names."""

    REFUSE = "refuse"
    ALLOW = "allow"


class WhenRedisIsAway(StrEnum):
    """Who decides on limits while Redis does not answer."""

    SHARE = "share"
    """Each worker, by its part of every limit: together never more than the limit."""
    CLOSED = "closed"
    """Nobody: requests are answered 503."""
    OPEN = "open"
    """Nobody: requests pass uncounted."""


class LedgerSync(StrEnum):
    """When a record of the ledger is forced to disk."""

    GROUP = "group"
    """Many records at once, shortly after; survives the process, and all but the last moments before a power cut."""
    STRICT = "strict"
    """Each record before its request goes on."""


class LogFormat(StrEnum):
    """The form of log lines."""

    AUTO = "auto"
    """Console form on a terminal, JSON elsewhere."""
    JSON = "json"
    CONSOLE = "console"


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the settings file."""


class ServerSettings(Section, frozen=True, kw_only=True):
    """`[server]`: the two listeners, processes, and bounds on what clients send."""

    host: Annotated[str, Meta(min_length=1)] = "127.0.0.1"
    """Address of the public listener."""
    port: Port = 8080
    """Port of the public listener; 0 takes a free one."""
    admin_host: Annotated[str, Meta(min_length=1)] = "127.0.0.1"
    """Address of the operations listener."""
    admin_port: Port = 8081
    """Port of the operations listener; 0 takes a free one."""
    admin_token: Secret | None = None
    """The token of the admin API; from TOLLGATE_ADMIN_TOKEN, never in the settings file; absent: `admin_token_file`."""
    admin_token_file: Path | None = None
    """A file that holds the token of the admin API, made when there is none; absent: made in data_dir."""
    workers: Annotated[int, Meta(ge=1, le=256)] = 1
    """Worker processes on this machine."""
    replicas: Annotated[int, Meta(ge=1, le=10_000)] = 1
    """Machines that serve the same teams; more than one needs Redis."""
    drain_seconds: SecondsOrNone = 30.0
    """Longest wait at shutdown for requests in flight."""
    ready_grace_seconds: SecondsOrNone = 0.0
    """How long `/readyz` says 503 at shutdown before the listener closes: what a load balancer needs to notice."""
    max_body_bytes: Bytes = 64 * 1024 * 1024
    """Largest request body that is read whole: JSON."""
    max_upload_bytes: Bytes = 512 * 1024 * 1024
    """Largest form, and largest body of what is passed on to what is kept at OpenAI: neither is held in memory."""
    max_json_depth: Annotated[int, Meta(ge=1, le=512)] = 64
    """Deepest nesting of a JSON request body."""
    header_timeout_seconds: Seconds = 30.0
    """Longest time from the first byte of a request's head to its last."""
    body_timeout_seconds: Seconds = 60.0
    """Longest silence within a request's body."""
    write_timeout_seconds: Seconds = 60.0
    """Longest time in which a client takes nothing of its answer."""
    idle_timeout_seconds: Seconds = 75.0
    """Longest silence of a connection between two requests."""
    max_connections: Count = 10_000
    """Connections of clients open at once, per worker; those beyond it are answered 503."""
    max_held_bytes: Bytes = 1024 * 1024 * 1024
    """Bytes of request bodies held in memory at once, per worker; what is beyond it is answered 503."""
    tls_cert_file: Path | None = None
    """Certificate of the public listener, and those that vouch for it, in PEM; it then speaks HTTPS alone. Followed as
    it changes."""
    tls_key_file: Path | None = None
    """The key of that certificate, in PEM, without a password."""
    admin_allowed_hosts: tuple[str, ...] = ()
    """Names the operations listener answers to beside addresses, `admin_host` and names without a dot."""
    pages: bool = True
    """Whether there are pages for people: the operator's, `/` of the operations listener, and a team's, `/tollgate`."""


class UpstreamSettings(Section, frozen=True, kw_only=True):
    """`[upstream]`: the API Tollgate stands in front of, and how calls are made to it, or to all of `[upstreams]`."""

    name: Name = "openai"
    """Its name in metrics, logs and the ledger."""
    base_url: Annotated[str, Meta(min_length=1)] = DEFAULT_UPSTREAM_URL
    """Where it is, version included and without a slash at the end."""
    api_key: Secret | None = None
    """The key sent to it; from OPENAI_API_KEY or `api_key_file`, never in the settings file."""
    api_key_file: Path | None = None
    """A file that holds the key, and nothing else; OPENAI_API_KEY wins over it."""
    ca_file: Path | None = None
    """Certificates of authorities that are trusted beside the system's, in PEM, by calls to any upstream."""
    connect_timeout_seconds: Seconds = 5.0
    """Longest wait for a connection."""
    read_timeout_seconds: Seconds = 120.0
    """Longest silence between two reads of an answer."""
    total_timeout_seconds: Seconds = 600.0
    """Longest exchange, retries included."""
    max_connections: Count = 1_000
    """Connections open at once, per worker."""
    max_attempts: Annotated[int, Meta(ge=1, le=10)] = 3
    """Calls made for one request, the first included."""
    first_backoff_ms: Milliseconds = 500
    """Wait before the second call; it doubles from then on."""
    max_backoff_ms: Milliseconds = 8_000
    """Longest wait between two calls."""
    requests_per_minute: Count | None = None
    """Pace of calls under this key; absent: not paced."""
    tokens_per_minute: Count | None = None
    """Tokens of calls under this key; absent: not paced."""
    pacing_queue: Count = 1_000
    """Requests that may wait for their turn under the pace; more are answered 503."""
    pacing_deadline_seconds: Seconds = 10.0
    """Longest wait for a turn; then 503."""
    retry_budget_percent: Annotated[int, Meta(ge=0, le=100)] = 20
    """Calls that may be made again, of a hundred requests of the last ten seconds."""
    retry_budget_floor: Annotated[int, Meta(ge=0, le=1_000)] = 5
    """Calls a second, per worker, that may be made again whatever the number of requests."""
    breaker_failures: Annotated[int, Meta(ge=0, le=1_000_000)] = 20
    """Calls in a row without an answer, or with a 5xx, after which an upstream is left alone for a while; 0: never."""
    breaker_rest_seconds: Annotated[float, Meta(gt=0, le=3_600)] = 1.0
    """For how long; then one request tries it, and it rests twice as long if that fails, up to ten times as long."""


class PhaseSettings(Section, frozen=True, kw_only=True):
    """One phase of a tier; a rate that is absent is unlimited."""

    requests_per_minute: Limit | None = None
    tokens_per_minute: Limit | None = None
    request_capacity: Limit | None = None
    """Requests a full bucket holds: the largest burst; absent: one minute's worth."""
    token_capacity: Limit | None = None
    """Tokens a full bucket holds: the largest burst, and the largest request; absent: one minute's worth."""
    lasts: str | None = None
    """How long the phase holds (`48h`); absent in the last phase, and there only."""

    def phase(self) -> Phase:
        """The phase as the core knows it. Raises `ValueError` when `lasts` is not a duration."""
        limits = Limits(
            requests_per_minute=self.requests_per_minute,
            tokens_per_minute=self.tokens_per_minute,
            request_capacity=self.request_capacity,
            token_capacity=self.token_capacity,
        )
        return Phase(limits, None if self.lasts is None else parse_duration_ms(self.lasts))


class LimitSettings(Section, frozen=True, kw_only=True):
    """`[limits]`: tiers, and how requests are counted against them."""

    default_tier: Name = "free"
    """The tier of a team that was put on none."""
    default_output_reservation_tokens: Count = 1_024
    """Output tokens reserved for a request that names no maximum."""
    hits_count: HitsCount = HitsCount.REQUESTS
    """What an answer from the cache counts as."""
    when_redis_is_away: WhenRedisIsAway = WhenRedisIsAway.SHARE
    """What limits are while Redis does not answer."""
    redis_deadline_ms: Milliseconds = 100
    """Longest wait for an answer of Redis; then it counts as away for this request."""
    tiers: dict[Name, tuple[PhaseSettings, ...]] = {}
    """Tiers of your own, and those that take the place of a documented one: name -> phases in order."""

    def all_tiers(self) -> dict[str, Tier]:
        """The documented tiers with the operator's added, or in their place, by name."""
        own = {name: Tier(name, tuple(each.phase() for each in phases)) for name, phases in self.tiers.items()}
        return {**DEFAULT_TIERS, **own}


class QueueSettings(Section, frozen=True, kw_only=True):
    """`[queue]`: requests that wait for limits to have room where they, or their keys, ask for it."""

    max_waiting: Count = 1_000
    """Requests of a worker that may wait at once; more are answered 429."""
    longest_wait_seconds: SecondsOrNone = 60.0
    """Longest wait, whatever is asked for; 0: nobody waits."""


class CacheSettings(Section, frozen=True, kw_only=True):
    """`[cache]`: answers kept for the team that paid for them."""

    enabled: bool = True
    """Whether anything is kept."""
    max_bytes: Bytes = 256 * 1024 * 1024
    """Size of the in-process cache; the least recently used answers leave first. Redis has its own bound."""
    entry_max_bytes: Bytes = 1024 * 1024
    """Largest answer that is kept."""
    ttl_seconds: Annotated[int, Meta(ge=1, le=31_536_000)] = 86_400
    """How long an answer is good for."""
    fill_wait_seconds: SecondsOrNone = 30.0
    """Longest wait for an answer that another process is fetching; then it is fetched here too. 0: no wait."""
    redis_deadline_ms: Milliseconds = 50
    """Longest wait for an answer of the cache's Redis; then it counts as a miss."""
    l1_seconds: SecondsOrNone = 0.0
    """How long a worker has answers of Redis at hand itself, `max_bytes` of them at most; 0: not at all."""
    key: Secret | None = None
    """Master keys that answers in Redis are sealed under; from TOLLGATE_CACHE_KEY or `key_file`, never in the file."""
    key_file: Path | None = None
    """A file of master keys, one a line: the first seals, all open; TOLLGATE_CACHE_KEY wins over it."""


class ModelSettings(Section, frozen=True, kw_only=True):
    """`[models]`: which model names are taken."""

    unknown: UnknownModels = UnknownModels.REFUSE
    """What becomes of a request for an unknown model."""
    extra: tuple[ModelName, ...] = ()
    """Names that are taken beside those of the price table."""
    aliases: dict[ModelName, ModelName] = {}
    """Other names of models: alias -> the model that is asked, limited, priced and accounted for."""


class PriceSettings(Section, frozen=True, kw_only=True):
    """`[prices]`: what tokens cost."""

    file: Path | None = None
    """A price table that is laid over the one in the package, model by model, from each row's day on; absent:
    `prices.json` in `data_dir` where there is one, else the package's alone."""
    unpriced: Unpriced = Unpriced.REFUSE
    """What becomes of a request for a model without a price where its team or key has a budget."""


class BudgetSettings(Section, frozen=True, kw_only=True):
    """`[budgets]`: who is told when the warning of a budget is reached."""

    webhook_url: Secret | None = None
    """Where warnings are posted, as JSON; what it holds beside the host is taken for a secret, and never shown."""
    webhook_secret: Secret | None = None
    """What warnings are signed with; from TOLLGATE_BUDGETS_WEBHOOK_SECRET or `webhook_secret_file`, never in the
    file."""
    webhook_secret_file: Path | None = None
    """A file that holds the secret, and nothing else; the variable wins over it."""


class LedgerSettings(Section, frozen=True, kw_only=True):
    """`[ledger]`: the spool that holds usage events until the database has them."""

    segment_bytes: Annotated[int, Meta(ge=65_536, le=2**40)] = 16 * 1024 * 1024
    """Size at which a segment of the spool is closed and the next begun."""
    quota_bytes: Annotated[int, Meta(ge=65_536, le=2**50)] = 1024 * 1024 * 1024
    """Size of the whole spool; at it, requests are refused rather than served without a record."""
    sync: LedgerSync = LedgerSync.GROUP
    """When records are forced to disk."""


class OnDisconnect(StrEnum):
    """What becomes of a call upstream whose client leaves before its answer is whole."""

    CANCEL = "cancel"
    """It is stopped, and accounted for as far as it came."""
    DRAIN = "drain"
    """It is read to its end, for an exact account and for the cache."""


class StreamSettings(Section, frozen=True, kw_only=True):
    """`[streams]`: streamed answers, and answers whose client leaves."""

    ask_for_usage: bool = True
    """Whether upstream is asked for the usage of a stream where the client did not; off for an upstream that refuses
    the option: tokens are then counted here, and flagged as estimated."""
    on_disconnect: OnDisconnect = OnDisconnect.CANCEL
    """What becomes of a call upstream, streamed or not, when its client leaves."""
    max_draining: Count = 100
    """Calls of a worker that are read to their end after their client has left; beyond it they are stopped."""
    keep_alive_seconds: SecondsOrNone = 0.0
    """Silence of a stream after which its client is sent a comment, which SDKs pass over; 0: never."""


class HeaderSettings(Section, frozen=True, kw_only=True):
    """`[headers]`: what answers say of themselves."""

    off: tuple[str, ...] = ()
    """Headers of Tollgate's own that are left out, by their names in the README's table."""


class LogSettings(Section, frozen=True, kw_only=True):
    """`[log]`: one line per request on stdout."""

    format: LogFormat = LogFormat.AUTO
    """The form of the lines."""
